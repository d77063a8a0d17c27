"""Stages on disk: where one stands; finished ones, NN-NAME/ with weights and row of the report."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xdray.errors import TrainingError
from xdray.learner import Learner
from xdray.stages import Stage
from xdray.storage import read_json, write_json

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


def stage_folder(index: int, stage: Stage) -> str:
    """Name of the folder of stage `index`, counted from 0."""
    return f"{index + 1:02}-{stage.name.replace(' ', '')}"


def save_stage(student: Learner, folder: Path, row: dict[str, Any]) -> None:
    """Write the weights, then the row, which says that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    partial = folder / f"{WEIGHTS}.partial"
    save_file({k: v.cpu().contiguous() for k, v in student.state_dict().items()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())  # before the row, also where the power fails
    partial.replace(folder / WEIGHTS)
    write_json(str(folder / "stage.json"), row)


def load_stage(student: Learner, folder: Path, key: str) -> dict[str, Any] | None:
    """Load a finished stage into the student and return its row; None if none has this key."""
    path = folder / "stage.json"
    if not path.is_file():
        return None
    row = read_json(str(path))
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
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: missing or damaged ({error}); delete its folder and run the same command "
            "again, the stage is trained anew"
        ) from error
