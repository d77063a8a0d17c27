"""Finished stages on disk: NN-NAME/ with the student's weights and the row of the report."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from xdray.learner import Learner
from xdray.stages import Stage
from xdray.storage import write_bytes_atomic

WEIGHTS = "student.safetensors"


def stage_folder(index: int, stage: Stage) -> str:
    """Name of the folder of stage `index`, counted from 0."""
    return f"{index + 1:02}-{stage.name.replace(' ', '')}"


def save_stage(student: Learner, folder: Path, row: dict[str, Any]) -> None:
    """Write the weights, then the row, which says that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    partial = folder / f"{WEIGHTS}.partial"
    save_file({k: v.cpu().contiguous() for k, v in student.state_dict().items()}, partial)
    partial.replace(folder / WEIGHTS)
    write_bytes_atomic(str(folder / "stage.json"), json.dumps(row, indent=1).encode())


def load_stage(student: Learner, folder: Path, key: str) -> dict[str, Any] | None:
    """Load a finished stage into the student and return its row; None if none has this key."""
    path = folder / "stage.json"
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    if row["key"] != key:
        return None
    student.load_state_dict(load_file(folder / WEIGHTS))
    return row


def load_last(student: Learner, folder: Path, count: int) -> None:
    """Load the last of the `count` finished stages under a folder."""
    last = sorted(folder.glob("[0-9]*/stage.json"))[count - 1]
    student.load_state_dict(load_file(last.parent / WEIGHTS))
