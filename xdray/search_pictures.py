"""The pictures of a search as SVG: front, parallel coordinates, learning curves, importance."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xdray.figures import Report, ms
from xdray.fronts import pareto_front
from xdray.pictures import BESIDE, COLOURS, INK, LINE, SETTINGS, new_figure, to_svg

Trials = Sequence[Mapping[str, Any]]
SHADES = "viridis"


def draw_search(report: Report, trials: Trials) -> dict[str, str]:
    """Name to SVG, of the pictures that these trials fill."""
    import matplotlib as mpl

    finished = [trial for trial in trials if trial["status"] == "finished"]
    drawn = {
        "front": lambda: _draw_front(report, finished),
        "coordinates": lambda: _draw_coordinates(report, trials),
        "curves": lambda: _draw_curves(report, trials),
        "importance": lambda: _draw_importance(report, finished),
    }
    found: dict[str, str] = {}
    for name, draw in drawn.items():
        with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            if (figure := draw()) is not None:
                found[name] = to_svg(figure)
    return found


def _draw_front(report: Report, finished: Trials) -> Any:
    """Score against parameters, and against latency where it was measured."""
    costs = [
        (key, label)
        for key, label in (
            ("parameters", "parameters, millions"),
            ("latency_ms", "latency at batch 1, ms"),
            ("latency_ms_32", "latency at batch 32, ms"),
        )
        if finished and all(trial["costs"][key] is not None for trial in finished)
    ]
    if not costs:
        return None
    figure, axes = new_figure(1, len(costs), 3.3 * len(costs) + 1, 3.4, sharey=True)
    best = report["best"]["id"]
    for axis, (key, label) in zip(axes[0], costs, strict=True):
        scale = 1e6 if key == "parameters" else 1.0
        points = [(trial["score"], trial["costs"][key]) for trial in finished]
        front = {finished[k]["id"] for k in pareto_front(points, ["score", key])}
        for trial in finished:
            on_front, is_best = trial["id"] in front, trial["id"] == best
            axis.scatter(
                trial["costs"][key] / scale,
                100 * trial["score"],
                s=46 if is_best else 28,
                marker="D" if is_best else "o",
                facecolor=COLOURS["student"] if on_front or is_best else "none",
                edgecolor=COLOURS["student"],
                zorder=3,
            )
        for name, value, colour in (
            ("teacher", report["teacher_dev"], COLOURS["teacher"]),
            ("best shape, no teacher", report.get("baseline_dev"), COLOURS["baseline"]),
        ):
            if value is not None:
                axis.axhline(100 * value, color=colour, linewidth=1, linestyle="--")
                at = (0.99, 100 * value)
                axis.annotate(
                    name, at, xycoords=("axes fraction", "data"), color=colour,
                    fontsize=8, ha="right", va="bottom", xytext=(0, 2), textcoords="offset points",
                )  # fmt: skip
        axis.set_xlabel(label)
    axes[0][0].set_ylabel(f"dev {report['metric']}")
    return figure


def _draw_coordinates(report: Report, trials: Trials) -> Any:
    """A line a trial over the fields of the space and its score."""
    scored = [trial for trial in trials if trial["score"] is not None]
    fields = list(report["space"])
    if len(scored) < 2:
        return None
    import matplotlib as mpl

    columns = [*fields, "score"]
    rows = np.array([[_place(trials, name, trial) for name in columns] for trial in scored])
    figure, axes = new_figure(1, 1, 1.9 * len(columns) + 0.6, 3.4)
    axis = axes[0][0]
    scores = np.array([trial["score"] for trial in scored])
    spread = float(scores.max() - scores.min()) or 1.0
    for row, trial in zip(rows, scored, strict=True):
        shade = mpl.colormaps[SHADES](0.95 - 0.9 * (trial["score"] - scores.min()) / spread)
        style = "-" if trial["status"] == "finished" else ":"
        axis.plot(range(len(columns)), row, color=shade, linewidth=1.4, linestyle=style)
    for at, name in enumerate(columns):
        axis.axvline(at, color=LINE, linewidth=1)
        for place, label in _ticks(trials, name):
            axis.annotate(label, (at, place), xytext=(4, 0), fontsize=8, color=INK, **BESIDE)
    axis.set_xticks(range(len(columns)), [name.replace(".", ".\n", 1) for name in columns])
    axis.set_yticks([])
    axis.grid(visible=False)
    return figure


def _values(trials: Trials, name: str) -> list[Any]:
    if name == "score":
        return [trial["score"] for trial in trials if trial["score"] is not None]
    return [trial["fields"].get(name) for trial in trials]


def _is_number(values: Sequence[Any]) -> bool:
    return {type(value) for value in values} <= {int, float}


def _place(trials: Trials, name: str, trial: Mapping[str, Any]) -> float:
    """Height of a trial on a field's axis, 0 to 1."""
    value = trial["score"] if name == "score" else trial["fields"].get(name)
    values = _values(trials, name)
    if _is_number(values):
        low, high = min(values), max(values)
        return (value - low) / (high - low) if high > low else 0.5
    names = sorted(map(str, set(map(str, values))))
    return names.index(str(value)) / (len(names) - 1) if len(names) > 1 else 0.5


