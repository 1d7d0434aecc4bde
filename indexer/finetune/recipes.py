"""What a fine-tuning run does and with what settings: the recipes as stages, the settings as one frozen object.

The numbers are those of the authors' released code for SigLIP-SO400M (Schall et al., SISAP 2024). Where it is silent
they are open_clip's training defaults, and the comment says so. A small model wants higher learning rates.
"""

import tomllib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexer.errors import TrainingError

MARGIN, SCALE = 0.1, 30.0


class Stage(StrEnum):
    """One training loop: what trains, and by which loss.

    * clip: both towers, InfoNCE
    * classes: the image tower and its projector, ArcMargin; the text tower is neither used nor changed
    * captions: the same, ArcMargin and MCArcMargin against captions encoded by the locked text tower
    * realign: the text tower, InfoNCE with the locked image tower's embeddings, encoded once
    """

    CLIP = "clip"
    CLASSES = "classes"
    CAPTIONS = "captions"
    REALIGN = "realign"


class Recipe(StrEnum):
    """A way to tune a CLIP model, by the name that the paper gives it."""

    CLIP = "clip"
    GPR_FT = "gpr-ft"
    RE_A = "re-a"
    TWO_SFT = "2sft"
    MCIP = "mcip"
    MCIP_RE_A = "mcip-re-a"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What it does, in turn."""
        return _STAGES[self]


_STAGES = {
    Recipe.CLIP: (Stage.CLIP,),
    Recipe.GPR_FT: (Stage.CLASSES,),
    Recipe.RE_A: (Stage.REALIGN,),
    Recipe.TWO_SFT: (Stage.CLASSES, Stage.REALIGN),
    Recipe.MCIP: (Stage.CAPTIONS,),
    Recipe.MCIP_RE_A: (Stage.CAPTIONS, Stage.REALIGN),
}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Schedule(_Settings):
    """How one stage is optimised: AdamW, a learning rate that rises for `warmup` and then falls as a cosine."""

    epochs: int = Field(ge=1)
    """How often every picture is seen."""

    batch: int = Field(ge=2)
    """Pictures a step, over all processes."""

    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch is computed in. InfoNCE and MCArcMargin contrast within a part."""

    learning_rate: float = Field(gt=0)
    """Highest learning rate."""

    floor: float = Field(default=0.0, ge=0, le=1)
    """Part of it that is left at the end."""

    warmup: float = Field(default=0.0, ge=0, le=1)
    """Part of the steps in which it rises."""

    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay of its two averages."""

    eps: float = 1e-6
    """AdamW's smallest divisor."""

    weight_decay: float = Field(default=0.2, ge=0)
    """AdamW's weight decay; biases, gains and the temperature have none, as in open_clip."""


class Augmentation(_Settings):
    """How a training picture differs each time it is seen."""

    margin: float = Field(default=1.125, ge=1)
    """A picture is resized to this many times the model's input, the way the model resizes, then cropped at random."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """How often it is mirrored. Not for captions that tell left from right."""

    jitter: float = Field(default=0.4, ge=0, lt=1)
    """How much brightness, contrast and saturation vary. Not much where the exact shade tells pictures apart."""


class RunConfig(_Settings):
    """All that the weights depend on, but for the data and the base model."""

    recipe: Recipe
    seed: int = Field(default=0, ge=0)

    image: Schedule = Schedule(
        epochs=3, batch=128, learning_rate=1e-6, floor=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    """For GPR-FT and MCIP."""

    text: Schedule = Schedule(epochs=5, batch=1024, learning_rate=1e-5)
    """For Re-A. The released code took 50 epochs of batches of 32,768, on two large GPUs."""

    both: Schedule = Schedule(epochs=32, batch=256, learning_rate=5e-4, warmup=0.05)
    """For plain CLIP: open_clip's defaults, its warm-up as a part of the run."""

    proxies: float = Field(default=100.0, gt=0)
    """Learning rate of the class proxies, in learning rates of the image tower."""

    margin: float = Field(default=MARGIN, ge=0)
    """Of ArcMargin and MCArcMargin, in radians."""

    scale: float = Field(default=SCALE, gt=0)
    """Of both, too."""

    caption_part: float = Field(default=0.25, ge=0, le=1)
    """Part of MCArcMargin in MCIP's loss; the rest is ArcMargin."""

    flatness: float = Field(default=0.0, ge=0)
    """Weight of MCArcMargin's extra term. The released code has 0.1; `indexer/README.md` has the ablation."""

    most_captions: int = Field(default=40, ge=1)
    """Captions of one picture that MCArcMargin uses, at most: the first."""

    text_layers: int = Field(default=16, ge=1)
    """Layer groups of the text tower that Re-A trains, counted from its end as open_clip counts them."""

    balanced: bool = False
    """Whether every class is seen equally often in an epoch, rather than every picture."""

    augmentation: Augmentation = Augmentation()

    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""

    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is then what a stage ends with; 0 takes the last weights."""

    wise: float = Field(default=1.0, ge=0, le=1)
    """WiSE-FT (Wortsman et al., CVPR 2022): part of tuned weights in what a stage ends with; the rest the base's."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on CUDA and fp32 on a CPU, where bf16 is slower."""

    checkpointing: bool = False
    """Compute activations twice rather than keep them: slower, for large models."""

    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between two checkpoints."""

    workers: int = Field(default=0, ge=0)
    """Processes that decode, for each training process; 0 decodes in it and keeps what fits into 2 GiB."""

    half: bool = False
    """Whether weights are exported in half precision."""

    def schedule(self, stage: Stage) -> Schedule:
        """Return how a stage is optimised."""
        match stage:
            case Stage.CLIP:
                return self.both
            case Stage.REALIGN:
                return self.text
            case _:
                return self.image

    @classmethod
    def parse(cls, recipe: Recipe, assignments: Sequence[str], file: Path | None = None, **fields: Any) -> Self:
        """Return the settings of a recipe.

        Args:
            recipe: which.
            assignments: changes such as `image.learning_rate=1e-4`.
            file: other changes, a TOML file; where both change a setting, `assignments` count.
            fields: settings by name.

        Raises:
            TrainingError: the file cannot be read, or a setting has no such name or value; its text says which.
        """
        values = cls(recipe=recipe, **fields).model_dump()
        for name, value in (*_read(file), *map(_assigned, assignments)):
            group, _, field = name.partition(".")
            if field and isinstance(values.get(group), dict):
                values[group][field] = value
            else:
                values[name] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TrainingError(f"The setting {where} is not usable: {first['msg']}.") from error


def _read(file: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a TOML file, those of its tables with the table's name before a point."""
    if file is None:
        return
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"The settings {file} cannot be read: {error}.") from error
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{field}", each) for field, each in value.items())
        else:
            yield name, value


def _assigned(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise TrainingError(f"A setting is given as name=value, not as {text!r}.")
    return name, value
