"""The report of a run: a page of its own with pictures, a table for the terminal, a model card."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape as escape_markup
from rich.table import Table

from xdray.figures import (
    KEPT,
    NONE,
    SYSTEMS,
    VERDICT,
    Report,
    Rows,
    at,
    body_ratio,
    comparison,
    cost_table,
    count,
    fact_table,
    interval,
    language_table,
    languages_of,
    machine_name,
    mean_and_lowest,
    metric_of,
    metrics_of,
    number,
    percent,
    plain,
    seconds,
    serving_sentence,
    step_table,
    student_name,
    text_table,
    times,
)
from xdray.pages import details, fold, page, soft, table, tile
from xdray.pictures import draw_all, inline
from xdray.redaction import redacted

LANGUAGES_SHOWN = 12  # on a terminal


LAST_LINE = [
    "run_dir",
    "seconds",
    "teacher",
    "student",
    "baseline",
    "retention",
    "retention_interval",
    "gain",
    "compression",
    "latency_ms",
    "targets",
    "stages",
    "report",
]


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the last line of stdout, scores by language and type left to report.json."""
    line = {key: report.get(key) for key in LAST_LINE}
    for system in ("teacher", "student", "baseline"):
        entry = report.get(system)
        line[system] = None if entry is None else _without_details(entry)
    line["stages"] = [
        {
            "name": row["name"],
            "steps": row["steps"],
            "seconds": row["seconds"],
            "dev": row["dev"] and row["dev"][report["evaluation"]["metric"]],
        }
        for row in report["stages"]
    ]
    return line


def is_whole(report: Mapping[str, Any]) -> bool:
    """Whether a file says what the report of a finished run does."""
    try:
        return report["status"] == "done" and bool(summary(report)["stages"])
    except (LookupError, TypeError, AttributeError):
        return False


