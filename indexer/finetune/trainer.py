"""The training loop: one for every stage, on one processor or on many.

Started by torchrun it runs in as many processes as torchrun starts, each computing its part of every batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from indexer.finetune.batches import (
    Chance,
    Indexes,
    Pictures,
    Place,
    batches,
    epoch_order,
    load,
    random_at,
    steps_per_epoch,
)
from indexer.finetune.checkpoint import State
from indexer.finetune.objectives import Objective
from indexer.finetune.recipes import RunConfig, Schedule, Stage
from indexer.progress import Reporter
from indexer.torch_runtime import torch

_LARGEST_SCALE = math.log(100)
_STAGE_NUMBERS = {stage: number for number, stage in enumerate(Stage)}


@dataclass(frozen=True)
class Processes:
    """This process among those that train together: its number, how many there are, and its device."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls, device: Literal["auto", "cpu", "cuda"]) -> Self:
        """Join the processes that torchrun started; without torchrun there is one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if not torch.distributed.is_torchelastic_launched():
            return cls(0, 1, torch.device(device))
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        number = torch.distributed.get_node_local_rank()
        place = torch.device(device, number) if device == "cuda" else torch.device(device)
        if device == "cuda":
            torch.cuda.set_device(place)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), place)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the means over all processes."""
        if self.count == 1:
            return values
        total = torch.tensor(list(values.values()), device=self.device)
        torch.distributed.all_reduce(total)
        return dict(zip(values, (total / self.count).tolist(), strict=True))


@dataclass(frozen=True)
class Course:
    """One stage of a run, as one process takes part in it."""

    stage: Stage
    config: RunConfig
    processes: Processes

    @property
    def schedule(self) -> Schedule:
        """How the stage is optimised."""
        return self.config.schedule(self.stage)

    @property
    def number(self) -> int:
        """The stage, among all there are."""
        return _STAGE_NUMBERS[self.stage]

    def random(self, chance: Chance, step: int) -> np.random.Generator:
        """Return the randomness of one purpose in one step of this process."""
        return random_at(chance, self.config.seed, self.number, step, self.processes.rank)


@dataclass(frozen=True)
class Feed:
    """What a stage is trained on: `count` pictures; their pixels, and their classes where classes take turns."""

    count: int
    pictures: Pictures | None
    classes: Indexes | None

    def steps(self, schedule: Schedule) -> int:
        """Return how many steps the stage has."""
        return schedule.epochs * steps_per_epoch(self.count, schedule.batch)

    def batches(self, course: Course, start: int) -> Iterator[tuple[Indexes, torch.Tensor | None]]:
        """Yield the part of each batch that this process computes, from step `start` on."""
        config, schedule, processes = course.config, course.schedule, course.processes
        per_epoch = steps_per_epoch(self.count, schedule.batch)
        parts = processes.count * schedule.accumulate
        for epoch in range(start // per_epoch, schedule.epochs):
            order = epoch_order(self.count, random_at(Chance.ORDER, config.seed, course.number, epoch), self.classes)
            plan = [
                [
                    Place(course.number, epoch, i * len(batch) + position, int(batch[position]))
                    for position in range(processes.rank, len(batch), processes.count)
                ]
                for i, batch in enumerate(batches(order, schedule.batch, parts))
            ][max(0, start - epoch * per_epoch) :]
            if self.pictures is None:
                yield from ((np.array([place.index for place in places]), None) for places in plan)
            else:
                yield from load(self.pictures, plan, config.workers)


def fit(
    objective: Objective, feed: Feed, course: Course, state: State, keep: Callable[[State], None], progress: Reporter
) -> None:
    """Train an objective in place, from where `state` stands to the end of the stage.

    `keep` is called with the state every `checkpoint_steps` steps, but for the last: then the stage has ended.
    """
    config, schedule, processes = course.config, course.schedule, course.processes
    steps = feed.steps(schedule)
    objective.to(processes.device)
    optimizer = _optimizer(objective.trained, schedule, config.proxies)
    average = _average(objective.model, config.ema)
    if state.step:
        objective.load_state_dict(state.objective)
        optimizer.load_state_dict(state.optimizer)
        if average is not None:
            average.load_state_dict(state.average)
    module = torch.nn.parallel.DistributedDataParallel(objective) if processes.count > 1 else objective
    for step, (indexes, pixels) in enumerate(feed.batches(course, state.step), state.step):
        torch.manual_seed(int(course.random(Chance.MODEL, step).integers(2**63)))
        rng = course.random(Chance.CAPTION, step)
        state.losses[-1].append(_backward(module, objective, indexes, pixels, rng, course))
        _update(objective.model, optimizer, learning_rate(step, steps, schedule), config.clip_norm)
        if average is not None:
            average.update_parameters(objective.model)
        if processes.first:
            progress.update(f"train {course.stage}", step + 1, steps)
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < steps:
            state.step = step + 1
            state.objective, state.optimizer = objective.state_dict(), optimizer.state_dict()
            state.average = average.state_dict() if average is not None else {}
            keep(state)
    if average is not None:
        objective.model.load_state_dict(average.module.state_dict())
    objective.model.eval()


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """Return the part of the learning rate for a step: rising evenly, then falling as a cosine to the floor."""
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    turn = (step - warmup) / max(1, steps - warmup)
    return schedule.floor + (1 - schedule.floor) * (0.5 + 0.5 * math.cos(math.pi * turn))


def _backward(
    module: Any,
    objective: Objective,
    indexes: Indexes,
    pixels: torch.Tensor | None,
    rng: np.random.Generator,
    course: Course,
) -> dict[str, float]:
    """Add up the gradients of one batch, and return its losses."""
    device, parts = course.processes.device, course.schedule.accumulate
    precision = course.config.precision
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    total: dict[str, float] = {}
    objective.train()
    for part in np.split(np.arange(len(indexes)), parts):
        given = objective.inputs(indexes[part], None if pixels is None else pixels[part], rng)
        inputs = [each.to(device, non_blocking=True) if torch.is_tensor(each) else each for each in given]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = module(*inputs)
        (losses["loss"] / parts).backward()
        for name, loss in losses.items():
            total[name] = total.get(name, 0.0) + loss.item() / parts
    return course.processes.mean(total)


def _update(model: Any, optimizer: torch.optim.Optimizer, rate: float, clip_norm: float) -> None:
    """Change the weights by the gradients that were added up, at a part of the full learning rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * rate
    torch.nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    # Only where it is trained: OpenAI's is a little above, and belongs to a text half that MCIP must not change.
    if model.logit_scale.requires_grad:
        with torch.no_grad():
            model.logit_scale.clamp_(0, _LARGEST_SCALE)


def _optimizer(
    trained: dict[str, list[torch.nn.Parameter]], schedule: Schedule, proxies: float
) -> torch.optim.Optimizer:
    """Return AdamW over an objective's groups; `full` is the learning rate that the schedule then takes a part of."""
    groups = []
    for name, parameters in trained.items():
        full = schedule.learning_rate * (proxies if name == "proxies" else 1)
        for decay, chosen in (
            (schedule.weight_decay, [each for each in parameters if each.ndim > 1]),
            (0.0, [each for each in parameters if each.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": full, "full": full, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=schedule.betas, eps=schedule.eps, fused=True)


def _average(model: Any, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    """Return a moving average of a model's weights; its buffers are those of the last step."""
    if not decay:
        return None
    lerp = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=lerp)
