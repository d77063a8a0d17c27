"""Costs: hours of each part from seconds, processes and threads, and when a run is repaid."""

from typing import Any

import pytest

from xdray.costs import cost_report
from xdray.figures import cost_table, serving_sentence

PLAN = {
    "replicas": 2,
    "threads_per_replica": 3,
    "gpus_per_replica": 0,
    "workers": 0,  # in this process
    "threads_per_worker": 4,
    "gpus_per_worker": 0,
}


def _report(**changes: Any) -> dict[str, Any]:
    latency = {
        "teacher": {"batch_32": {"median": 320.0}},
        "student": {"batch_32": {"median": 32.0}},
    }
    return {
        "stages": [
            {"seconds": 1200.0, "teacher_forward_rows": 0},
            {"seconds": 600.0, "teacher_forward_rows": 0},
        ],
        "targets": {"delivery": "stored", "seconds": 600.0, "rows": 10_000}
        | {"teacher_forward_rows": 0, "spent": {"seconds": 600.0, "sentences": 5_000}},
        "plan": PLAN,
        "machine": {"gpu": None, "threads": 2},
        "latency_ms": latency,
        **changes,
    }


def test_hours_are_of_every_thread_that_was_held():
    costs = cost_report(_report(), finetuning=360.0, controls=[90.0, 90.0])
    parts: Any = costs["parts"]
    assert list(parts) == ["teacher fine-tuning", "teacher pass", "student", "controls"]
    assert parts["teacher fine-tuning"]["cpu_hours"] == pytest.approx(0.4)
    assert parts["teacher pass"]["cpu_hours"] == pytest.approx(1.0)  # 600 s x 2 x 3
    assert parts["teacher pass"]["per_million"]["cpu_hours"] == pytest.approx(200)  # of 5,000
    assert parts["student"]["cpu_hours"] == pytest.approx(2.0)
    assert parts["student"]["per_million"]["cpu_hours"] == pytest.approx(200)  # of 10,000
    assert parts["controls"]["cpu_hours"] == pytest.approx(0.2)
    assert all(its["gpu_hours"] == 0 for its in parts.values())


def test_serving_says_what_a_million_sentences_save():
    costs = cost_report(_report(), 360.0, [180.0])
    serving: Any = costs["serving"]
    assert serving["teacher"] == pytest.approx(10_000 * 2 / 3600)  # 10 ms a sentence, two threads
    assert serving["student"] == pytest.approx(1_000 * 2 / 3600)
    assert serving["saved"] == pytest.approx(5)
    assert serving["repaid_after_sentences"] == pytest.approx(3.6 / 5 * 1e6, rel=1e-6)
    assert "5.56 CPU-hours" in serving_sentence({"costs": costs})
    head, rows = cost_table({"costs": costs})
    assert {len(row) for row in rows} == {len(head)}


def test_what_was_served_from_the_store_or_not_timed_costs_nothing():
    report = _report(latency_ms=None)
    report["targets"]["spent"] = {}
    costs: Any = cost_report(report, 0.0, [])
    assert costs["serving"] is None
    assert serving_sentence({"costs": costs}) == ""
    assert list(costs["parts"]) == ["student"]


def test_a_slower_student_is_never_repaid():
    latency = {name: {"batch_32": {"median": 32.0}} for name in ("teacher", "student")}
    costs: Any = cost_report(_report(latency_ms=latency), 0.0, [])
    assert costs["serving"]["repaid_after_sentences"] is None
    assert "repaid" not in serving_sentence({"costs": costs})


def test_a_streaming_teacher_costs_as_long_as_its_stages_take():
    report = _report(machine={"gpu": "H", "threads": 2})
    report["targets"]["delivery"] = "streamed"
    report["stages"][0]["teacher_forward_rows"] = 7
    report["plan"] = {**PLAN, "gpus_per_replica": 1, "workers": 4, "gpus_per_worker": 1}
    costs: Any = cost_report(report, 0.0, [])
    assert costs["parts"]["teacher pass"]["gpu_hours"] == pytest.approx(1200 * 2 / 3600)
    assert costs["parts"]["student"]["gpu_hours"] == pytest.approx(2.0)
    assert costs["serving"]["unit"] == "gpu_hours"
