"""The figures of a report in words: the rows that its page, its table and its model card share.

All is read from the report's dict; a part that is missing or null reads as a dash.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
Head = list[str]
Rows = list[list[str]]

SYSTEMS = {
    "teacher": "Teacher",
    "student": "Student",
    "baseline": "No teacher",
    "hard_labels": "Hard labels",
}
VERDICT = "Student: what it comes to"
KEPT = "Kept, %"
NONE = "–"


def at(report: Any, path: str) -> Any:
    """Look up `a.b.c`; None where a part is missing or null."""
    for key in path.split("."):
        report = report.get(key) if isinstance(report, Mapping) else None
    return report


def number(value: float | None, pattern: str, scale: float = 1.0) -> str:
    """Write a number times `scale`."""
    return NONE if value is None else pattern.format(value * scale)


def percent(fraction: float | None) -> str:
    """Write 0.7662 as 76.6."""
    return number(fraction, "{:.1f}", 100)


def count(value: float | None) -> str:
    """Write 22,600,000 as 22.6 M, 5,100,000 as 5.10 M and 45,000 as 45.0 k; smaller in full."""
    if value is None or value < 1e4:
        return number(value, "{:,.0f}")
    if value < 1e6:
        return f"{value / 1e3:.1f} k"
    return f"{value / 1e6:.1f} M" if value >= 1e7 else f"{value / 1e6:.2f} M"


def num_bytes(value: float | None) -> str:
    """Write bytes in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value is not None and value >= size:
            return f"{value / size:.1f} {unit}"
    return number(value, "{:.0f} B")


def seconds(value: float | None) -> str:
    """Write a duration: 41.2 s, 12 min, 2.5 h."""
    if value is None or value < 120:
        return number(value, "{:.1f} s")
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def ms(value: float) -> str:
    """Write milliseconds to three digits or so: 1.11, 33.3, 222."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def times(value: float | None, word: str) -> str:
    """Write a ratio: 8.0x smaller."""
    return number(value, f"{{:.1f}}x {word}")


def interval(bounds: Sequence[float] | None, pattern: str = "{:.1f}") -> str:
    """Write a 95 % interval of fractions in percent; nothing where there is none."""
    if bounds is None:
        return ""
    low, high = (pattern.format(100 * bound) for bound in bounds)
    return f"[{low}, {high}]"


def plain(value: Any) -> str:
    """Write any value of the report."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items()) or NONE
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return NONE if value is None else f"{value:,}" if is_count else str(value)


def metrics_of(report: Report) -> Mapping[str, str]:
    """Return the titles of the task's metrics by name, of those that were scored."""
    return at(report, "task.metrics") or {}


def metric_of(report: Report) -> str:
    """Return the metric that decides on dev and is the base of retention."""
    return at(report, "evaluation.metric") or "entity_f1"


def systems_of(report: Report) -> list[str]:
    """Return the systems that were scored on test: teacher, student, controls."""
    part = "test" if metrics_of(report) else "parameters"
    return [system for system in SYSTEMS if at(report, f"{system}.{part}") is not None]


def languages_of(report: Report) -> list[str]:
    """Return the languages of test, those with most of the teacher's score kept first."""
    names = sorted(at(report, "student.test.by_language") or {})
    return sorted(names, key=lambda name: -(kept(report, name) or 0))


def language_score(report: Report, system: str, language: str) -> float | None:
    """The metric of a system in one language; None where no entity was to be found."""
    scores = (at(report, f"{system}.test.by_language") or {}).get(language) or {}
    if scores.get("entities") == 0:
        return None
    return scores.get(metric_of(report), scores.get("entity_f1"))


def kept(report: Report, language: str) -> float | None:
    """Student over teacher in one language."""
    return _ratio(*(language_score(report, s, language) for s in ("student", "teacher")))


def body(report: Report, system: str) -> float | None:
    """Parameters without the token embeddings."""
    whole, table = (at(report, f"{system}.{n}") for n in ("parameters", "embedding_parameters"))
    return None if whole is None or table is None else whole - table


