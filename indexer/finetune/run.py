"""A fine-tuning run, from the base model to a folder with the tuned one and what it has come to.

out/
  config.json          the settings and the seed, the base model's fingerprints, the data, the versions
  model/               the tuned model, for `local-dir:`
  losses.jsonl         the losses of every step
  losses.svg           the same as a plot
  evaluation/          base and tuned model side by side on pictures that were not trained on
  checkpoint.pt        only until the run has ended: what `--resume` goes on from
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from indexer.encoder import EncoderName
from indexer.errors import TrainingError
from indexer.evaluate.plots import curves
from indexer.finetune.batches import Indexes, Pictures
from indexer.finetune.checkpoint import State, load, save
from indexer.finetune.export import WEIGHTS, export
from indexer.finetune.objectives import Captions, ClipObjective, ImageObjective, Objective, TextObjective
from indexer.finetune.recipes import RunConfig, Stage
from indexer.finetune.trainer import Course, Feed, Processes, fit
from indexer.open_clip_encoder import LoadedModel, OpenClipEncoder, load_model
from indexer.progress import Reporter
from indexer.samples import Samples, encode_samples
from indexer.torch_runtime import torch

_SMOOTHED = 50  # points of a plotted curve, at most


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    `samples` are labelled for GPR-FT, labelled and captioned for MCIP. `pairs` are captioned, for Re-A and plain CLIP;
    often the same. `said` describes both in the words of the user, for config.json.
    """

    samples: Samples
    pairs: Samples
    said: dict[str, Any]


def finetune(
    config: RunConfig,
    base: EncoderName,
    data: TrainingData,
    out: Path,
    device: Literal["auto", "cpu", "cuda"],
    progress: Reporter,
    threads: int = 0,
) -> EncoderName | None:
    """Tune a model by a recipe and export it to `out`/model; goes on with a run that was interrupted there.

    Args:
        config: the recipe and its settings.
        base: the model to start from.
        data: what to learn from.
        out: folder of the run.
        device: where; `auto` takes CUDA where there is one.
        progress: is told of every step.
        threads: of one process on a CPU; 0 leaves that to torch.

    Returns:
        The name of the tuned model; None in all but the first of several processes, which leave the rest to it.

    Raises:
        EncoderError: the base model cannot be loaded.
        TrainingError: the data lack what the recipe needs, or `out` holds another run, or one that has ended.
    """
    if threads:
        torch.set_num_threads(threads)
    processes = Processes.join(device)
    loaded = load_model(base)
    if processes.first:
        _claim(out, _record(config, loaded, data))
    processes.wait()
    torch.manual_seed(config.seed)  # the first proxies
    if config.checkpointing:
        loaded.model.set_grad_checkpointing()
    state = load(out / "checkpoint.pt")
    if state.model:
        loaded.model.load_state_dict(state.model)
    for number in range(state.stage, len(config.recipe.stages)):
        _run_stage(number, config, loaded, data, out, processes, state, progress)
    if not processes.first:
        return None
    _finish(config, loaded, state, out)
    return EncoderName(model=f"local-dir:{out / 'model'}")


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Take a new folder for a run, or one in which the very same run was interrupted."""
    path, text = out / "config.json", json.dumps(record, indent=2) + "\n"
    if path.exists():
        if (out / "model" / WEIGHTS).exists():
            raise TrainingError(
                f"{out} holds a run that has ended; a run never overwrites another. Its model is in {out / 'model'}: "
                "python -m indexer evaluate measures it."
            )
        if path.read_text(encoding="utf-8") != text:
            raise TrainingError(f"{out} holds another run: its config.json differs. Choose an empty folder.")
    elif out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty and holds no run. Choose an empty folder.")
    else:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _record(config: RunConfig, base: LoadedModel, data: TrainingData) -> dict[str, Any]:
    """Return what a run depends on."""
    libraries = ("kindred", "torch", "torchvision", "open_clip_torch", "numpy")
    return {
        "config": config.model_dump(mode="json"),
        "base": base.spec().model_dump(),
        "data": {**data.said, "samples": _digest(data.samples), "pairs": _digest(data.pairs)},
        "versions": {"python": sys.version.split()[0], **{library: version(library) for library in libraries}},
    }


def _digest(samples: Samples) -> dict[str, Any]:
    """Return the number of samples, and a hash of their names, labels and captions."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps([sample.name, sample.label, sample.captions]).encode())
    return {"count": len(samples), "sha256": digest.hexdigest()}


