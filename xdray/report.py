"""The report of a run: a page of its own with pictures, a table for the terminal, a model card.

Each is drawn from the report's dict alone, and says "–" where a part is missing.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape as escape_markup
from rich.table import Table
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]
Rows = Sequence[Sequence[str]]

SYSTEMS = {
    "teacher": "Teacher",
    "student": "Student",
    "baseline": "No teacher",
    "hard_labels": "Hard labels",
}
METRICS = {
    "entity_f1": "Entity F1",
    "entity_f1_strict": "Entity F1, strict IOB2",
    "mean_language_f1": "Entity F1, mean over languages",
    "macro_f1": "Entity F1, mean over types",
    "precision": "Precision",
    "recall": "Recall",
}
LANGUAGES_SHOWN = 12  # on a terminal
INK, PAPER, LINE = "#1b1f24", "#ffffff", "#d8dde3"
COLOURS = {
    "teacher": "#6b7280",
    "student": "#2563eb",
    "baseline": "#d97706",
    "hard_labels": "#0f9b8e",
}
MARKERS = {"teacher": "o", "student": "D", "baseline": "s", "hard_labels": "^"}
# on the page each colour of a picture is a variable, so that pictures follow light and dark
VARIABLES = {INK: "ink", PAPER: "paper", LINE: "line"} | {c: name for name, c in COLOURS.items()}
STYLE = """
:root{--ink:#1b1f24;--soft:#5b6470;--paper:#fff;--panel:#f5f6f8;--line:#d8dde3;--teacher:#6b7280;
--student:#2563eb;--baseline:#d97706;--hard_labels:#0f9b8e;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e7eaee;--soft:#9aa4b1;--paper:#14171b;--panel:#1d2126;
--line:#353b44;--teacher:#9ca3af;--student:#6ea0ff;--baseline:#f2a444;--hard_labels:#35c4b5}}
*{box-sizing:border-box}body{margin:0 auto;padding:2.5rem 1.5rem 4rem;max-width:64rem;
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;color:var(--ink);
background:var(--paper)}h1{font-size:1.7rem;line-height:1.25;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.6rem 0 .7rem}p{margin:.3rem 0}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem;margin:1.4rem 0}
.tile{background:var(--panel);border-radius:10px;padding:.9rem 1.1rem}
.tile b{display:block;font-size:1.65rem;line-height:1.3;color:var(--student)}
.tile span{display:block;font-size:.85rem;color:var(--soft)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.32rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{font-weight:600;font-size:.85rem;color:var(--soft)}th:first-child,td:first-child{text-align:left}
table.text td{text-align:left;overflow-wrap:anywhere}table.text td:first-child{width:16rem}
tbody tr:hover{background:var(--panel)}svg{max-width:100%;height:auto;display:block}
svg text{font-family:inherit!important}summary{cursor:pointer;margin:.6rem 0}
pre{background:var(--panel);border-radius:10px;padding:1rem;overflow-x:auto;font-size:.85rem}
"""


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html, which needs no other file, and its pictures under plots/; return its path."""
    pictures = {
        "languages": _draw_languages(report),
        "curves": _draw_curves(report),
        "sizes": _draw_sizes(report),
        "latency": _draw_latency(report),
    }
    svgs = {name: _svg(name, figure) for name, figure in pictures.items() if figure is not None}
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, svg in svgs.items():
        (folder / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")
    path = folder / "report.html"
    path.write_text(_page(report, {name: _inline(svg) for name, svg in svgs.items()}), "utf-8")
    return path


def summary_table(report: Report) -> Group:
    """For the terminal: teacher, student and no-teacher side by side, and F1 by language."""
    machine = escape_markup(_machine(report))
    tables = [Table(title="Test scores, size, latency", caption=machine, title_justify="left")]
    head, rows = _comparison(report)
    _fill(tables[0], head, rows)
    languages = _languages(report)
    if len(languages) > 1:
        head, rows = _language_table(report, sorted(languages, key=lambda n: _kept(report, n) or 0))
        some = f", {LANGUAGES_SHOWN} lowest of {len(rows)}" if len(rows) > LANGUAGES_SHOWN else ""
        title = f"F1 by language, by share of the teacher's kept{some}"
        tables.append(Table(title=title, title_justify="left"))
        _fill(tables[1], head, [*rows[:LANGUAGES_SHOWN], *_mean_and_lowest(report, len(head))])
    return Group(*tables)


def model_card(report: Report) -> str:
    """README.md of the student's folder, as the Hugging Face Hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    name = _at(report, "teacher.name")
    languages = [n for n in _at(report, "task.languages") or [] if re.fullmatch("[a-z]{2,3}", n)]
    metrics = [m for m in METRICS if _at(report, f"student.test.{m}") is not None]
    data = ModelCardData(
        language=languages or None,
        library_name="transformers",
        pipeline_tag="token-classification",
        tags=["token-classification", "named-entity-recognition", "distillation", "xdray"],
        base_model=name if _is_hub_id(name) else None,
        model_name="student",
        eval_results=[
            EvalResult(
                task_type="token-classification",
                dataset_type="custom",
                dataset_name="test split of the run",
                metric_type="f1" if "f1" in metric else metric,
                metric_name=METRICS[metric],
                metric_value=round(_at(report, f"student.test.{metric}"), 4),
            )
            for metric in metrics
        ]
        or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_card_text(report)}"


def _at(report: Any, path: str) -> Any:
    """Look up `a.b.c`; None where a part is missing or null."""
    for key in path.split("."):
        report = report.get(key) if isinstance(report, Mapping) else None
    return report


def _number(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "–" if value is None else pattern.format(value * scale)


def _percent(value: float | None) -> str:
    return _number(value, "{:.1f}", 100)


def _count(value: float | None) -> str:
    """12.3 M, 456.7 k, 89."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if value is not None and value >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.1f} {unit}"
    return _number(value, "{:,.0f}")


def _bytes(value: float | None) -> str:
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    found = [(unit, size) for unit, size in units.items() if value is not None and value >= size]
    return _number(value, f"{{:.1f}} {found[0][0]}", 1 / found[0][1]) if found else _number(value, "{} B")


def _seconds(value: float | None) -> str:
    if value is None or value < 120:
        return _number(value, "{:.1f} s")
    minutes, hours = value / 60, value / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def _interval(values: Sequence[float] | None, pattern: str = "{:.1f}") -> str:
    if values is None:
        return ""
    low, high = (pattern.format(100 * value) for value in values)
    return f"95 % interval {low} to {high}"


def _times(value: float | None, word: str) -> str:
    return _number(value, f"{{:.1f}}x {word}")


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _metric(report: Report) -> str:
    return _at(report, "evaluation.metric") or "entity_f1"


def _present(report: Report) -> list[str]:
    return [system for system in SYSTEMS if _at(report, f"{system}.test") is not None]


def _comparison(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the main table: a column for each system, the last one says what it means."""
    systems = _present(report)
    head = ["Test", *(SYSTEMS[s] for s in systems), "Student against teacher"]
    metrics = sorted(METRICS, key=lambda metric: metric != _metric(report))
    if len(_languages(report)) < 2:
        metrics.remove("mean_language_f1")
    rows = []
    for metric in metrics:
        values = {s: _at(report, f"{s}.test.{metric}") for s in systems}
        kept = _ratio(values.get("student"), values.get("teacher"))
        told = [_percent(kept) + " % kept" if kept is not None else "–"]
        if metric == _metric(report):
            told += [_interval(_at(report, "retention_interval"))]
        rows.append([METRICS[metric], *map(_percent, values.values()), ", ".join(filter(None, told))])
    if _at(report, "gain") is not None:
        told = f"{100 * report['gain']:+.1f} points"
        told = ", ".join(filter(None, (told, _interval(_at(report, "gain_interval"), "{:+.1f}"))))
        rows.append(["Student's gain over no teacher", *["–"] * len(systems), told])
    return head, rows + _costs(report, systems)


def _costs(report: Report, systems: Sequence[str]) -> list[list[str]]:
    """Rows of sizes and latency; the controls are the student's model, trained otherwise."""
    same = {s: "teacher" if s == "teacher" else "student" for s in systems}
    sizes = {s: _at(report, f"{s}.parameters") for s in ("teacher", "student")}
    bodies = {s: _body(report, s) for s in sizes}
    weights = {s: _at(report, f"{s}.bytes") for s in sizes}
    rows = []
    for title, values, shown in (
        ("Parameters", sizes, _count),
        ("Parameters without token embeddings", bodies, _count),
        ("Weights on disk", weights, _bytes),
    ):
        told = _times(_ratio(values["teacher"], values["student"]), "smaller")
        rows.append([title, *(shown(values[same[s]]) for s in systems), told])
    for batch in ("batch_1", "batch_32"):
        cells = [_latency(report, same[s], batch) for s in systems]
        told = _times(_at(report, f"speedup.{batch}"), "faster")
        rows.append([f"Latency, {batch.replace('_', ' ')}: median (p95)", *cells, told])
    return rows


def _body(report: Report, system: str) -> float | None:
    whole, table = (_at(report, f"{system}.{n}") for n in ("parameters", "embedding_parameters"))
    return None if whole is None or table is None else whole - table


def _latency(report: Report, system: str, batch: str) -> str:
    times = _at(report, f"latency_ms.{system}.{batch}")
    return f"{times['median']:.1f} ms ({times['p95']:.1f})" if times else "–"


def _machine(report: Report) -> str:
    facts = _at(report, "machine") or {}
    threads = f"{facts.get('cpus')} CPUs, {facts.get('threads')} threads"
    parts = [facts.get("gpu"), facts.get("processor"), threads] if facts else ["machine not recorded"]
    versions = [f"{n} {facts[n]}" for n in ("torch", "transformers", "xdray") if facts.get(n)]
    return ", ".join([*(str(part) for part in parts if part), *versions])


def _languages(report: Report) -> list[str]:
    return sorted(_at(report, "student.test.by_language") or {})


def _by_language(report: Report, system: str, language: str) -> float | None:
    key = "entity_f1_strict" if _metric(report) == "entity_f1_strict" else "entity_f1"
    scores = _at(report, f"{system}.test.by_language") or {}
    return (scores.get(language) or {}).get(key)


def _kept(report: Report, language: str) -> float | None:
    student, teacher = (_by_language(report, s, language) for s in ("student", "teacher"))
    return _ratio(student, teacher)


def _language_table(report: Report, languages: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    systems = _present(report)
    counts = _at(report, "student.test.by_language") or {}
    transfer = _at(report, "corpus.transfer.by_language") or {}
    head = ["Language", *(SYSTEMS[s] for s in systems), "Kept, %"]
    rows = [
        [
            name,
            *(_percent(_by_language(report, s, name)) for s in systems),
            _percent(_kept(report, name)),
            *(_count(counts[name].get(key)) for key in ("entities", "sentences")),
            _count(_at(transfer.get(name), "taken")),
        ]
        for name in languages
    ]
    return [*head, "Test entities", "Test sentences", "Transfer sentences"], rows


def _mean_and_lowest(report: Report, width: int) -> list[list[str]]:
    rows = []
    for title, reduce in (("mean", lambda v: sum(v) / len(v)), ("lowest", min)):
        cells = []
        for values in (
            *([_by_language(report, s, n) for n in _languages(report)] for s in _present(report)),
            [_kept(report, n) for n in _languages(report)],
        ):
            known = [value for value in values if value is not None]
            cells.append(_percent(reduce(known) if known else None))
        rows.append([title, *cells, *[""] * (width - len(cells) - 1)])
    return rows


def _fill(table: Table, head: Sequence[str], rows: Rows) -> None:
    """Fill a table of rich's; its last column of words stays left."""
    for position, name in enumerate(head):
        left = position == 0 or name == "Student against teacher"
        style = "bold" if name == SYSTEMS["student"] else None
        table.add_column(name, justify="left" if left else "right", style=style)
    for row in rows:
        table.add_row(*(escape_markup(cell) for cell in row))


def _page(report: Report, pictures: Mapping[str, str]) -> str:
    """The whole of report.html; pictures: name to inline SVG."""
    name = f"{_at(report, 'teacher.name') or 'teacher'} → {_student(report)}"
    facts = (_at(report, "created"), f"xdray {_at(report, 'version')}", _at(report, "run_dir"))
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{escape(", ".join(str(fact) for fact in facts if fact))}</p>',
        _tiles(report),
        "<p class=soft>Teacher: the big model. Student: the small one, distilled from it. No teacher: the "
        "same student trained on the labels alone, its own best dev state. All are scored by the same "
        "code on the same test sentences, read once, after every choice was made on dev.</p>",
        "<h2>Summary</h2>",
        _table(*_comparison(report)),
        f'<p class="soft">Latency: {_at(report, "config.evaluation.latency_length") or "–"} tokens a sentence, '
        f"float32, the models in turns; {escape(_machine(report))}.</p>",
        "<h2>Scores by language</h2>" + pictures.get("languages", ""),
        _table(*_language_table(report, _languages(report))),
        "<h2>Learning curves</h2>" + pictures.get("curves", ""),
        _table(*_steps(report)),
        "<h2>Size and latency</h2><div class=pair>",
        f'<div>{pictures.get("sizes", "")}</div><div>{pictures.get("latency", "")}</div></div>',
        "<h2>Text</h2>" + _table(*_corpus(report)),
        "<h2>Teacher's targets</h2>" + _facts(report, "targets", "evaluation", "agreement"),
        "<h2>Machine</h2>" + _facts(report, "machine"),
        _details("Config", _at(report, "config")) + _details("Plan", _at(report, "plan")),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _student(report: Report) -> str:
    shape = _at(report, "student.shape") or {}
    kind = _at(report, "student.kind") or "student"
    return ", ".join([kind, *(f"{name} {value}" for name, value in shape.items())])


def _tiles(report: Report) -> str:
    metric = METRICS.get(_metric(report), _metric(report)).replace("Entity", "entity")
    kept, gain = _at(report, "retention"), _at(report, "gain")
    sizes = [_count(_at(report, f"{s}.parameters")) for s in ("student", "teacher")]
    body = _ratio(_body(report, "teacher"), _body(report, "student"))
    tiles = [
        (
            f"{_percent(kept)} % kept" if kept is not None else "–",
            f"of the teacher's {metric} on test",
            _interval(_at(report, "retention_interval")),
        ),
        (
            f"{100 * gain:+.1f} points" if gain is not None else "–",
            "over the same student without a teacher" if gain is not None else "no such student was trained",
            _interval(_at(report, "gain_interval"), "{:+.1f}"),
        ),
        (
            _times(_at(report, "compression"), "smaller"),
            f"{sizes[0]} of {sizes[1]} parameters",
            _times(body, "without token embeddings"),
        ),
        (
            _times(_at(report, "speedup.batch_1"), "faster"),
            "at batch 1" if _at(report, "speedup") else "latency was not measured",
            _times(_at(report, "speedup.batch_32"), "at batch 32") if _at(report, "speedup") else "",
        ),
    ]
    cells = (
        f"<div class=tile><b>{escape(big)}</b><span>{escape(small)}</span><span>{escape(more)}</span></div>"
        for big, small, more in tiles
    )
    return f"<div class=tiles>{''.join(cells)}</div>"


def _table(head: Sequence[str], rows: Rows, kind: str = "") -> str:
    if not rows:
        return '<p class="soft">Nothing recorded.</p>'
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class=wide><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _steps(report: Report) -> tuple[list[str], list[list[str]]]:
    """Rows as in P1 table 4: what each sub-step freed, and dev after it."""
    head = ["Sub-step", "Trains", "Epochs", "Steps", "Time", "Best score", "Dev F1"]
    rows = [
        [
            str(row.get("name")),
            ", ".join(row.get("trainable") or []),
            _count(row.get("epochs")),
            _number(row.get("steps"), "{:,}"),
            _seconds(row.get("seconds")),
            _best(row),
            _percent(_at(row, f"dev.{_metric(report)}")),
        ]
        for row in _at(report, "stages") or []
    ]
    for system in ("teacher", "baseline"):
        dev = _at(report, f"{system}.dev.{_metric(report)}")
        if dev is not None and rows:
            rows.append([SYSTEMS[system], *["–"] * 5, _percent(dev)])
    return head, rows


def _is_by_dev(row: Mapping[str, Any]) -> bool:
    """Whether a sub-step's score is a dev metric; else it is its held-out loss with a minus."""
    return str(row.get("score_name")).startswith("dev")


def _best(row: Mapping[str, Any]) -> str:
    score = row.get("score")
    if score is None or _is_by_dev(row):
        return _percent(score)
    return f"held-out loss {abs(score):.4f}"


def _corpus(report: Report) -> tuple[list[str], list[list[str]]]:
    corpus = _at(report, "corpus") or {}
    rows = []
    for split, counts in corpus.items():
        whole = {k: v for k, v in (counts or {}).items() if not isinstance(v, Mapping)}
        told = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in whole.items())
        rows.append([split, told])
    return ["Split", "Sentences, counted"], rows


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _facts(report: Report, *parts: str) -> str:
    facts = {k: v for part in parts for k, v in (_at(report, part) or {}).items()}
    rows = [
        [name.replace("_", " "), _bytes(value) if name == "bytes" else _plain(value)]
        for name, value in facts.items()
    ]
    return _table(["Fact", "Value"], rows, "text")


def _details(title: str, value: Any) -> str:
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(value, stream)
    return f"<details><summary>{title}</summary><pre>{escape(stream.getvalue())}</pre></details>"