def body_ratio(report: Report) -> float | None:
    """Teacher over student in parameters without the token embeddings."""
    return _ratio(body(report, "teacher"), body(report, "student"))


def student_name(report: Report) -> str:
    """Kind and shape of the student: bilstm, embedding 50, hidden 200, layers 1."""
    shape = at(report, "student.shape") or {}
    kind = at(report, "student.kind") or "student"
    return ", ".join([kind, *(f"{name} {value}" for name, value in shape.items())])


def machine_name(report: Report) -> str:
    """Where latency was measured, and with which versions."""
    facts = at(report, "machine") or {}
    if not facts:
        return "machine not recorded"
    cores = f"{facts.get('cpus')} CPUs, {facts.get('threads')} threads"
    versions = [f"{n} {facts[n]}" for n in ("torch", "transformers", "xdray") if facts.get(n)]
    named = [str(facts[name]) for name in ("gpu", "processor") if facts.get(name)]
    return ", ".join([*named, cores, *versions])


def comparison(report: Report) -> tuple[Head, Rows]:
    """Scores on test, sizes and latency: a column a system, the last says what they mean."""
    systems = systems_of(report)
    several = len(languages_of(report)) > 1
    metrics = sorted(metrics_of(report), key=lambda metric: metric != metric_of(report))
    rows = [
        _score_row(report, systems, metric)
        for metric in metrics
        if several or metric != "mean_language_f1"
    ]
    gain = at(report, "gain")
    if gain is not None:
        bounds = interval(at(report, "gain_interval"), "{:+.1f}")
        told = f"{100 * gain:+.1f} points {bounds}".strip()
        rows.append(["Gain over no teacher", *[""] * len(systems), told])
    return ["Test", *(SYSTEMS[s] for s in systems), VERDICT], rows + _cost_rows(report, systems)


def _score_row(report: Report, systems: Sequence[str], metric: str) -> list[str]:
    values = {s: at(report, f"{s}.test.{metric}") for s in systems}
    share = _ratio(values.get("student"), values.get("teacher"))
    told = NONE if share is None else f"{percent(share)} % kept"
    bounds = interval(at(report, "retention_interval")) if metric == metric_of(report) else ""
    spread = "std_language_f1" if metric == "mean_language_f1" else ""
    cells = [
        percent(value) + (f" ± {percent(at(report, f'{s}.test.{spread}'))}" if spread else "")
        for s, value in values.items()
    ]
    return [metrics_of(report)[metric], *cells, f"{told} {bounds}".strip()]


def _cost_rows(report: Report, systems: Sequence[str]) -> Rows:
    """Sizes and latency; a control is the student's model, trained otherwise."""
    same = ["teacher" if s == "teacher" else "student" for s in systems]
    rows = []
    for title, value_of, shown in (
        ("Parameters", lambda s: at(report, f"{s}.parameters"), count),
        ("Without token embeddings", lambda s: body(report, s), count),
        ("Weights on disk", lambda s: at(report, f"{s}.bytes"), num_bytes),
    ):
        told = times(_ratio(value_of("teacher"), value_of("student")), "smaller")
        rows.append([title, *(shown(value_of(s)) for s in same), told])
    for batch in ("batch_1", "batch_32"):
        measured = (at(report, f"latency_ms.{s}.{batch}") for s in same)
        cells = [f"{ms(m['median'])} ms ({ms(m['p95'])})" if m else NONE for m in measured]
        told = times(at(report, f"speedup.{batch}"), "faster")
        rows.append([f"Latency at {batch.replace('_', ' ')}, median (p95)", *cells, told])
    return rows


def language_table(report: Report, languages: Sequence[str]) -> tuple[Head, Rows]:
    """F1 by language, what of the teacher's is kept, and on how much text."""
    systems = systems_of(report)
    counts = at(report, "student.test.by_language") or {}
    transfer = at(report, "corpus.transfer.by_language") or {}
    head = ["Language", *(SYSTEMS[s] for s in systems), KEPT]
    head += ["Test entities", "Test sentences", "Transfer sentences"]
    rows = [
        [
            name,
            *(percent(language_score(report, s, name)) for s in systems),
            percent(kept(report, name)),
            *(count(counts[name].get(key)) for key in ("entities", "sentences")),
            count(at(transfer.get(name), "taken")),
        ]
        for name in languages
    ]
    return head, rows


