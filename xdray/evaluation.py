"""Entity scores by language and their intervals, agreement with the teacher, latency, size.

Letters: S sentences, N words of all sentences, C tags, B sentences a batch, T tokens a sentence.
The scores are seqeval's, computed on flat arrays: dev is scored after every epoch, and seqeval's
strict mode walks each word as an object (40,000 sentences: about 20 s there, 0.5 s here). Equality
with seqeval is a property test.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import kl_div

from xdray import __version__
from xdray.labels import OUTSIDE, is_tag, split_tag

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tags = Sequence[Sequence[str]]
Counts = NDArray[np.int64]  # (..., 3): entities that both have, predicted, gold
Forward = Callable[[Tensor, Tensor], object]

BATCH_SIZES = (1, 32)  # P1 table 16
CALLS_A_TURN = 5
MAX_CALLS = 100
BOOTSTRAP_VALUES = 2_000_000  # weights held at once: 16 MB


class _Entities(NamedTuple):
    """The entities of one side, over the words of all sentences; each array is (N,)."""

    kinds: NDArray[np.int64]  # index of the entity's type, -1 outside
    starts: NDArray[np.bool_]  # first word of an entity, seqeval's default mode
    begins: NDArray[np.bool_]  # first word of an entity that opens with B-: strict mode
    ends: NDArray[np.int64]  # the word after the entity that starts here


class _Comparison(NamedTuple):
    """Gold against predicted; each (N, 3) bool: an entity starts here in both, predicted, gold."""

    default: NDArray[np.bool_]
    strict: NDArray[np.bool_]
    gold_kinds: NDArray[np.int64]
    predicted_kinds: NDArray[np.int64]
    kinds: list[str]
    offsets: NDArray[np.int64]  # (S + 1,) into N


def entity_scores(gold: Tags, predicted: Tags, languages: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 of entities: micro, macro over types, by language and by type.

    gold, predicted: IOB2 tags of the same words; languages: one a sentence. F1 is seqeval's with
    zero_division=0: default mode (an I- that continues nothing opens an entity), and for
    `entity_f1_strict` mode="strict", scheme=IOB2. Mean and population standard deviation over
    languages leave out those without a gold entity, as they have no F1. All are fractions.
    """
    found = _compare(gold, predicted)
    counts, strict = _by_sentence(found.default, found), _by_sentence(found.strict, found)
    assert len(languages) == len(counts), "one language a sentence"
    names, group = np.unique(np.asarray(languages, dtype=str), return_inverse=True)
    by_name, strict_by_name = (_sum_by(c, group, len(names)) for c in (counts, strict))
    sentences = np.bincount(group, minlength=len(names))
    f1_by_type = f1_of(_by_type(found))
    scored = f1_of(by_name)[by_name[:, 2] > 0]
    hits, num_predicted, num_gold = counts.sum(axis=0).tolist()
    return {
        "entity_f1": float(f1_of(counts.sum(axis=0))),
        "entity_f1_strict": float(f1_of(strict.sum(axis=0))),
        "precision": hits / max(num_predicted, 1),
        "recall": hits / max(num_gold, 1),
        "macro_f1": float(f1_by_type.mean()) if len(f1_by_type) else 0.0,
        "mean_language_f1": float(scored.mean()) if len(scored) else 0.0,
        "std_language_f1": float(scored.std()) if len(scored) else 0.0,
        "by_language": {
            str(name): {
                "entity_f1": float(f1_of(by_name[i])),
                "entity_f1_strict": float(f1_of(strict_by_name[i])),
                "sentences": int(sentences[i]),
                "entities": int(by_name[i, 2]),
            }
            for i, name in enumerate(names)
        },
        "by_type": dict(zip(found.kinds, f1_by_type.tolist(), strict=True)),
    }


def entity_counts(gold: Tags, predicted: Tags, metric: str = "entity_f1") -> Counts:
    """Entities of each sentence (S, 3), for the intervals: in both, predicted, gold.

    Counted in strict mode where `metric` is entity_f1_strict, else in seqeval's default mode.
    """
    found = _compare(gold, predicted)
    return _by_sentence(found.strict if metric == "entity_f1_strict" else found.default, found)


def f1_of(counts: NDArray[Any]) -> NDArray[np.float64]:
    """F1 of counts (..., 3): (...); 0 where there is neither a gold nor a predicted entity."""
    hits, num_predicted, num_gold = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return 2 * hits / np.maximum(num_predicted + num_gold, 1)