def _ticks(trials: Trials, name: str) -> list[tuple[float, str]]:
    values = _values(trials, name)
    if _is_number(values):
        low, high = min(values), max(values)
        some = sorted(set(values)) if len(set(values)) <= 6 else [low, high]
        return [((v - low) / (high - low) if high > low else 0.5, f"{v:.4g}") for v in some]
    names = sorted(set(map(str, values)))
    return [(k / (len(names) - 1) if len(names) > 1 else 0.5, n) for k, n in enumerate(names)]


def _draw_curves(report: Report, trials: Trials) -> Any:
    """Dev score over the share of the planned epochs; stopped trials end early."""
    shown = [trial for trial in trials if trial["reports"]]
    if not shown:
        return None
    figure, axes = new_figure(1, 1, 7.0, 3.4)
    axis, best = axes[0][0], report["best"]["id"]
    for trial in shown:
        is_best, is_stopped = trial["id"] == best, trial["status"] == "stopped"
        axis.plot(
            [100 * line["done"] for line in trial["reports"]],
            [100 * line["score"] for line in trial["reports"]],
            color=COLOURS["student"]
            if is_best
            else COLOURS["baseline" if is_stopped else "teacher"],
            linewidth=2.2 if is_best else 1.1,
            marker="x" if is_stopped else None,
            markevery=[len(trial["reports"]) - 1],
            zorder=3 if is_best else 2,
            label="best" if is_best else "stopped early" if is_stopped else "finished",
        )
    handles, labels = axis.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axis.legend(once.values(), once.keys(), loc="lower right")
    axis.set_xlabel("% of the planned epochs")
    axis.set_ylabel(f"dev {report['metric']}")
    return figure


def importance(report: Report, finished: Trials) -> dict[str, float]:
    """Share of the scores' variance that the means by each field's value explain.

    One field at a time, numbers of a range cut into four bands; fields of few trials overstate.
    """
    scores = np.array([trial["score"] for trial in finished])
    total = float(((scores - scores.mean()) ** 2).sum()) if len(scores) else 0.0
    found: dict[str, float] = {}
    for name in report["space"]:
        values = _values(finished, name)
        groups = values
        if _is_number(values) and (len(set(values)) > 6 or len(set(values)) == len(values)):
            groups = _bands(values)
        within = 0.0
        for group in set(map(str, groups)):
            its = scores[[str(value) == group for value in groups]]
            within += float(((its - its.mean()) ** 2).sum())
        found[name] = 1 - within / total if total else 0.0
    return found


def _bands(values: Sequence[float]) -> list[int]:
    edges = np.quantile(values, (0.25, 0.5, 0.75))
    return np.searchsorted(edges, values).tolist()


def _draw_importance(report: Report, finished: Trials) -> Any:
    if len(finished) < 4:
        return None
    shares = sorted(importance(report, finished).items(), key=lambda item: item[1])
    figure, axes = new_figure(1, 1, 6.0, 0.42 * len(shares) + 0.9)
    axis = axes[0][0]
    bars = axis.barh(
        [name for name, _ in shares], [100 * share for _, share in shares], color=COLOURS["student"]
    )
    axis.bar_label(bars, fmt="%.0f %%", padding=3)
    axis.set_xlabel("% of the variance of the score that the field's values explain, one at a time")
    axis.set_xlim(0, 112)
    axis.grid(axis="y", visible=False)
    return figure


def latency_text(trial: Mapping[str, Any]) -> str:
    """Latency at batch 1 and 32, for the table."""
    costs = trial["costs"]
    if costs["latency_ms"] is None:
        return "-"
    return f"{ms(costs['latency_ms'])} / {ms(costs['latency_ms_32'])}"
