"""runs and stage_files: what lies in a run folder, damaged or of other types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from xdray.config import Config
from xdray.errors import XdrayError
from xdray.learner import Learner
from xdray.runs import Run, open_run
from xdray.stage_files import WEIGHTS, load_stage, save_stage
from xdray.storage import read_object

VALUES = {
    "data": {"train": "a.conll", "dev": "b.conll", "test": "c.conll", "transfer": "t.txt"},
    "teacher": {"model": "m"},
}
ROW = {"key": "k", "name": "a"}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    config = Config.model_validate({**VALUES, "run": {"folder": str(tmp_path)}})
    with open_run(config, False) as opened:
        yield opened


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"x": 1}', "[" * 5000, '{"key": "\\ud800"}'])
def test_a_damaged_file_of_a_run_is_refused_by_name(run: Run, text: str) -> None:
    (run.folder / "report.json").write_text(text)
    with pytest.raises(XdrayError, match=r"report\.json: damaged, .*; delete it and run the same"):
        run.read_json("report.json", "key")
    assert run.read_json("none.json", "key") is None


def test_what_was_remembered_is_text_or_refused(run: Run) -> None:
    assert run.remembered("dtype", lambda: "float32") == "float32"
    assert run.remembered("dtype", lambda: "bfloat16") == "float32"
    (run.folder / "remembered.json").write_text('{"dtype": 5}')
    with pytest.raises(XdrayError, match=r"remembered\.json: dtype is 5, expected text"):
        run.remembered("dtype", lambda: "bfloat16")


def test_an_object_without_its_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_object(str(path), "a") == {"a": 1}
    with pytest.raises(
        XdrayError, match=r"x\.json: damaged, holds .*, expected an object with a, b"
    ):
        read_object(str(path), "a", "b")


def test_a_damaged_stage_is_refused_by_name_and_its_weights_are_loaded_whole(
    tmp_path: Path,
) -> None:
    student, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_stage(cast("Learner", student), tmp_path, ROW)
    assert load_stage(cast("Learner", other), tmp_path, "k") == ROW
    assert torch.equal(other.weight, student.weight)
    assert load_stage(cast("Learner", other), tmp_path, "another key") is None
    weights = (tmp_path / WEIGHTS).read_bytes()
    for wrong in (b"", weights[:20], weights[:-1], b"\xff" * 100):
        (tmp_path / WEIGHTS).write_bytes(wrong)
        with pytest.raises(XdrayError, match=rf"{WEIGHTS}: missing, damaged .*; delete "):
            load_stage(cast("Learner", other), tmp_path, "k")
    (tmp_path / WEIGHTS).write_bytes(weights)
    with pytest.raises(XdrayError, match="of another student"):
        load_stage(cast("Learner", torch.nn.Linear(4, 2)), tmp_path, "k")
    for text in ("{", "[]", "{}"):
        (tmp_path / "stage.json").write_text(text)
        with pytest.raises(XdrayError, match=r"stage\.json: damaged"):
            load_stage(cast("Learner", other), tmp_path, "k")
