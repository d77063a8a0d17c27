"""The pictures of a report as SVG: scores by language, learning curves, sizes, latency.

Drawn in the colours of a light page; `inline` makes them follow the page, light or dark.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from xdray.figures import (
    SYSTEMS,
    Report,
    at,
    body,
    count,
    is_by_dev,
    language_score,
    languages_of,
    metric_of,
    metrics_of,
    ms,
    systems_of,
)

if TYPE_CHECKING:  # matplotlib takes a second to import, and writes a font cache the first time
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {  # on a light page (and in plots/), on a dark one
    "ink": ("#1b1f24", "#e7eaee"),
    "paper": ("#ffffff", "#14171b"),
    "line": ("#d8dde3", "#3a414b"),
    "teacher": ("#6b7280", "#9ca3af"),
    "student": ("#2563eb", "#6ea0ff"),
    "baseline": ("#d97706", "#f2a444"),
    "hard_labels": ("#0f9b8e", "#35c4b5"),
    "term-0": ("#7c3aed", "#a78bfa"),
    "term-1": ("#db2777", "#f472b6"),
    "term-2": ("#0891b2", "#22d3ee"),
    "term-3": ("#65a30d", "#a3e635"),
}
COLOURS = {name: light for name, (light, _) in PALETTE.items()}
INK, PAPER, LINE = COLOURS["ink"], COLOURS["paper"], COLOURS["line"]
TERMS = [colour for name, colour in COLOURS.items() if name.startswith("term-")]
MARKERS = {"teacher": "o", "student": "D", "baseline": "s", "hard_labels": "^"}
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', ['{INK}'])",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "legend.frameon": False,
}


def draw_all(report: Report) -> dict[str, str]:
    """Name to SVG, of the pictures for which the report has figures."""
    import matplotlib as mpl

    drawings = {
        "languages": _draw_languages,
        "curves": _draw_curves,
        "sizes": _draw_sizes,
        "latency": _draw_latency,
    }
    found: dict[str, str] = {}
    for name, draw in drawings.items():
        with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
            # the reader's own fonts show a name in any script
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure = draw(report)
            if figure is not None:
                found[name] = to_svg(figure)
    return found


def inline(svg: str, label: str) -> str:
    """Make an SVG part of a page: no header, colours as the page's variables, a spoken label."""
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # each id once on a page
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def to_svg(figure: "Figure") -> str:
    """Return a figure's SVG, the same for the same figure."""
    stream = StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    return stream.getvalue()


