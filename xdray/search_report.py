"""The report of a search: trials.parquet and .csv, a page with pictures and tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from xdray.figures import NONE, Report, count, number, percent, seconds
from xdray.pages import details, page, soft, table, tile
from xdray.pictures import inline
from xdray.redaction import redacted
from xdray.search_pictures import draw_search, latency_text

Trials = Sequence[Mapping[str, Any]]
COSTS = ("parameters", "embedding_parameters", "bytes", "latency_ms", "latency_ms_32")


def write_search_report(folder: Path, report: Report, trials: Trials) -> Path:
    """Write the tables, plots/*.svg and report.html, which needs no other file; return its path."""
    report, trials = redacted(report), redacted(trials)
    rows = trial_table(trials)
    pq.write_table(rows, folder / "trials.parquet")
    pyarrow.csv.write_csv(rows, folder / "trials.csv")
    pictures = draw_search(report, trials)
    (folder / "plots").mkdir(exist_ok=True)
    for name, svg in pictures.items():
        (folder / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")
    path = folder / "report.html"
    inlined = {name: inline(svg, name) for name, svg in pictures.items()}
    path.write_text(_page(report, trials, inlined), encoding="utf-8")
    return path


def trial_table(trials: Trials) -> pa.Table:
    """Return one row a trial: id, status, score, times, costs, and a column a field."""
    fields = dict.fromkeys(name for trial in trials for name in trial["fields"])
    rows = [
        {
            **{key: trial.get(key) for key in ("id", "number", "status", "score")},
            "done": 1.0 if trial["status"] == "finished" else trial.get("done"),
            "seconds": trial.get("seconds"),
            "training_seconds": trial.get("training_seconds"),
            **{key: trial["costs"][key] for key in COSTS},
            **{name: _cell(trials, name, trial) for name in fields},
            "error": trial.get("error"),
        }
        for trial in trials
    ]
    return pa.Table.from_pylist(rows)


def _cell(trials: Trials, name: str, trial: Mapping[str, Any]) -> Any:
    """A field's value, as text where its values are of several types."""
    kinds = {type(each["fields"].get(name)) for each in trials}
    value = trial["fields"].get(name)
    if kinds <= {int, float, type(None)}:
        return None if value is None else float(value) if float in kinds else value
    return None if value is None else str(value)


def _page(report: Report, trials: Trials, pictures: Mapping[str, str]) -> str:
    best, counts = report["best"], report["trials"]
    total = sum(counts[key] for key in ("finished", "stopped", "failed"))
    targets = report["targets"]
    smaller = f"{count(best['costs']['parameters'])} parameters"
    kept = best["score"] / report["teacher_dev"] if report["teacher_dev"] else None
    tiles = [
        (f"{total} trials", f"{counts['stopped']} stopped early", f"{counts['failed']} failed"),
        (
            f"{percent(kept)} % kept",
            f"best on dev: {number(best['score'], '{:.1f}', 100)}",
            smaller,
        ),
        (
            f"{count(targets['teacher_forward_rows'])} forwards",
            f"of the teacher, for {count(targets['rows'])} sentences",
            "shared by all trials",
        ),
        (seconds(report["seconds"]), "in all, the best student's own run included", ""),
    ]
    parts = [
        "<h1>Search</h1>",
        soft(f"{report['run_dir']}; {report['metric']} on dev, test for the best alone"),
        f"<div class=tiles>{''.join(tile(*texts) for texts in tiles)}</div>",
        "<h2>Score against size and latency</h2>"
        + pictures.get("front", soft("No trial finished.")),
        soft(
            "Filled: no other finished trial scores as much at less of this cost. Diamond: the "
            "best score. Dashed: the teacher, and the best shape trained on labels alone."
        ),
        _trial_rows(
            report, report["front"], f"The front of {', '.join(report['front_objectives'])}"
        ),
        "<h2>Fields and score</h2>" + pictures.get("coordinates", ""),
        soft("The darker, the better; dotted: stopped early."),
        "<h2>Learning curves</h2>" + pictures.get("curves", ""),
        "<h2>What matters</h2>" + pictures.get("importance", soft("Fewer than 4 trials finished.")),
        soft("One field at a time, among finished trials; with few of them chance has its part."),
        _trial_rows(report, trials, "All trials"),
        details("config", report["config"]),
    ]
    return page(f"search {escape(report['run_dir'])}", parts)


def _trial_rows(report: Report, trials: Trials, title: str) -> str:
    fields = list(report["space"])
    head = ["trial", *(name.rpartition(".")[2] for name in fields)]
    head += ["status", "score", "parameters", "ms at batch 1 / 32", "took"]
    ordered = sorted(trials, key=lambda trial: -(trial["score"] or 0.0))
    rows = [
        [
            trial["id"][:6],
            *(str(trial["fields"].get(name, NONE)) for name in fields),
            trial.get("error") or trial.get("status", "finished"),
            number(trial["score"], "{:.2f}", 100),
            count(trial["costs"]["parameters"]),
            latency_text(trial),
            seconds(trial.get("seconds")),
        ]
        for trial in ordered
    ]
    return f"<h2>{title}</h2>" + table(head, rows)


def last_line(report: Report) -> dict[str, Any]:
    """The keys of the last line of stdout."""
    keys = ("run_dir", "seconds", "trials", "best", "front", "targets", "teacher_dev", "report")
    return {key: report[key] for key in keys}