def mean_and_lowest(report: Report) -> Rows:
    """The last rows of a cut table by language: over all languages, of each column's own."""
    names = languages_of(report)
    columns = [[language_score(report, s, n) for n in names] for s in systems_of(report)]
    columns.append([kept(report, n) for n in names])
    known = [[value for value in column if value is not None] for column in columns]
    mean = [percent(sum(values) / len(values) if values else None) for values in known]
    lowest = [percent(min(values, default=None)) for values in known]
    return [["mean of all", *mean, "", "", ""], ["lowest of all", *lowest, "", "", ""]]


def is_by_dev(row: Mapping[str, Any]) -> bool:
    """Whether a sub-step's score is a dev metric; else it is its held-out loss with a minus."""
    return str(row.get("score_name")).startswith("dev")


def step_table(report: Report) -> tuple[Head, Rows]:
    """What each sub-step trained and dev after it, as P1 table 4; teacher and no teacher below."""
    path = f"dev.{metric_of(report)}"
    rows = []
    for row in at(report, "stages") or []:
        score = row.get("score")
        held_out = number(score, "held-out loss {:.4f}", -1.0)
        rows.append(
            [
                str(row.get("name")),
                ", ".join(row.get("trainable") or []),
                count(row.get("epochs")),
                plain(row.get("steps")),
                seconds(row.get("seconds")),
                f"dev {percent(score)}" if is_by_dev(row) else held_out,
                percent(at(row, path)),
            ]
        )
    for system in ("teacher", "baseline"):
        if rows and at(report, f"{system}.{path}") is not None:
            dev = percent(at(report, f"{system}.{path}"))
            rows.append([SYSTEMS[system], "", "", "", "", "", dev])
    return ["Sub-step", "Trains", "Epochs", "Steps", "Time", "Best score", "Dev F1"], rows


def text_table(report: Report) -> tuple[Head, Rows]:
    """The sentences of each split as they were counted."""
    rows = []
    for split, counts in (at(report, "corpus") or {}).items():
        told = {k: v for k, v in (counts or {}).items() if not isinstance(v, Mapping)}
        rows.append(
            [split, ", ".join(f"{k.replace('_', ' ')} {plain(v)}" for k, v in told.items())]
        )
    return ["Split", "Counted"], rows


def fact_table(report: Report, *parts: str) -> tuple[Head, Rows]:
    """Parts of the report as they are, a fact a row."""
    rows = [
        [
            (f"{part}: " if len(parts) > 1 else "") + name.replace("_", " "),
            num_bytes(value) if name == "bytes" else plain(value),
        ]
        for part in parts
        for name, value in (at(report, part) or {}).items()
    ]
    return ["Fact", "Value"], rows


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def cost_table(report: Report) -> tuple[Head, Rows]:
    """CPU-hours and GPU-hours of each part, in all and per million sentences."""
    head = ["Part", "Seconds", "CPU-hours", "GPU-hours", "CPU-h a million", "GPU-h a million"]
    rows = []
    for name, its in (at(report, "costs.parts") or {}).items():
        hours = [at(its, key) for key in ("seconds", "cpu_hours", "gpu_hours")]
        hours += [at(its, f"per_million.{key}") for key in ("cpu_hours", "gpu_hours")]
        rows.append([name, *(number(value, "{:.3g}") for value in hours)])
    return head, rows


def serving_sentence(report: Report) -> str:
    """What a million sentences cost to serve, and when the run is repaid."""
    its = at(report, "costs.serving")
    if its is None:
        return ""
    unit = "GPU-hours" if its["unit"] == "gpu_hours" else "CPU-hours"
    text = (
        f"A million sentences at batch 32 take the teacher {its['teacher']:.3g} {unit}, the "
        f"student {its['student']:.3g}: {its['saved']:.3g} saved."
    )
    repaid = its["repaid_after_sentences"]
    return text if repaid is None else f"{text} The run is repaid after {count(repaid)} sentences."