def new_figure(rows: int, columns: int, width: float, height: float, **settings: Any) -> Any:
    """Return a figure and its axes, without pyplot's state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def _draw_languages(report: Report) -> "Figure | None":
    """A row a language, a mark a system, the line what the student lacks; types of entity below."""
    languages, systems = languages_of(report), systems_of(report)
    types = sorted(at(report, "student.test.by_type") or {})
    if not languages:
        return None
    sizes = [len(languages), max(len(types), 1)]
    height = 1.3 + 0.23 * sum(sizes)
    ratios = {"height_ratios": [size + 1.0 for size in sizes]}
    figure, axes = new_figure(2, 1, 8.6, height, sharex=True, gridspec_kw=ratios)
    _dots(axes[0, 0], languages, systems, lambda s, n: language_score(report, s, n))
    axes[0, 0].set_title("by language, most of the teacher's kept first", loc="left", fontsize=9)
    axes[0, 0].tick_params(labelbottom=True)
    _dots(axes[1, 0], types, systems, lambda s, n: (at(report, f"{s}.test.by_type") or {}).get(n))
    axes[1, 0].set_title("by label, F1", loc="left", fontsize=9)
    title = metrics_of(report).get(metric_of(report), metric_of(report))
    axes[1, 0].set_xlabel(f"{title} on test, %")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=len(systems))
    return figure


def _dots(
    axes: "Axes",
    names: Sequence[str],
    systems: Sequence[str],
    score: Callable[[str, str], float | None],
) -> None:
    positions = range(len(names))
    for position, name in enumerate(names):
        ends = _percents([score(system, name) for system in ("teacher", "student")])
        axes.plot(ends, [position] * len(ends), color=COLOURS["student"], lw=1.2, alpha=0.5)
    for system in reversed(systems):
        values = _percents([score(system, name) for name in names])
        style: dict[str, Any] = {"marker": MARKERS[system], "color": COLOURS[system]}
        style |= {} if system == "student" else {"markerfacecolor": PAPER}
        axes.plot(values, positions, linestyle="", markersize=5, label=SYSTEMS[system], **style)
    axes.set_yticks(positions, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _draw_curves(report: Report) -> "Figure | None":
    """Dev above, mean losses below, over the epochs of all sub-steps, one after the other."""
    stages = [row for row in at(report, "stages") or [] if row.get("history")]
    if not stages:
        return None
    figure, axes = new_figure(2, 1, 10, 5.4, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
    upper, lower = axes[:, 0]
    names = list(dict.fromkeys(name for row in stages for name in row["history"][0]["terms"]))
    first, metric = 0, metric_of(report)
    for row in stages:
        epochs = [first + number + 1 for number in range(len(row["history"]))]
        _draw_step(upper, lower, row, epochs, names)
        dev, first = at(row, f"dev.{metric}"), epochs[-1]
        if dev is not None:
            _mark_score(upper, first, 100 * dev)
    for system in ("teacher", "baseline"):
        dev = at(report, f"{system}.dev.{metric}")
        if dev is not None:
            line: dict[str, Any] = {"color": COLOURS[system], "ls": "--", "lw": 1}
            upper.axhline(100 * dev, label=SYSTEMS[system], **line)
    _mark_stages(upper, lower, stages)
    upper.set_ylabel("dev F1, %")
    lower.set(ylabel="mean loss", yscale="log", xlabel="epochs, all sub-steps")
    lower.yaxis.set_major_formatter("{x:g}")
    lower.minorticks_off()
    for panel in (upper, lower):
        panel.legend(*_once(panel), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _mark_score(axes: "Axes", epoch: int, score: float) -> None:
    style: dict[str, Any] = {"marker": "D", "ms": 5, "ls": "", "label": "after a sub-step"}
    axes.plot([epoch], [score], color=COLOURS["student"], **style)
    below = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
    axes.annotate(f"{score:.1f}", (epoch, score), (0, -12 if score > 10 else 7), **below)


def _draw_step(
    upper: "Axes", lower: "Axes", row: Mapping[str, Any], epochs: list[int], names: list[str]
) -> None:
    history = row["history"]
    for name in history[0]["terms"]:
        losses = [epoch["terms"].get(name) or math.nan for epoch in history]  # 0 has no logarithm
        colour = TERMS[names.index(name) % len(TERMS)]
        lower.plot(epochs, losses, color=colour, marker=".", ms=4, label=name)
    scores = [epoch.get("score") for epoch in history]
    if is_by_dev(row):
        style: dict[str, Any] = {"marker": ".", "ms": 4, "label": "student by epoch"}
        upper.plot(epochs, _percents(scores), color=COLOURS["student"], **style)
    else:
        losses = [math.nan if score is None else -score for score in scores]
        lower.plot(epochs, losses, color=COLOURS["teacher"], ls=":", label="held-out loss")


def _percents(values: Sequence[float | None]) -> list[float]:
    """Times 100; a missing value leaves a gap."""
    return [math.nan if value is None else 100 * value for value in values]


def _mark_stages(upper: "Axes", lower: "Axes", stages: Sequence[Mapping[str, Any]]) -> None:
    """A line where a sub-step begins, a darker one where a stage does, with their names."""
    first, before = 0.5, None
    for row in stages:
        opens = row.get("stage") != before
        for panel in (upper, lower):
            colour, width = (INK, 0.9) if opens else (LINE, 0.9)
            panel.axvline(first, color=colour, lw=width, zorder=0.5)
        name = str(row.get("name"))
        style = {"rotation": 90, "va": "bottom", "ha": "left", "fontsize": 7, "color": INK}
        upper.annotate(
            name if opens else "+" + name.partition("+")[2],
            (first, 1.02),
            xycoords=("data", "axes fraction"),
            annotation_clip=False,
            **style,
        )
        first, before = first + len(row["history"]), row.get("stage")
    upper.set_xlim(0.5, first)
    upper.grid(visible=False, axis="x")
    lower.grid(visible=False, axis="x")


def _once(axes: "Axes") -> tuple[list[Any], list[str]]:
    """Each name of a legend once."""
    handles, labels = axes.get_legend_handles_labels()
    first = {
        label: handle for handle, label in zip(reversed(handles), reversed(labels), strict=True)
    }
    return [first[name] for name in dict.fromkeys(labels)], list(dict.fromkeys(labels))


def _draw_sizes(report: Report) -> "Figure | None":
    """Parameters: what is not token embeddings, and those."""
    systems = [s for s in ("teacher", "student") if body(report, s) is not None]
    if not systems:
        return None
    figure, axes = new_figure(1, 1, 5, 1.7)
    panel = axes[0, 0]
    for position, system in enumerate(systems):
        inner, whole = body(report, system) or 0, at(report, f"{system}.parameters")
        panel.barh(position, inner / 1e6, color=COLOURS[system], height=0.55)
        table = {"left": inner / 1e6, "color": COLOURS[system], "alpha": 0.4, "height": 0.55}
        panel.barh(position, (whole - inner) / 1e6, **table)
        told = f"{count(whole)}, {count(inner)} without embeddings"
        panel.annotate(told, (whole / 1e6, position), (5, 0), **BESIDE)
    _finish_bars(panel, systems, "million parameters; solid: without token embeddings")
    panel.set_xlim(0, 2.3 * max(at(report, f"{s}.parameters") for s in systems) / 1e6)
    return figure


def _draw_latency(report: Report) -> "Figure | None":
    """Median and 95th percentile at batch 1 and 32, each on its own scale."""
    systems = [s for s in ("teacher", "student") if at(report, f"latency_ms.{s}")]
    if not systems:
        return None
    figure, axes = new_figure(1, 2, 5, 1.7)
    for panel, batch in zip(axes[0], ("batch_1", "batch_32"), strict=True):
        longest = 0.0
        for position, system in enumerate(systems):
            found = at(report, f"latency_ms.{system}.{batch}")
            spread = [[0.0], [max(0.0, found["p95"] - found["median"])]]
            style = {"color": COLOURS[system], "ecolor": INK, "error_kw": {"lw": 1}}
            panel.barh(position, found["median"], xerr=spread, height=0.55, capsize=3, **style)
            far = max(found["median"], found["p95"])
            panel.annotate(ms(found["median"]), (far, position), (6, 0), **BESIDE)
            longest = max(longest, far)
        _finish_bars(panel, systems if panel is axes[0][0] else [""] * len(systems), "")
        panel.set_xlim(0, 1.35 * longest)
        panel.set_xlabel(f"ms, {batch.replace('_', ' ')}")
    return figure


def _finish_bars(panel: "Axes", systems: Sequence[str], label: str) -> None:
    panel.set_yticks(range(len(systems)), [SYSTEMS.get(system, "") for system in systems])
    panel.set_ylim(len(systems) - 0.5, -0.5)
    panel.set_xlabel(label)
    panel.grid(visible=False, axis="y")