def retention_interval(
    teacher: Counts,
    student: Counts,
    languages: Sequence[str],
    metric: str,
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of student over teacher in `metric`: paired bootstrap over test sentences.

    teacher, student: `entity_counts` (S, 3) on the same sentences. Percentile method; resamples in
    which the teacher scores 0 are left out. None where nothing is left or `resamples` is 0.
    """
    scores = _bootstrap(teacher, student, languages, metric, resamples, seed)
    scores = scores[scores[:, 0] > 0]
    return _middle(scores[:, 1] / scores[:, 0])


def gain_interval(
    baseline: Counts,
    student: Counts,
    languages: Sequence[str],
    metric: str,
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of student minus baseline in `metric`, else as `retention_interval`."""
    scores = _bootstrap(baseline, student, languages, metric, resamples, seed)
    return _middle(scores[:, 1] - scores[:, 0])


def agreement(
    teacher_logits: Sequence[NDArray[np.floating]], student_logits: Sequence[NDArray[np.floating]]
) -> dict[str, Any]:
    """How far the student says what the teacher says, gold aside.

    Both: (words, C) a sentence, same tag order. Returns equal_tags (share of words with the same
    best tag), mean_kl (KL from teacher to student in nats a word, temperature 1) and words.
    """
    words, equal, nats = 0, 0, 0.0
    for first in range(0, len(teacher_logits), 8192):
        teacher, student = (
            torch.from_numpy(np.concatenate(logits[first : first + 8192])).double()
            for logits in (teacher_logits, student_logits)
        )
        assert teacher.shape == student.shape, "the same words and tags on both sides"
        words += len(teacher)
        equal += int((teacher.argmax(-1) == student.argmax(-1)).sum())
        log_probs = (student.log_softmax(-1), teacher.log_softmax(-1))
        nats += float(kl_div(*log_probs, reduction="sum", log_target=True))
    most = max(words, 1)
    return {"equal_tags": equal / most, "mean_kl": nats / most, "words": words}


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


def _compare(gold: Tags, predicted: Tags) -> _Comparison:
    lengths = np.fromiter(map(len, gold), dtype=np.int64, count=len(gold))
    assert lengths.tolist() == [len(tags) for tags in predicted], "a tag for each gold word"
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tags = set(chain.from_iterable(gold)) | set(chain.from_iterable(predicted))
    assert all(is_tag(tag, "IOB2") for tag in tags), "IOB2 tags"
    kinds = sorted({split_tag(tag)[1] for tag in tags if tag != OUTSIDE})
    ours, theirs = (_entities(side, offsets, kinds) for side in (gold, predicted))
    same = (ours.kinds == theirs.kinds) & (ours.ends == theirs.ends)
    default, strict = (
        np.stack((same & predicted_at & gold_at, predicted_at, gold_at), axis=-1)
        for predicted_at, gold_at in ((theirs.starts, ours.starts), (theirs.begins, ours.begins))
    )
    return _Comparison(default, strict, ours.kinds, theirs.kinds, kinds, offsets)


def _entities(tags: Tags, offsets: NDArray[np.int64], kinds: list[str]) -> _Entities:
    """Read IOB2 tags: an entity goes on over each I- of the type of the word before it."""
    seen = sorted(set(chain.from_iterable(tags)))
    ids = {tag: i for i, tag in enumerate(seen)}
    words = np.fromiter(map(ids.__getitem__, chain.from_iterable(tags)), np.int64, offsets[-1])
    index = {OUTSIDE: -1} | {f"{p}-{name}": i for i, name in enumerate(kinds) for p in "BI"}
    kind = np.array([index[tag] for tag in seen], dtype=np.int64)[words]
    opens = np.array([tag[0] == "B" for tag in seen], dtype=bool)[words]
    before = np.concatenate(([-1], kind))[:-1]
    before[offsets[:-1][np.diff(offsets) > 0]] = -1
    inside = (kind >= 0) & ~opens & (kind == before)
    borders = np.append(np.flatnonzero(~inside), offsets[-1])
    ends = borders[np.searchsorted(borders, np.arange(offsets[-1]), side="right")]
    return _Entities(kind, (kind >= 0) & ~inside, opens, ends)


def _by_sentence(starts: NDArray[np.bool_], found: _Comparison) -> Counts:
    sums = np.concatenate((np.zeros((1, 3), np.int64), np.cumsum(starts, axis=0, dtype=np.int64)))
    return np.diff(sums[found.offsets], axis=0)


def _by_type(found: _Comparison) -> Counts:
    columns = zip(found.default.T, (found.predicted_kinds,) * 2 + (found.gold_kinds,), strict=True)
    size = len(found.kinds)
    return np.stack([np.bincount(k[starts], minlength=size) for starts, k in columns], axis=-1)


def _sum_by(counts: Counts, group: NDArray[np.int64], groups: int) -> Counts:
    result = np.zeros((groups, counts.shape[1]), dtype=np.int64)
    np.add.at(result, group, counts)
    return result


def _bootstrap(
    first: Counts, second: Counts, languages: Sequence[str], metric: str, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Metric of both systems on resampled sentences, the same ones for both: (resamples, 2)."""
    assert len(first) == len(second) == len(languages), "the same sentences on both sides"
    size, rng = len(first), np.random.default_rng(seed)
    by_language = metric == "mean_language_f1"
    names = np.asarray(languages, dtype=str) if by_language else np.zeros(size, dtype=np.int64)
    order = np.argsort(names, kind="stable")
    columns = np.concatenate((first, second), axis=1)[order].astype(np.float64)
    borders = np.flatnonzero(names[order][1:] != names[order][:-1]) + 1
    blocks = list(zip([0, *borders], [*borders, size], strict=True))
    result = np.empty((resamples if size else 0, 2))
    chunk = max(1, BOOTSTRAP_VALUES // max(size, 1))
    for start in range(0, len(result), chunk):
        rows = min(chunk, len(result) - start)
        weights = np.empty((rows, size))
        for row in weights:
            row[:] = np.bincount(rng.integers(0, size, size), minlength=size)
        sums = np.stack([weights[:, a:b] @ columns[a:b] for a, b in blocks], axis=1)
        sums = sums.reshape(rows, len(blocks), 2, 3)
        scored = sums[..., 2] > 0 if by_language else np.ones(sums.shape[:-1], dtype=bool)
        totals = np.where(scored, f1_of(sums), 0.0).sum(axis=1)
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