def _without_details(system: dict[str, Any]) -> dict[str, Any]:
    """A system's entry with the figures of whole splits only."""
    scores = {
        split: {k: v for k, v in system[split].items() if not k.startswith("by_")}
        for split in ("dev", "test")
        if split in system
    }
    return {**system, **scores}


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html, which needs no other file, and plots/*.svg; return the page's path."""
    report = redacted(report)
    pictures = draw_all(report)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, svg in pictures.items():
        (folder / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")
    path = folder / "report.html"
    inlined = {name: inline(svg, name) for name, svg in pictures.items()}
    path.write_text(_page(report, inlined), encoding="utf-8")
    return path


def summary_table(report: Report) -> Group:
    """For the terminal: teacher, student and no teacher side by side, then F1 by language."""
    caption = escape_markup(f"[95 % interval]; latency: {machine_name(report)}")
    tables = [Table(title="Scores on test, size, latency", title_justify="left", caption=caption)]
    _fill(tables[0], *comparison(report))
    languages = languages_of(report)[::-1]
    if len(languages) > 1:
        head, rows = language_table(report, languages[:LANGUAGES_SHOWN])
        some = f", the {len(rows)} of {len(languages)} that keep least"
        title = f"F1 by language{some if len(languages) > len(rows) else ''}"
        tables.append(Table(title=title, title_justify="left"))
        width = head.index(KEPT) + 1  # how much text: on the page
        _fill(tables[1], head[:width], [row[:width] for row in [*rows, *mean_and_lowest(report)]])
    return Group(*tables)


def model_card(report: Report) -> str:
    """README.md of the student's folder, with the metadata that the Hugging Face Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    report = redacted(report)
    name = at(report, "teacher.name")
    languages = at(report, "task.languages") or []
    metrics = metrics_of(report)
    metrics = {m: title for m, title in metrics.items() if languages[1:] or "language" not in m}
    pipeline = str(at(report, "task.pipeline") or "token-classification")
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type="unknown",
            dataset_name="test split of the run",
            metric_type="f1" if "f1" in metric else metric,
            metric_name=title,
            metric_value=round(at(report, f"student.test.{metric}"), 4),
        )
        for metric, title in metrics.items()
        if at(report, f"student.test.{metric}") is not None
    ]
    data = ModelCardData(
        language=[code for code in languages if re.fullmatch("[a-z]{2,3}", code)] or None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=[pipeline, "distillation", "xdray"],
        base_model=name if _is_hub_id(name) else None,
        model_name="student",
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_card_text(report)}"


def loading_example(report: Report, folder: str | None = None) -> str:
    """Python that loads the student, for the terminal."""
    remote = ", trust_remote_code=True" if at(report, "student.kind") == "bilstm" else ""
    place = folder or f"{at(report, 'run_dir')}/student"
    return str(at(report, "task.usage") or "").format(folder=place, remote=remote)


def _is_hub_id(name: Any) -> bool:
    """Whether a teacher's name is one that the Hub could know: not a path, not a description."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        return False
    return not Path(name).exists()


def _card_text(report: Report) -> str:
    note = "\nIts code lies in the folder: read `modeling_bilstm.py` before you trust it.\n"
    labels = ", ".join(f"`{label}`" for label in at(report, "task.labels") or [])
    languages = ", ".join(at(report, "task.languages") or []) or "not recorded"
    teacher = at(report, "teacher.name") or "its teacher"
    text = text_table(report)[1]
    parts = [
        f"# {student_name(report)}, distilled from {teacher}",
        f"{at(report, 'task.noun')} for {labels}, made by xdray {at(report, 'version')} on "
        f"{at(report, 'created')}. Languages: {languages}.",
        "## Use",
        f"```python\n{loading_example(report, '.')}\n```"
        + (note if at(report, "student.kind") == "bilstm" else ""),
        "## Figures",
        _markdown(*comparison(report)),
        f"{at(report, 'task.about')} In brackets the 95 % interval, a paired bootstrap over test "
        "sentences. No teacher: the same student trained on the labels alone. Latency: "
        f"{at(report, 'config.evaluation.latency_length') or NONE} tokens a sentence, float32; "
        f"{machine_name(report)}. {serving_sentence(report)}".rstrip(),
        "## By language",
        _markdown(*language_table(report, languages_of(report))),
        "## Trained on",
        "\n".join(f"- {split}: {told}" for split, told in text),
        f"The transfer text carries no labels: {teacher} read it. Choices were made on "
        "dev; test was read once.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _limits(report: Report) -> list[str]:
    found = []
    lowest = languages_of(report)[-1:]
    if lowest and len(languages_of(report)) > 1:
        row = language_table(report, lowest)[1][0]
        found.append(f"It keeps least in `{row[0]}`: see the table before using a language.")
    segmentation = at(report, "student.segmentation.test")
    if segmentation:
        found.append(
            f"Its vocabulary has {plain(at(report, 'student.vocabulary'))} tokens. Of "
            f"{plain(segmentation.get('words'))} test words, "
            f"{plain(segmentation.get('resegmented'))} are cut into other tokens than the "
            f"teacher's and {plain(segmentation.get('unknown'))} are unknown to it."
        )
    length = at(report, "config.tokens.max_length")
    if length:
        cut = plain(at(report, "evaluation.cut_words.test"))
        found.append(
            f"It was trained on at most {length} tokens a sentence; words past that ({cut} in "
            "test) were not read."
        )
    found.append(
        "It imitates its teacher, mistakes included; text and languages other than those "
        "above were not measured."
    )
    return found


def _markdown(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines
    )


def _fill(table: Table, head: Sequence[str], rows: Rows) -> None:
    for position, name in enumerate(head):
        left = position == 0 or name == VERDICT
        style = "bold" if name == SYSTEMS["student"] else None
        table.add_column(name, justify="left" if left else "right", style=style)
    for row in rows:
        table.add_row(*map(escape_markup, row))


def _page(report: Report, pictures: Mapping[str, str]) -> str:
    """The whole of report.html; pictures: name to inline SVG."""
    name = f"{at(report, 'teacher.name') or 'teacher'} → {student_name(report)}"
    facts = [at(report, "created"), at(report, "run_dir"), f"xdray {at(report, 'version')}"]
    facts.append(f"took {seconds(at(report, 'seconds'))}")
    length = at(report, "config.evaluation.latency_length") or NONE
    languages = table(*language_table(report, languages_of(report)))
    parts = [
        f"<h1>{escape(name)}</h1>",
        soft(", ".join(str(fact) for fact in facts if fact)),
        f"<div class=tiles>{''.join(tile(*texts) for texts in _tiles(report))}</div>",
        soft(
            "Teacher: the big model. Student: the small one, distilled from it. No teacher: the "
            "same student trained on the labels alone, its own best dev state. One code scores all "
            "on the same test sentences, read once, after every choice was made on dev. In "
            "brackets: 95 % intervals, paired bootstrap over the test sentences."
        ),
        "<h2>Summary</h2>" + table(*comparison(report)),
        soft(f"Latency: {length} tokens a sentence, float32, in turns; {machine_name(report)}."),
        "<h2>Scores by language</h2>" + pictures.get("languages", ""),
        fold("Table", languages) if len(languages_of(report)) > LANGUAGES_SHOWN else languages,
        "<h2>Learning curves</h2>" + pictures.get("curves", ""),
        table(*step_table(report), kind="steps"),
        "<h2>Size and latency</h2><div class=pair>"
        f"<div>{pictures.get('sizes', '')}</div><div>{pictures.get('latency', '')}</div></div>",
        "<h2>Cost</h2>" + table(*cost_table(report)) + soft(serving_sentence(report)),
        "<h2>Text</h2>" + table(*text_table(report), kind="text"),
        "<h2>The teacher's targets</h2>"
        + table(*fact_table(report, "targets", "evaluation", "agreement"), kind="text"),
        "<h2>Machine</h2>" + table(*fact_table(report, "machine"), kind="text"),
        *(details(title, at(report, title)) for title in ("config", "plan")),
    ]
    return page(name, parts)


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The four figures to read first: each with what it is of, and what else to know."""
    metric = metrics_of(report).get(metric_of(report), metric_of(report))
    metric = metric[:1].lower() + metric[1:]
    kept, gain = at(report, "retention"), at(report, "gain")
    sizes = [count(at(report, f"{s}.parameters")) for s in ("student", "teacher")]
    timed = at(report, "speedup") is not None
    batch_32 = times(at(report, "speedup.batch_32"), "at batch 32")
    return [
        (
            NONE if kept is None else f"{percent(kept)} % kept",
            f"of the teacher's {metric} on test",
            interval(at(report, "retention_interval")),
        ),
        (
            number(gain, "{:+.1f} points", 100),
            "over the same student without a teacher" if gain is not None else "no control trained",
            interval(at(report, "gain_interval"), "{:+.1f}"),
        ),
        (
            times(at(report, "compression"), "smaller"),
            f"{sizes[0]} of {sizes[1]} parameters",
            times(body_ratio(report), "without token embeddings"),
        ),
        (
            times(at(report, "speedup.batch_1"), "faster"),
            "at batch 1" if timed else "latency not measured",
            batch_32 if timed else "",
        ),
    ]
