"""runs and stage_files: what lies in a run folder, damaged or of other types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from xdray import runs, storage
from xdray.annotation import Spent
from xdray.config import Config
from xdray.errors import ConfigError, XdrayError
from xdray.learner import Learner
from xdray.runs import Run, open_run
from xdray.stage_files import WEIGHTS, load_stage, save_stage
from xdray.storage import read_object

VALUES = {
    "data": {"train": "a.conll", "dev": "b.conll", "test": "c.conll", "transfer": "t.txt"},
    "teacher": {"model": "m"},
}
ROW = {"key": "k", "name": "a", "steps": 3, "seconds": 1.5, "history": []}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    config = Config.model_validate({**VALUES, "run": {"folder": str(tmp_path)}})
    with open_run(config, False) as opened:
        yield opened


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"x": 1}', "[" * 5000, '{"key": "\\ud800"}'])
def test_a_damaged_file_of_a_run_is_refused_by_name(run: Run, text: str) -> None:
    (run.folder / "report.json").write_text(text)
    with pytest.raises(XdrayError, match=r"report\.json: damaged, .*; delete it and run the same"):
        run.read_json("report.json", key=str)
    assert run.read_json("none.json", key=str) is None


def test_what_was_remembered_is_text_or_refused(run: Run) -> None:
    assert run.remembered("dtype", lambda: "float32") == "float32"
    assert run.remembered("dtype", lambda: "bfloat16") == "float32"
    (run.folder / "remembered.json").write_text('{"dtype": 5}')
    with pytest.raises(XdrayError, match=r"remembered\.json: dtype is 5, expected text"):
        run.remembered("dtype", lambda: "bfloat16")


def test_an_object_without_its_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_object(str(path), a=int) == {"a": 1}
    with pytest.raises(XdrayError, match=r"expected an object with a, b \(b is missing or of"):
        read_object(str(path), a=int, b=int)
    with pytest.raises(XdrayError, match=r"x\.json: damaged, holds .* \(a is missing or of an"):
        read_object(str(path), a=str)


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


def _config(folder: Path, **changes: Any) -> Config:
    return Config.model_validate({**VALUES, "run": {"folder": str(folder)}, **changes})


def test_a_run_that_is_deleted_stops_being_done_first_and_a_run_last(tmp_path: Path, monkeypatch):
    folder, deleted = tmp_path / "run", []
    with open_run(_config(folder), False) as run:
        run.write_json("report.json", {})
        for name in ("baseline", "student"):
            run.path(name).mkdir()
        run.path(".encoder.tmp").write_text("unfinished")
    monkeypatch.setattr(
        runs, "delete_tree", lambda place: deleted.append(place) or storage.delete_tree(place)
    )
    with open_run(_config(folder), True) as run:
        left = {entry.name for entry in folder.iterdir()}
    names = [Path(place).name for place in deleted]
    assert names[0] == "report.json"
    assert names[-1] == "config.yaml"
    assert set(names[1:-1]) == {"baseline", "student", ".encoder.tmp"}
    assert left == {"config.yaml", ".lock"}


def test_a_kill_in_the_first_write_leaves_a_folder_that_serves(tmp_path: Path):
    (tmp_path / ".config.yaml.0.tmp").write_text("run:")
    with open_run(_config(tmp_path), False) as run:
        assert run.path("config.yaml").is_file()


def test_what_was_remembered_stays_while_the_config_does(tmp_path: Path):
    with open_run(_config(tmp_path), False) as run:
        run.remembered("dtype", lambda: "bfloat16")
    with open_run(_config(tmp_path), False) as run:  # killed before it made anything
        assert run.remembered("dtype", lambda: "float32") == "bfloat16"
    with open_run(_config(tmp_path, teacher={"model": "other"}), False) as run:
        assert run.remembered("dtype", lambda: "float32") == "float32"


def test_a_run_is_worked_on_by_one_process(tmp_path: Path):
    with (
        open_run(_config(tmp_path), False),
        pytest.raises(ConfigError, match="is being worked on by another process; wait for it, or"),
        open_run(_config(tmp_path), True),
    ):
        raise AssertionError
    with open_run(_config(tmp_path), False):
        pass


@pytest.mark.parametrize("text", ['{"seconds": "x", "sentences": 1}', '{"seconds": 1}', "[]"])
def test_a_damaged_account_of_a_pass_is_refused_by_name(run: Run, text: str):
    run.path("pass.json").write_text(text)
    with pytest.raises(XdrayError, match=r"pass\.json: damaged, holds .*; delete it and run the"):
        Spent(run)


def test_what_a_pass_has_spent_is_told_while_it_goes_on(run: Run, monkeypatch):
    run.write_json("pass.json", {"seconds": 10.0, "sentences": 5})
    now = iter([100.0, 110.0, 140.0, 145.0, 150.0])
    monkeypatch.setattr("xdray.annotation.time.monotonic", lambda: next(now))
    spent = Spent(run)  # at 100
    with spent:
        spent.add(3)
        assert run.read_json("pass.json") == {"seconds": 10.0, "sentences": 5}
        spent.add(4)  # at 140, told at 145
        assert run.read_json("pass.json") == {"seconds": 55.0, "sentences": 12}
    assert spent.facts == run.read_json("pass.json") == {"seconds": 60.0, "sentences": 12}
