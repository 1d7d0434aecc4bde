"""What an interrupted run goes on from: one file, replaced whole."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import TrainingError
from indexer.torch_runtime import torch


@dataclass
class State:
    """How far a run has come: `step` steps of its stage number `stage`, and all that these steps have made.

    `average` is the moving average of the model, where there is one; `losses` are those of every step of every stage.
    """

    stage: int = 0
    step: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    losses: list[list[dict[str, float]]] = field(default_factory=list)


def save(path: Path, state: State) -> None:
    """Write a state so that the file holds this one or the one before."""
    half = path.with_name(path.name + ".part")
    with half.open("wb") as file:
        torch.save({name: getattr(state, name) for name in asdict(State())}, file)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def load(path: Path) -> State:
    """Read a state, or a new one where there is no file.

    Raises:
        TrainingError: the file is damaged.
    """
    if not path.exists():
        return State()
    try:
        return State(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # Whatever torch raises over a damaged file: there is nothing to go on from.
        raise TrainingError(
            f"The checkpoint {path} is damaged; start the run anew in another folder: {error}"
        ) from error
