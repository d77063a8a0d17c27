"""The papers' recipes side by side: `benchmarks/recipes.py CONFIG RECIPE:SEED ... [KEY=VALUE]`.

One run each under `<run.folder>/RECIPE-SEED`, all from one targets store; finished runs are read,
not run again. The recipe `stages` is the config's own list. Prints a Markdown table of means over
seeds, dev and test entity F1.
"""

import sys
from collections import defaultdict
from statistics import mean
from typing import Any

from xdray.configfile import load_config
from xdray.distillation import distill

COMMON = ["evaluation.baseline=false", "evaluation.latency=false"]


def main() -> int:
    """Run what is missing, print the table."""
    path, words = sys.argv[1], sys.argv[2:]
    overrides = COMMON + [word for word in words if "=" in word]
    reports: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for word in (word for word in words if "=" not in word):
        recipe, _, seed = word.partition(":")
        folder = f"{load_config(path, overrides).run.folder}/{recipe}-{seed}"
        mine = [f"run.folder={folder}", f"run.seed={seed}"]
        if recipe != "stages":
            mine += ["recipe.stages=null", f"recipe.name={recipe}"]
        reports[recipe].append(distill(load_config(path, overrides + mine)))
    print("| recipe | seeds | dev | test | retention | each |\n|---|---|---|---|---|---|")
    for recipe, runs in reports.items():
        dev, test, kept = (
            [value(run) for run in runs]
            for value in (
                lambda run: run["student"]["dev"]["entity_f1"],
                lambda run: run["student"]["test"]["entity_f1"],
                lambda run: run["retention"],
            )
        )
        each = " ".join(f"{value:.3f}" for value in kept)
        print(
            f"| {recipe} | {len(runs)} | {mean(dev):.3f} | {mean(test):.3f} | {mean(kept):.3f} "
            f"| {each} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
