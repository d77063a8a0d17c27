"""search_plan: size, costs and time of a search before it starts; tables and page after it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from xdray import trials
from xdray.config import Config
from xdray.errors import ClusterError, ConfigError, TrainingError
from xdray.search_pictures import importance
from xdray.search_plan import make_search_plan, print_search_plan
from xdray.search_report import trial_table, write_search_report
from xdray.sessions import LocalSession
from xdray.trial_files import has_ended
from xdray.trial_pool import refusal
from xdray.trials import run_trial

MakeConfig = Callable[..., Config]
SPACE = {"student.hidden": [4, 8, 16], "training.learning_rate": [1e-3, 1e-2]}


def test_the_plan_names_each_shape_its_costs_and_what_the_limits_refuse(
    tiny: MakeConfig, capsys: pytest.CaptureFixture[str]
):
    search: dict[str, Any] = {"space": SPACE, "trials": 4}
    free = make_search_plan(tiny("plan", search=search))
    sizes = [shape["parameters"] for shape in free["shapes"]]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert all(shape["latency_ms"] > 0 for shape in free["shapes"])
    assert (free["combinations"], free["trials"]) == (6, 4)
    assert free["seconds_a_trial~"] >= 0
    search["max_parameters"] = sizes[1]
    config = tiny("plan", search=search)
    plan = make_search_plan(config)
    assert [shape["refused"] is None for shape in plan["shapes"]] == [True, True, False]
    print_search_plan(plan)
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 trials of 6 combinations" in printed
    assert "upper bounds" in printed
    assert not Path(config.run.folder).exists()


def test_a_space_that_the_teacher_does_not_fit_is_refused_by_the_plan(tiny: MakeConfig):
    with pytest.raises(ConfigError, match=r"1 of 2 combinations .* has layers 0"):
        make_search_plan(tiny("plan", search={"space": {"recipe.layer": [1, 9]}}))


def test_limits_are_compared_with_the_costs_that_were_measured(tiny: MakeConfig):
    search = tiny("x", search={"space": SPACE, "max_latency_ms": 2.0, "max_bytes": 100}).search
    assert search is not None
    costs = {"parameters": 9, "bytes": 100, "latency_ms": 2.0}
    assert refusal(search, costs) is None
    assert refusal(search, {**costs, "latency_ms": None}) is None
    assert "latency_ms 2.5" in (refusal(search, {**costs, "latency_ms": 2.5}) or "")
    assert "bytes 101, search.max_bytes is 100" in (refusal(search, {**costs, "bytes": 101}) or "")


def _trial(number: int, hidden: Any, score: float | None, status: str) -> dict[str, Any]:
    reports = [{"done": 0.5, "score": 0.3}, {"done": 1.0, "score": score}] if score else []
    return {
        "id": f"{number:012}",
        "number": number,
        "fields": {
            "student.hidden": hidden,
            "recipe.name": "joint" if number in (1, 2) else "staged",
        },
        "status": status,
        "score": score,
        "seconds": 3.0,
        "costs": {
            "parameters": 100 * (number + 1),
            "embedding_parameters": 10,
            "bytes": 400,
            "latency_ms": None if number == 3 else 1.0,
            "latency_ms_32": None if number == 3 else 2.0,
        },
        "reports": reports,
        **({"error": "TrainingError: nan"} if status == "failed" else {}),
    }


TRIALS = [
    _trial(0, 4, 0.40, "finished"),
    _trial(1, 8, 0.60, "finished"),
    _trial(2, 4, 0.42, "finished"),
    _trial(3, 8, 0.58, "finished"),
    _trial(4, 16, 0.20, "stopped"),
    _trial(5, 16, None, "failed"),
]
REPORT: dict[str, Any] = {
    "run_dir": "runs/x",
    "metric": "entity_f1",
    "space": {"student.hidden": "", "recipe.name": ""},
    "teacher_dev": 0.7,
    "baseline_dev": None,
    "trials": {"finished": 4, "stopped": 1, "failed": 1, "excluded": 0},
    "best": TRIALS[1],
    "front": [TRIALS[0], TRIALS[1]],
    "front_objectives": ["score", "parameters"],
    "targets": {"rows": 10, "teacher_forward_rows": 10, "layers": [1]},
    "seconds": 12.0,
    "config": {"run": {"folder": "runs/x"}},
}


def test_importance_is_the_share_of_variance_that_a_field_explains():
    shares = importance(REPORT, TRIALS[:4])
    within = 2 * 0.01**2 + 2 * 0.01**2
    total = sum((s - 0.5) ** 2 for s in (0.40, 0.60, 0.42, 0.58))
    assert shares["student.hidden"] == pytest.approx(1 - within / total)
    assert shares["recipe.name"] < 0.1


def test_the_report_has_every_trial_and_the_pictures(tmp_path: Path):
    page = write_search_report(tmp_path, REPORT, TRIALS).read_text(encoding="utf-8")
    table = pq.read_table(tmp_path / "trials.parquet")
    assert table.num_rows == 6
    assert table["student.hidden"].to_pylist() == [4, 8, 4, 8, 16, 16]
    assert table["done"].to_pylist()[:4] == [1.0] * 4
    with (tmp_path / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[5]["error"] == "TrainingError: nan"
    assert rows[1]["recipe.name"] == "joint"
    pictures = {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert pictures == {"front", "coordinates", "curves", "importance"}
    assert page.count("<svg") == 4
    assert "latency at batch" not in page  # not measured for all
    for trial in TRIALS:
        assert trial["id"][:6] in page
    assert "85.7 % kept" in page


def test_values_of_several_types_make_a_column_of_text():
    mixed = [_trial(0, 4, 0.4, "finished"), _trial(1, "wide", 0.5, "finished")]
    assert trial_table(mixed)["student.hidden"].to_pylist() == ["4", "wide"]


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (TrainingError("the loss is nan"), True),
        (ClusterError("the disk is full; make room and run the same command again"), False),
        (OSError("storage is away"), False),
    ],
)
def test_a_trial_that_its_machines_failed_is_run_again_by_a_later_call(
    tmp_path: Path, error: Exception, ended: bool
):
    course: Any = SimpleNamespace(
        folder=lambda fields: tmp_path,
        task=SimpleNamespace(metric="entity_f1"),
        fetch=lambda fields: None,
        send=lambda fields: None,
        lesson=lambda fields: None,
    )

    def fails(lesson: Any, report: Any) -> Any:
        raise error

    failed = run_trial(course, {}, lambda line: None, fails)
    assert failed["status"] == "failed"
    assert has_ended(failed) == ended
    rows = [{"dev": {"entity_f1": 0.5}, "seconds": 1.0, "steps": 1}]
    assert has_ended(run_trial(course, {}, lambda line: None, lambda lesson, report: rows))


def test_a_line_cut_off_is_cut_out_before_the_next_is_written(tmp_path: Path, monkeypatch):
    lesson: Any = SimpleNamespace(
        config=SimpleNamespace(run=SimpleNamespace(folder=str(tmp_path))),
        task=SimpleNamespace(metric="f1"),
        send=lambda: None,
    )
    told = {"stage": "logits", "epoch": 1, "done": 0.5, "dev": {"f1": 0.5}}
    monkeypatch.setattr(trials, "learn", lambda lesson, session, on_epoch: on_epoch(told) or [])
    path = tmp_path / "reports.jsonl"
    path.write_text('{"done": 0.25}\n{"stage": "log')
    trials.learn_in_trial(lesson, LocalSession(None, "cpu"))
    assert [json.loads(line)["done"] for line in path.read_text().splitlines()] == [0.25, 0.5]
