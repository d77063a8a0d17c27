"""What the store's codec costs: bytes a token, pass and epoch time, the student's dev score."""

import functools
import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Found,
    Settings,
    epoch_seconds,
    pass_rate,
    run_config,
    scratch,
    take_turns,
)
from xdray.distillation import distill

CODECS = ("float16", "int8", "pca64", "pca128")
EPOCHS = (
    "recipe.stages.0.epochs=3",
    "recipe.stages.1.epochs=3",
    "recipe.stages.2.epochs=1",
)
"""Of representation, logits and labels."""


def measure_codecs(settings: Settings) -> Found:
    """A whole run of each codec in turns, each turn with another seed."""
    found = Found()
    reports: dict[str, list[dict[str, Any]]] = {codec: [] for codec in CODECS}

    def measure(codec: str) -> float:
        with scratch() as folder:
            config = run_config(
                settings,
                Path(folder),
                f"data.transfer.sentences={settings.epoch_sentences}",
                f"targets.codec={codec}",
                f"run.seed={len(reports[codec])}",
                *EPOCHS,
            )
            reports[codec].append(distill(config))
        return reports[codec][-1]["seconds"]

    take_turns({its: functools.partial(measure, its) for its in CODECS}, settings.repeats)
    for codec, its in reports.items():
        targets = [report["targets"] for report in its]
        scores = [report["student"]["dev"][report["evaluation"]["metric"]] for report in its]
        found.figures[f"codec {codec}"] = {
            "bytes a token": round(targets[0]["bytes"] / targets[0]["tokens"], 1),
            "error, share of the states' size": targets[0]["codec_error"],
            "pass, sentences/s": statistics.median(map(pass_rate, targets)),
            "representation, s an epoch": statistics.median(
                epoch_seconds(report["stages"][0]) for report in its
            ),
            "dev": [round(score, 4) for score in scores],
            "mean": round(statistics.mean(scores), 4),
        }
    found.notes.append(
        f"codecs: {settings.epoch_sentences} sentences, {'+'.join(e[-1] for e in EPOCHS)} epochs, "
        f"seeds 0 to {settings.repeats - 1}"
    )
    return found
