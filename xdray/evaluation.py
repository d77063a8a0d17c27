"""Intervals of scores, latency, size, and the machine they were measured on.

Letters: U scored units, K statistics of each, B sentences a batch, T tokens a sentence.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdray import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Statistics = NDArray[Any]  # (U, K): their sums over units give a metric
Forward = Callable[[Tensor, Tensor], object]

BATCH_SIZES = (1, 32)  # P1 table 16
CALLS_A_TURN = 5
MAX_CALLS = 100
BOOTSTRAP_VALUES = 2_000_000  # weights held at once: 16 MB


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How a metric is resampled."""

    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """Sums (..., K) of statistics to the metric (...), NaN where there is nothing to score."""
    resamples: int
    seed: int
    groups: Sequence[str] | None = None
    """A name a unit: the metric is the mean over groups of theirs; None: of all units."""


def retention_interval(
    teacher: Statistics, student: Statistics, settings: Resampling
) -> tuple[float, float] | None:
    """95 % interval of student over teacher in a metric: paired bootstrap over test units.

    teacher, student: (U, K) of the same units. Percentile method; resamples in which the teacher
    scores 0 are left out. None where nothing is left or no resamples are asked for.
    """
    scores = _bootstrap(teacher, student, settings)
    scores = scores[scores[:, 0] > 0]
    return _middle(scores[:, 1] / scores[:, 0])


def gain_interval(
    baseline: Statistics, student: Statistics, settings: Resampling
) -> tuple[float, float] | None:
    """95 % interval of student minus baseline in a metric, else as `retention_interval`."""
    scores = _bootstrap(baseline, student, settings)
    return _middle(scores[:, 1] - scores[:, 0])


def measure_latency(
    forwards: Mapping[str, Forward],
    vocabulary_sizes: Mapping[str, int],
    length: int,
    device: str,
    seed: int,
    budget_seconds: float = 3.0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Median and 95th percentile of a forward pass in ms, by name and batch size (P1 section 2.7).

    forwards: called with input_ids (B, T) int64 below the name's vocabulary size and a mask of
    ones, T = length; the models must be in eval mode. The names take turns, so that a change of
    the machine's speed meets all of them: one call untimed, which brings the weights back into
    the caches, then 5 timed. A name has done with 100 calls or, after a turn, `budget_seconds`.
    """
    result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in forwards}
    rng = np.random.default_rng(seed)
    for batch_size in BATCH_SIZES:
        mask = torch.ones(batch_size, length, dtype=torch.int64, device=device)
        times: dict[str, list[float]] = {name: [] for name in forwards}
        while waiting := [name for name, t in times.items() if _goes_on(t, budget_seconds)]:
            for name in waiting:
                shape = (CALLS_A_TURN, batch_size, length)
                ids = torch.from_numpy(rng.integers(0, vocabulary_sizes[name], shape)).to(device)
                if not times[name]:
                    _seconds(forwards[name], ids[0], mask)  # sets up kernels, buffers
                _seconds(forwards[name], ids[0], mask)
                times[name] += [_seconds(forwards[name], row, mask) for row in ids]
        for name, seconds in times.items():
            median, p95 = (1000 * np.percentile(seconds, (50, 95))).tolist()
            result[name][f"batch_{batch_size}"] = {"median": median, "p95": p95}
    return result


def num_parameters(model: "PreTrainedModel") -> tuple[int, int]:
    """Parameters in all, shared ones once, and those of the input token embeddings among them."""
    embedding = model.get_input_embeddings()
    return (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in embedding.parameters()),
    )


def machine() -> dict[str, Any]:
    """What a time was measured on: processor, CPUs of this process, torch's threads, versions."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu = torch.cuda.get_device_name(0) if gpus else None
    return {
        "processor": _processor(),
        "cpus": _num_cpus(),
        "threads": torch.get_num_threads(),
        "gpu": f"{gpus} x {gpu}" if gpus > 1 else gpu,
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "ray", "transformers")},
        "xdray": __version__,
    }


def _bootstrap(first: Statistics, second: Statistics, settings: Resampling) -> NDArray[np.float64]:
    """Metric of both systems on resampled units, the same ones for both: (resamples, 2)."""
    assert len(first) == len(second), "the same units on both sides"
    size, rng = len(first), np.random.default_rng(settings.seed)
    groups = settings.groups
    names = np.zeros(size, np.int64) if groups is None else np.asarray(groups, dtype=str)
    order = np.argsort(names, kind="stable")
    columns = np.concatenate((first, second), axis=1)[order].astype(np.float64)
    borders = np.flatnonzero(names[order][1:] != names[order][:-1]) + 1
    blocks = list(zip([0, *borders], [*borders, size], strict=True))
    result = np.empty((settings.resamples if size else 0, 2))
    chunk = max(1, BOOTSTRAP_VALUES // max(size, 1))
    for start in range(0, len(result), chunk):
        rows = min(chunk, len(result) - start)
        weights = np.empty((rows, size))
        for row in weights:
            row[:] = np.bincount(rng.integers(0, size, size), minlength=size)
        sums = np.stack([weights[:, a:b] @ columns[a:b] for a, b in blocks], axis=1)
        values = settings.value(sums.reshape(rows, len(blocks), 2, -1))
        scored = np.isfinite(values)
        totals = np.where(scored, values, 0.0).sum(axis=1)
        result[start : start + rows] = totals / np.maximum(scored.sum(axis=1), 1)
    return result


def _middle(values: NDArray[np.float64]) -> tuple[float, float] | None:
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5)).tolist()
    return low, high


def _goes_on(times: list[float], budget_seconds: float) -> bool:
    return len(times) < MAX_CALLS and sum(times) <= budget_seconds


def _seconds(forward: Forward, ids: Tensor, mask: Tensor) -> float:
    with torch.inference_mode():
        _finish(ids.device)
        start = time.perf_counter()
        forward(ids, mask)
        _finish(ids.device)
        return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _num_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
