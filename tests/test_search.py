"""search on real Ray: one teacher pass; trials end, are stopped, fail; gone on with; killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from xdray.config import Config
from xdray.config_data import SourceConfig
from xdray.configfile import dump_config
from xdray.distillation import distill
from xdray.errors import ConfigError
from xdray.search import tune
from xdray.trial_files import all_trials

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent
MakeConfig = Callable[..., Config]

SEARCH: dict[str, Any] = {
    "space": {"student.hidden": [4, 6, 8], "recipe.layer": [1, 2]},
    "algorithm": "random",
    "trials": 3,
    "early_stopping": "none",
}


@pytest.fixture
def searching(tiny: MakeConfig) -> MakeConfig:
    """Return a maker of small searches: searching(folder, field=...)."""

    def make(folder: str, **search: Any) -> Config:
        return tiny(
            folder,
            search={**SEARCH, **search},
            recipe={"name": "staged"},
            training={"epochs": 1},
            evaluation={"latency": False, "baseline": False, "bootstrap": 0},
        )

    return make


def _ended(folder: str) -> dict[str, tuple[str, float | None]]:
    """Id of each trial to its status and when its file was written."""
    return {
        trial["id"]: (
            trial["status"],
            (Path(folder) / "trials" / trial["id"] / "trial.json").stat().st_mtime_ns,
        )
        for trial in all_trials(Path(folder))
    }


def test_trials_share_one_teacher_pass_and_more_of_them_go_on_from_those_there(
    searching: MakeConfig, ray_session: None
):
    config = searching("search")
    folder = Path(config.run.folder)
    report = tune(config)
    assert report["trials"] == {"finished": 3, "stopped": 0, "failed": 0, "excluded": 0}
    assert report["targets"]["teacher_forward_rows"] in (0, report["targets"]["rows"])
    assert report["targets"]["layers"] == [1, 2]
    assert len({trial["number"] for trial in all_trials(folder)}) == 3
    best = max(all_trials(folder), key=lambda trial: trial["score"])
    assert report["best"]["score"] == best["score"]
    assert {trial["id"] for trial in report["front"]} <= set(_ended(str(folder)))

    # the best student is the trial's own, byte for byte: its stages were taken, not trained
    stages = sorted((folder / "best" / "stages").glob("*/student.safetensors"))
    its = sorted(
        (folder / "trials" / report["best"]["id"] / "stages").glob("*/student.safetensors")
    )
    assert [a.read_bytes() for a in stages] == [b.read_bytes() for b in its]
    assert json.loads((folder / "best" / "report.json").read_text())["retention"] is not None

    table = pq.read_table(folder / "trials.parquet")
    assert table.num_rows == 3
    assert set(table["student.hidden"].to_pylist()) <= {4, 6, 8}
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert "<svg" in (folder / "report.html").read_text()

    before = _ended(str(folder))
    again = tune(searching("search", trials=5))
    after = _ended(str(folder))
    assert {name: after[name] for name in before} == before  # none was trained again
    assert again["trials"]["finished"] == 5
    assert again["targets"]["teacher_forward_rows"] == 0


@pytest.mark.slow
def test_trials_on_other_text_are_made_anew(
    searching: MakeConfig, ray_session: None, tmp_path: Path
):
    extra = tmp_path / "extra.txt"
    extra.write_text("Zyxwvq lives in Lyon\n", encoding="utf-8")
    config = searching("grown", trials=2)
    sources = [*config.data.transfer.sources, SourceConfig(path=str(extra), language="en")]
    transfer = config.data.transfer.model_copy(update={"sources": sources})
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"transfer": transfer})}
    )
    tune(config)
    before = _ended(config.run.folder)
    extra.write_text("Zyxwvq lives in Lyon\nQvwxyz does not\n", encoding="utf-8")
    report = tune(config)
    after = _ended(config.run.folder)
    assert report["trials"]["finished"] == 2
    assert after.keys() == before.keys()  # the same seed draws the same fields
    best = json.loads((Path(config.run.folder) / "best" / "report.json").read_text())
    assert best["targets"]["rows"] == report["targets"]["rows"]  # not that of the older text
    assert all(after[name] != before[name] for name in before)


def test_a_sampler_that_repeats_itself_does_not_end_the_search(
    searching: MakeConfig, ray_session: None
):
    space = {"student.hidden": [4, 6, 8]}
    report = tune(searching("small", algorithm="tpe", space=space, trials=3))
    assert report["trials"]["finished"] == 3


def test_nothing_is_left_of_a_search(searching: MakeConfig, ray_session: None):
    from ray.util import placement_group_table

    tune(searching("left", trials=2))

    def left() -> list[Any]:
        return [g for g in placement_group_table().values() if g["state"] != "REMOVED"]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []


def test_students_beyond_a_limit_are_never_trained(searching: MakeConfig, ray_session: None):
    first = tune(searching("limits", algorithm="grid", space={"student.hidden": [4, 8]}))
    sizes = sorted(t["costs"]["parameters"] for t in all_trials(Path(first["run_dir"])))
    config = searching("limited", algorithm="grid", max_parameters=sizes[0])
    report = tune(config)
    trained = all_trials(Path(config.run.folder))
    assert {trial["fields"]["student.hidden"] for trial in trained} == {4}
    assert report["trials"]["excluded"] == 4
    with pytest.raises(ConfigError, match=r"no student of the space may be trained; .*parameters"):
        tune(searching("none", max_parameters=10))
    assert not (Path(config.run.folder).parent / "none" / "trials").exists()


def test_a_trial_that_fails_is_reported_and_the_search_goes_on(
    searching: MakeConfig, ray_session: None
):
    space = {"training.learning_rate": [1e-3, 1e30]}
    report = tune(searching("failing", algorithm="grid", space=space))
    assert report["trials"]["failed"] == 1
    assert report["trials"]["finished"] == 1
    failed = [t for t in all_trials(Path(report["run_dir"])) if t["status"] == "failed"]
    assert "TrainingError" in failed[0]["error"]
    assert report["best"]["fields"] == {"training.learning_rate": 1e-3}


def test_trials_that_are_behind_are_stopped_and_stay_out_of_the_front(
    tiny: MakeConfig, ray_session: None
):
    search = {
        "space": {"training.learning_rate": [3e-2, 1e-7, 2e-7, 3e-7]},
        "algorithm": "grid",
        "grace": 0.2,
        "concurrent": 1,
    }
    config = tiny(
        "asha",
        search=search,
        recipe={"name": "labels"},
        training={"epochs": 10, "patience": 10},
        evaluation={"latency": False, "baseline": False, "bootstrap": 0},
    )
    report = tune(config)
    trials = {t["fields"]["training.learning_rate"]: t for t in all_trials(Path(report["run_dir"]))}
    assert trials[3e-2]["status"] == "finished"
    assert report["trials"]["stopped"] >= 2
    for trial in trials.values():
        if trial["status"] == "stopped":
            assert 0.2 <= trial["done"] < 1
            assert len(trial["reports"]) == round(10 * trial["done"])
            assert not list((Path(report["run_dir"]) / "trials" / trial["id"]).glob("stages/0*"))
    assert [trial["id"] for trial in report["front"]] == [trials[3e-2]["id"]]


KILLED = """
import sys
from xdray.cli import main
raise SystemExit(main(["tune", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_search_killed_at_half_continues_and_repeats_no_finished_trial(
    searching: MakeConfig, tmp_path: Path
):
    config = searching("killed", trials=6, algorithm="tpe")
    path, script = tmp_path / "killed.yaml", tmp_path / "job.py"
    path.write_text(dump_config(config))
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(path)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = config.run.folder
    while process.poll() is None:
        finished = [name for name, (s, _) in _ended(folder).items() if s == "finished"]
        if len(finished) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {name: its for name, its in _ended(folder).items() if its[0] == "finished"}
    assert 2 <= len(before) < 6
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["trials"]["finished"] == 6
    assert line["targets"]["teacher_forward_rows"] == 0
    after = _ended(folder)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_limits_and_space_of_this_call_say_which_trials_count(
    searching: MakeConfig, ray_session: None
):
    space = {"student.hidden": list(range(4, 64, 4))}
    first = tune(searching("limits", space=space, algorithm="tpe", trials=2))
    sizes = sorted(trial["costs"]["parameters"] for trial in first["front"])
    smallest = min(t["costs"]["parameters"] for t in all_trials(first["run_dir"]))
    limit = {"max_parameters": smallest + 300}  # few shapes may be trained
    second = tune(searching("limits", space=space, algorithm="tpe", trials=3, **limit))
    assert second["best"]["costs"]["parameters"] <= limit["max_parameters"], sizes
    assert second["trials"]["finished"] == 3  # refused proposals do not use a search up
    other = tune(searching("limits", space={"student.hidden": [5, 7]}, algorithm="grid"))
    assert other["trials"]["finished"] == 2
    assert other["best"]["fields"]["student.hidden"] in (5, 7)
    with pytest.raises(ConfigError, match=r"none of .* students that were proposed"):
        tune(
            searching(
                "limits",
                space={
                    "student.hidden": {"low": 4, "high": 9, "step": 1},
                    "student.embedding": list(range(4, 20)),
                },
                max_parameters=1,
            )
        )
    with pytest.raises(ConfigError, match="is the folder of a search"):
        distill(searching("limits"))


def test_a_line_cut_off_by_a_kill_does_not_end_a_search(searching: MakeConfig, ray_session: None):
    config = searching("cut", trials=2)
    tune(config)
    reports = next(Path(config.run.folder).glob("trials/*/reports.jsonl"))
    reports.write_text(reports.read_text() + '{"stage": "log')
    assert tune(config)["trials"]["finished"] == 2


@pytest.mark.slow
def test_a_trial_may_have_several_workers(searching: MakeConfig, ray_session: None):
    config = searching("workers", trials=2)
    training = config.training.model_copy(update={"workers": 2})
    report = tune(config.model_copy(update={"training": training}))
    assert report["trials"]["finished"] == 2, [
        t.get("error") for t in all_trials(config.run.folder)
    ]
    alone = tune(searching("alone", trials=2))
    scores = [[trial["score"] for trial in all_trials(its["run_dir"])] for its in (report, alone)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)  # the same steps, but for dropout
    lines = [trial["reports"] for trial in all_trials(config.run.folder)]
    assert all(reports for reports in lines)
