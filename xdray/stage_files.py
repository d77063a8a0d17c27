"""Stages on disk: where one stands; finished ones, NN-NAME/ with weights and row of the report."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from xdray.errors import TrainingError
from xdray.learner import Learner
from xdray.stages import Stage
from xdray.storage import NUMBER, read_object, write_bytes_atomic, write_json

WEIGHTS = "student.safetensors"


@dataclass(kw_only=True)
class Progress:
    """Where a sub-step stands; all of it is in a checkpoint."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    total_steps: int = 0
    bad_epochs: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    forwarded: int = 0
    """Rows that the teacher was run for meanwhile, where targets are streamed."""
    history: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    """Of the stage's curves (watching.StageWatch)."""


def stage_folder(index: int, stage: Stage) -> str:
    """Name of the folder of stage `index`, counted from 0."""
    return f"{index + 1:02}-{stage.name.replace(' ', '')}"


def save_stage(student: Learner, folder: Path, row: dict[str, Any]) -> None:
    """Write the weights, then the row, which says that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    weights = {k: v.cpu().contiguous() for k, v in student.state_dict().items()}
    write_bytes_atomic(str(folder / WEIGHTS), save(weights))  # on the disk before the row
    write_json(str(folder / "stage.json"), row)


def load_stage(student: Learner, folder: Path, key: str) -> dict[str, Any] | None:
    """Load a finished stage into the student and return its row; None if none has this key.

    Raises XdrayError for a damaged one.
    """
    path = folder / "stage.json"
    if not path.is_file():
        return None
    row = read_object(str(path), key=str, name=str, steps=int, seconds=NUMBER, history=list)
    if row["key"] != key:
        return None
    _load(student, folder / WEIGHTS)
    return row


def load_last(student: Learner, folder: Path, count: int) -> None:
    """Load the last of the `count` finished stages under a folder."""
    last = sorted(folder.glob("[0-9]*/stage.json"))[count - 1]
    _load(student, last.parent / WEIGHTS)


def _load(student: Learner, path: Path) -> None:
    try:
        student.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"{path}: missing, damaged or of another student ({reason:.300}); delete its folder "
            "and run the same command again, the stage is trained anew"
        ) from error
