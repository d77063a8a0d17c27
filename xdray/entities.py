"""Entity scores by language: seqeval's, computed on flat arrays.

Dev is scored after every epoch, and seqeval's strict mode walks each word as an object (40,000
sentences: about 20 s there, 0.5 s here). Equality with seqeval is a property test.

Letters: S sentences, N words of all sentences.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xdray.labels import OUTSIDE, is_tag, split_tag

Tags = Sequence[Sequence[str]]
Counts = NDArray[np.int64]  # (..., 3): entities that both have, predicted, gold


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