def _run_stage(
    number: int,
    config: RunConfig,
    loaded: LoadedModel,
    data: TrainingData,
    out: Path,
    processes: Processes,
    state: State,
    progress: Reporter,
) -> None:
    stage = config.recipe.stages[number]
    objective, feed = _objective(stage, config, loaded, data, processes, progress)
    if len(state.losses) == number:
        state.losses.append([])

    def keep(reached: State) -> None:
        reached.model = loaded.model.state_dict()
        if processes.first:
            save(out / "checkpoint.pt", reached)

    fit(objective, feed, Course(stage, config, processes), state, keep, progress)
    if config.wise < 1:
        loaded.model.load_state_dict(_mixed(load_model(loaded.name).model, loaded.model, config.wise, stage))
    state.stage, state.step = number + 1, 0
    state.model, state.objective, state.optimizer, state.average = loaded.model.state_dict(), {}, {}, {}
    if processes.first:
        save(out / "checkpoint.pt", state)


def _objective(
    stage: Stage,
    config: RunConfig,
    loaded: LoadedModel,
    data: TrainingData,
    processes: Processes,
    progress: Reporter,
) -> tuple[Objective, Feed]:
    """Return a stage's objective, and what it is trained on."""
    model = loaded.model.to(processes.device)

    def encoder() -> OpenClipEncoder:
        return OpenClipEncoder(loaded.spec(), model, loaded.tokenizer, str(processes.device))

    def pictures(samples: Samples) -> Pictures:
        return Pictures(samples, loaded.preprocess, config.augmentation, config.seed, keep=config.workers == 0)

    if stage in {Stage.CLASSES, Stage.CAPTIONS}:
        samples, classes = _classes(data.samples)
        captions = None
        if stage is Stage.CAPTIONS:
            encode = encoder().encode_texts
            captions = Captions(_captions(samples), config.most_captions, lambda texts: torch.from_numpy(encode(texts)))
        feed = Feed(len(samples), pictures(samples), classes if config.balanced else None)
        return ImageObjective(model, int(loaded.config["embed_dim"]), classes, config, captions), feed
    captioned = data.pairs.subset([i for i, sample in enumerate(data.pairs) if sample.captions])
    texts = _captions(captioned)
    if stage is Stage.CLIP:
        return ClipObjective(model, texts, loaded.tokenizer), Feed(len(captioned), pictures(captioned), None)
    encoded = encode_samples(captioned, encoder(), progress)
    texts = [sample.captions for sample in encoded.samples]
    images = torch.from_numpy(encoded.embeddings)
    return TextObjective(model, images, texts, loaded.tokenizer, config.text_layers), Feed(len(texts), None, None)


def _classes(samples: Samples) -> tuple[Samples, Indexes]:
    """Return the samples that have a label, and the number of each one's class."""
    labelled = samples.subset([i for i, sample in enumerate(samples) if sample.label is not None])
    names, numbers = np.unique([str(sample.label) for sample in labelled], return_inverse=True)
    if len(names) < 2:  # noqa: PLR2004 - one class cannot be told from another
        raise TrainingError(
            f"The recipe needs pictures of two classes or more; there are {len(names)} in {len(samples):,} pictures. "
            "Give labels (--labels, --label-column), or have them made (--labels auto)."
        )
    return labelled, numbers


def _captions(samples: Samples) -> list[tuple[str, ...]]:
    captions = [sample.captions for sample in samples]
    if not any(captions):
        raise TrainingError(
            "The recipe needs captions, and no picture has one. Give a table with a column caption or captions, "
            "or have captions found in a corpus: python -m indexer caption."
        )
    return captions


def _mixed(base: Any, tuned: Any, part: float, stage: Stage) -> dict[str, Any]:
    """Return weights between two models' (WiSE-FT), of the half that a stage has trained: so Re-A aligns to the mix."""
    before, after = base.state_dict(), dict(tuned.state_dict())
    for name, value in after.items():
        if value.is_floating_point() and (
            stage is Stage.CLIP or name.startswith("visual.") is not (stage is Stage.REALIGN)
        ):
            after[name] = before[name].to(value.device).lerp(value, part)
    return after


def _finish(config: RunConfig, loaded: LoadedModel, state: State, out: Path) -> None:
    """Export the model, and write the losses; the checkpoint goes last."""
    _write_losses(state.losses, config.recipe.stages, out)
    export(loaded.model, loaded.config, loaded.preprocess, out / "model", half=config.half)
    (out / "checkpoint.pt").unlink(missing_ok=True)


def _write_losses(losses: Sequence[Sequence[dict[str, float]]], stages: Sequence[Stage], out: Path) -> None:
    lines, series = [], {}
    for stage, steps in zip(stages, losses, strict=True):
        lines += [json.dumps({"stage": stage, "step": i, **each}) for i, each in enumerate(steps)]
        for name in steps[0]:
            values = np.array([each[name] for each in steps])
            parts = np.array_split(values, min(_SMOOTHED, len(values)))
            series[f"{stage}: {name}"] = [float(part.mean()) for part in parts]
    (out / "losses.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot = curves(series, "Losses", "part of the stage (each point the mean of a fiftieth)", "loss")
    (out / "losses.svg").write_text(plot, encoding="utf-8")
