"""What a run has cost in CPU-hours and GPU-hours, and what serving its student saves.

An hour of a part is an hour of each CPU thread that it computed on, or of each GPU that it held.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from xdray.figures import at

HOUR = 3600.0
MILLION = 1e6
Report = Mapping[str, Any]


def cost_report(
    report: Report, finetuning: float, controls: Sequence[float]
) -> dict[str, dict[str, Any] | None]:
    """Return {"parts": hours by part, "serving": hours per million sentences, or None}.

    finetuning: seconds of the teacher's fine-tuning, 0 where there was none. controls: seconds of
    each student without a teacher.
    """
    stages, targets = at(report, "stages") or [], at(report, "targets") or {}
    taught = sum(row["seconds"] for row in stages)
    streamed = sum(row["seconds"] for row in stages if row["teacher_forward_rows"])
    told = targets.get("delivery") == "streamed"
    rows = targets.get("rows") or 0
    stored = at(targets, "spent.seconds") or 0.0, at(targets, "spent.sentences") or 0
    if told:
        stored = streamed, targets.get("teacher_forward_rows") or 0
    seconds = {
        "teacher fine-tuning": (finetuning, "worker", 0),
        "teacher pass": (stored[0], "replica", stored[1]),
        "student": (taught, "worker", rows),
        "controls": (sum(controls), "worker", 0),
    }
    plan = at(report, "plan") or {}
    parts = {
        name: _hours(plan, who, its, sentences)
        for name, (its, who, sentences) in seconds.items()
        if its
    }
    return {"parts": parts, "serving": _serving(report, parts)}


def _hours(plan: Mapping[str, Any], who: str, seconds: float, sentences: int) -> dict[str, Any]:
    """Hours of one part, and per million of the sentences that it read."""
    processes = max(1, plan.get(f"{who}s", 1))
    cpu = seconds * processes * plan.get(f"threads_per_{who}", 1) / HOUR
    gpu = seconds * processes * plan.get(f"gpus_per_{who}", 0) / HOUR
    found: dict[str, Any] = {"seconds": round(seconds, 2), "cpu_hours": cpu, "gpu_hours": gpu}
    if sentences:
        found["per_million"] = {
            "cpu_hours": cpu * MILLION / sentences,
            "gpu_hours": gpu * MILLION / sentences,
        }
    return found


def _serving(report: Report, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Hours per million sentences served at batch 32, and after how many the run is repaid."""
    on_gpu = bool(at(report, "machine.gpu"))
    threads = 1 if on_gpu else at(report, "machine.threads") or 1
    hours = {}
    for system in ("teacher", "student"):
        median = at(report, f"latency_ms.{system}.batch_32.median")
        if median is None:
            return None
        hours[system] = median / 1000 / 32 * MILLION * threads / HOUR
    unit = "gpu_hours" if on_gpu else "cpu_hours"
    saved = hours["teacher"] - hours["student"]
    spent = sum(its[unit] for its in parts.values())
    return {
        "unit": unit,
        **hours,
        "saved": saved,
        "repaid_after_sentences": int(spent / saved * MILLION) if saved > 0 else None,
    }
