"""Tasks side by side over seeds: `benchmarks/tasks.py CONFIG ... [SEEDS] [KEY=VALUE]`.

A run of `jobs/distill.py` for each config and each seed from 0, one thread each, as many at once as
there are cores, under `<run.folder>-SEED`; finished runs are read, not run again. The teacher is
that of seed 0, and so is its pass: what varies is the student and its control. Prints a Markdown
table: mean and standard deviation over seeds, and the gain over the control, run by run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from xdray.configfile import load_config
from xdray.figures import body

COMMON = ["cluster.threads=1", "evaluation.latency=false"]


def main() -> int:
    """Run what is missing, print the table."""
    words = sys.argv[1:]
    overrides = COMMON + [word for word in words if "=" in word]
    seeds = next((int(word) for word in words if word.isdigit()), 2)
    configs = [word for word in words if "=" not in word and not word.isdigit()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs: list[Future[dict[str, Any]]] = []
        for seed in range(seeds):
            for number, config in enumerate(configs):
                first = runs[number] if seed else None
                runs.append(pool.submit(_run, config, seed, overrides, first))
        reports = [run.result() for run in runs]
    print("| run | seeds | metric | teacher | student | no teacher | kept | gain | each | body |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for number, config in enumerate(configs):
        print(_row(Path(config).stem, reports[number :: len(configs)]))
    return 0


def _run(
    config: str, seed: int, overrides: Sequence[str], first: Future[dict[str, Any]] | None
) -> dict[str, Any]:
    """Report of one run; what it prints is in `<run.folder>-SEED.log`. first: seed 0's."""
    base = load_config(config, overrides).run.folder
    folder = Path(f"{base}-{seed}")
    if not (folder / "report.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "jobs/distill.py", config, *overrides]
        command += [f"run.folder={folder}", f"run.seed={seed}"]
        if first is not None:
            first.result()
            command += ["teacher.finetune=null", f"teacher.model={base}-0/teacher"]
        with Path(f"{folder}.log").open("w", encoding="utf-8") as log:
            status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if status:
            raise SystemExit(f"{folder}: exit {status}, see {folder}.log")
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def _row(name: str, reports: Sequence[dict[str, Any]]) -> str:
    metric = reports[0]["evaluation"]["metric"]
    scores = {
        system: [100 * report[system]["test"][metric] for report in reports]
        for system in ("teacher", "student", "baseline")
    }
    pairs = zip(scores["student"], scores["teacher"], scores["baseline"], strict=True)
    kept, gains = zip(*[(its / big, its - control) for its, big, control in pairs], strict=True)
    share = (body(reports[0], "student") or 0) / (body(reports[0], "teacher") or 1)
    cells = [name, str(len(reports)), metric, *(_spread(its, 1) for its in scores.values())]
    cells += [_spread(kept, 3), _spread(gains, 1), " ".join(f"{gain:+.1f}" for gain in gains)]
    return "| " + " | ".join([*cells, f"{share:.1%}"]) + " |"


def _spread(values: Sequence[float], digits: int) -> str:
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


if __name__ == "__main__":
    raise SystemExit(main())
