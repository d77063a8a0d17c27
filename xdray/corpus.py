"""Text in: labelled sentences for people's tags, shards of unlabelled ones for the teacher.

Labelled text is held in memory, its size bounded by people's labour. Transfer text never is: a
plan is made in passes that keep one open shard a language, and a shard is a descriptor from which
its sentences are read again. A shard crosses neither a file nor a language, and bears the hash of
its sentences: the same text in the same order has the same `shard_id` wherever it lies.
"""

import hashlib
import itertools
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from xdray.config import SourceConfig, TransferConfig
from xdray.errors import ConfigError, CorpusError
from xdray.labels import LabelSet, is_tag, label_set_of, to_iob2
from xdray.readers import Content, Place, Row, Span, class_names, expand, format_of, read_rows

UNKNOWN_LANGUAGE = "und"


@dataclass(frozen=True, slots=True)
class Sentence:
    """Raw text, or words; with tags (IOB2, one a word) where people gave them."""

    sentence_id: str
    language: str
    text: str | None
    words: tuple[str, ...] | None
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """Some sentences: where they are read again, or (dev, test) themselves."""

    shard_id: str
    """32 hex digits: hash of (language, text or words) of the sentences in order."""
    rows: int
    language: str = ""
    """Of all sentences; of inline ones each knows its own."""
    span: Span | None = None
    """The stretch of input that holds them; None: they are inline."""
    kept: bytes = b""
    """Which rows of the stretch are of the shard: a bit each, packed, zlib."""
    copy: int = 0
    """How many shards of the same sentences came before: part of the hash, so that ids differ."""
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class Labelled:
    """The sentences of a labelled split. counts: sentences, repaired_tags, empty (dropped)."""

    sentences: list[Sentence]
    labels: LabelSet
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """Shards of the sentences taken, and what became of all rows.

    counts: read = empty + duplicates + left_by_cap + taken; by_language {language: {read, taken}}.
    """

    shards: list[Shard]
    counts: dict


def read_labelled(
    sources: Sequence[SourceConfig], scheme: str, labels: LabelSet | None, split: str
) -> Labelled:
    """Read the tagged sentences of a split; `split` names it in messages and sentence ids.

    labels None: the first ClassLabel names of the sources, else the types of the tags seen.
    Raises CorpusError on a tag outside the set, words and tags of unequal number, an id twice in
    one source and language, and on a language without sentences.
    """
    sentences: list[Sentence] = []
    tally = Counter(repaired_tags=0, empty=0)
    seen: dict[str, str] = {}  # tag: where it came first
    ids: dict[tuple[int, str, str | None], str] = {}
    languages: set[str] = set()
    for source, place in _places(sources, f"data.{split}"):
        languages |= {place.language} if place.language else set()
        names = class_names(place)
        labels = labels or (_label_set(place, names, scheme) if names else None)
        names = names or (labels.tags if labels and scheme == "IOB2" else ())
        for row in read_rows(Span(place), labelled=True):
            language = place.language or row.language or UNKNOWN_LANGUAGE
            languages.add(language)
            key, where = (source, language, row.row_id), _where(place, row, 0)
            if row.row_id is not None and ids.setdefault(key, where) != where:
                raise CorpusError(f"{where}: id '{row.row_id}' again, it was in {ids[key]}")
            tags, repaired = to_iob2(_tags_of(place, row, names, scheme), scheme)
            if not _squeeze(row.content):
                tally["empty"] += 1
                continue
            tally["repaired_tags"] += repaired
            seen |= {tag: _where(place, row, tags.index(tag)) for tag in {*tags} - seen.keys()}
            name = f"{split}-{len(sentences)}"
            sentences.append(Sentence(name, language, None, tuple(row.content), tuple(tags)))
    _refuse_empty(Counter(sentence.language for sentence in sentences), languages, f"data.{split}")
    labels = labels or label_set_of(set(seen))
    for tag, where in seen.items():
        if tag not in labels.tags:
            raise CorpusError(
                f"{where}: tag '{tag}', expected one of {' '.join(labels.tags)}; correct the file, "
                "task.labels or data.scheme"
            )
    return Labelled(sentences, labels, {"sentences": len(sentences), **tally})


def text_keys(sentences: Iterable[Sentence]) -> frozenset[int]:
    """64-bit hashes of sentences, case-folded, without white space: equal for text and words."""
    return frozenset(_key(_squeeze(_content(sentence))) for sentence in sentences)


def inline_shards(sentences: Sequence[Sentence], shard_sentences: int) -> list[Shard]:
    """Cut sentences into shards that hold them, in their order; ids follow from shard and row."""
    shards: list[Shard] = []
    copies: Counter[str] = Counter()
    for start in range(0, len(sentences), shard_sentences):
        part = sentences[start : start + shard_sentences]
        shard_id, copy = _shard_id([(s.language, _content(s)) for s in part], copies)
        named = (replace(s, sentence_id=f"{shard_id[:16]}-{i}") for i, s in enumerate(part))
        shards.append(Shard(shard_id, len(part), copy=copy, sentences=tuple(named)))
    return shards


def read_shard(shard: Shard) -> list[Sentence]:
    """Return the sentences of a shard, reading no more of a file than the stretch that holds them.

    Raises CorpusError when the stretch no longer holds the sentences that were planned.
    """
    if shard.span is None:
        return list(shard.sentences)
    kept = np.unpackbits(np.frombuffer(zlib.decompress(shard.kept), dtype=np.uint8)).tolist()
    try:
        contents = [row.content for row in itertools.compress(read_rows(shard.span), kept)]
        shard_id = _hash([(shard.language, content) for content in contents], shard.copy)
        reason = "other sentences"
    except CorpusError as error:
        contents, shard_id, reason = [], "", str(error)
    if shard_id != shard.shard_id:
        unit = "rows" if shard.span.place.format in {"parquet", "hub"} else "bytes"
        raise CorpusError(
            f"{shard.span.place}: {unit} {shard.span.start} to {shard.span.stop} changed since the "
            f"text was planned ({reason}); put the file back, or run the command again"
        )
    parts = [(c, None) if isinstance(c, str) else (None, c) for c in contents]
    ids = (f"{shard_id[:16]}-{row}" for row in itertools.count())
    return [Sentence(next(ids), shard.language, text, words) for text, words in parts]


def plan_transfer(
    transfer: TransferConfig, excluded: frozenset[int], shard_sentences: int, seed: int
) -> TransferPlan:
    """Choose the transfer sentences and cut them into shards; the text itself is not kept.

    excluded: `text_keys` of dev and test; sentences among them are dropped and counted. With caps
    a first pass counts each language, and the choice is a uniform draw of the exact number.
    """
    places = [place for _, place in _places(transfer.sources, "data.transfer")]
    draws = _draws(transfer, places, excluded, seed)
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    copies: Counter[str] = Counter()
    shards: list[Shard] = []
    for place in places:
        unfinished: dict[str, list[tuple[int, Row]]] = defaultdict(list)
        for index, language, row in _eligible(place, excluded, tallies):
            if draws is not None and not draws[language].take():
                continue
            tallies[language]["taken"] += 1
            unfinished[language].append((index, row))
            if len(unfinished[language]) == shard_sentences:
                shards.append(_shard(place, language, unfinished.pop(language), copies))
        shards += [_shard(place, *rest, copies) for rest in unfinished.items()]
    if draws is None:
        taken = {name: tally["taken"] for name, tally in tallies.items()}
        _refuse_empty(taken, tallies, "data.transfer")
    elif any(draw.left for draw in draws.values()):
        raise CorpusError("data.transfer: a file changed while it was read; run the command again")
    return TransferPlan(shards, _counts(tallies))


def _counts(tallies: Mapping[str, Counter[str]]) -> dict:
    total = sum(tallies.values(), Counter())
    counts = {name: total[name] for name in ("read", "empty", "duplicates", "taken")}
    counts["left_by_cap"] = 2 * total["read"] - sum(counts.values())
    rows = sorted(tallies.items())
    by_language = {name: {"read": t["read"], "taken": t["taken"]} for name, t in rows}
    return {**counts, "by_language": by_language}


def _eligible(
    place: Place, excluded: frozenset[int], tallies: dict[str, Counter[str]]
) -> Iterator[tuple[int, str, Row]]:
    """Yield (index in the place, language, row) of rows neither empty nor excluded; count all."""
    if place.language:
        tallies[place.language].update()  # a file without rows is a language without sentences
    for index, row in enumerate(read_rows(Span(place))):
        language = place.language or row.language or UNKNOWN_LANGUAGE
        tally = tallies[language]
        tally["read"] += 1
        squeezed = _squeeze(row.content)
        if not squeezed:
            tally["empty"] += 1
        elif excluded and _key(squeezed) in excluded:
            tally["duplicates"] += 1
        else:
            yield index, language, row


class _Draw:
    """Exactly `wanted` of `left` rows to come, each subset as likely as any other.

    Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S).
    """

    def __init__(self, left: int, wanted: int, seed: str) -> None:
        self.left = left
        self.wanted = wanted
        self._random = random.Random(seed).random

    def take(self) -> bool:
        taken = self._random() * self.left < self.wanted
        self.left -= 1
        self.wanted -= taken
        return taken


def _draws(
    transfer: TransferConfig, places: Sequence[Place], excluded: frozenset[int], seed: int
) -> dict[str, _Draw] | None:
    """Count the eligible rows of each language and set up its draw; None: all are taken."""
    if transfer.cap is None and not transfer.caps and transfer.sentences is None:
        return None
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    counts: Counter[str] = Counter()
    for place in places:
        counts.update(language for _, language, _ in _eligible(place, excluded, tallies))
    wrong = [name for name, cap in transfer.caps.items() if name not in tallies or cap < 0]
    if wrong:
        raise ConfigError(
            f"data.transfer.caps: {wrong[0]}: {transfer.caps[wrong[0]]}, expected 0 or more for a "
            f"language of the text: {' '.join(sorted(tallies))}"
        )
    wanted = {name for name in tallies if transfer.caps.get(name) != 0}
    _refuse_empty(counts, wanted, "data.transfer")
    quotas = _quotas(counts, transfer)
    _refuse_empty(quotas, wanted, f"data.transfer.sentences = {transfer.sentences}")
    draws = {name: _Draw(counts[name], quotas[name], f"{seed} {name}") for name in quotas}
    return defaultdict(lambda: _Draw(0, 0, ""), draws)  # a language of later rows: files changed


def _quotas(counts: Mapping[str, int], transfer: TransferConfig) -> dict[str, int]:
    """Sentences to take of each language: what the caps leave, or shares of `sentences` of it.

    A language with less than its share is taken whole, the rest is shared out anew.
    """
    caps = {name: transfer.caps.get(name, transfer.cap) for name in sorted(counts)}
    limits = {n: counts[n] if cap is None else min(cap, counts[n]) for n, cap in caps.items()}
    left = transfer.sentences
    if left is None or left >= sum(limits.values()):
        return limits
    quotas: dict[str, int] = {}
    while True:
        weights = {n: counts[n] ** transfer.alpha for n in limits if n not in quotas}
        shares = {n: left * weight / sum(weights.values()) for n, weight in weights.items()}
        whole = {n: limits[n] for n, share in shares.items() if limits[n] <= share}
        if not whole:
            break
        quotas |= whole
        left -= sum(whole.values())
    quotas |= {n: int(share) for n, share in shares.items()}
    by_remainder = sorted(shares, key=lambda n: (int(shares[n]) - shares[n], n))
    for name in by_remainder[: left - sum(int(share) for share in shares.values())]:
        quotas[name] += 1
    return quotas


def _shard(
    place: Place, language: str, rows: Sequence[tuple[int, Row]], copies: Counter[str]
) -> Shard:
    """Describe a shard by its rows and their indices in the place."""
    (begin, first), (end, last) = rows[0], rows[-1]
    mask = np.zeros(end - begin + 1, dtype=bool)
    mask[[index - begin for index, _ in rows]] = True
    kept = zlib.compress(np.packbits(mask).tobytes())
    shard_id, copy = _shard_id([(language, row.content) for _, row in rows], copies)
    span = Span(place, first.start, last.stop, first.number)
    return Shard(shard_id, len(rows), language, span, kept, copy)


def _places(sources: Sequence[SourceConfig], where: str) -> list[tuple[int, Place]]:
    """Files and subsets of the sources, each with the number of its source."""
    found = [(number, p) for number, source in enumerate(sources) for p in _places_of(source)]
    for place, times in Counter(replace(place, language=None) for _, place in found).items():
        if times > 1:
            raise CorpusError(f"{where}: {place} is read {times} times; let one source name it")
    return found


def _places_of(source: SourceConfig) -> Iterator[Place]:
    columns = (source.words, source.tags, source.text)
    if source.hub is not None:
        name = str(Path(source.hub).absolute()) if Path(source.hub).is_dir() else source.hub
        for subset in source.subsets or [None]:
            language = _language(source, {"subset": subset} if subset else {})
            yield Place(name, "hub", *columns, language, subset, source.split)
    for path in expand(source.path) if source.path is not None else []:
        kind = format_of(path) if source.format == "auto" else source.format
        pure = PurePosixPath(path.partition("?")[0] if "://" in path else path)
        language = _language(source, {"stem": pure.stem, "parent": pure.parent.name})
        yield Place(path, kind, *columns, language)


def _language(source: SourceConfig, values: dict[str, str]) -> str | None:
    language = source.language
    for name, value in values.items():
        language = language and language.replace(f"{{{name}}}", value)
    if language and "{" in language:
        found = f"language '{source.language}' of {source.path or source.hub}"
        raise ConfigError(f"{found}: files have {{stem}} and {{parent}}, Hub `subsets` {{subset}}")
    return language


def _refuse_empty(counts: Mapping[str, int], languages: Iterable[str], where: str) -> None:
    empty = [name for name in sorted(languages) if not counts.get(name)]
    if empty or not any(counts.values()):
        what = f"of language {' '.join(empty)}" if empty else "at all"
        raise CorpusError(
            f"{where}: no sentence {what} is left after empty ones, duplicates and caps, expected "
            "one or more; add text, or take the source out"
        )


def _label_set(place: Place, names: list[str], scheme: str) -> LabelSet:
    foreign = [name for name in names if not is_tag(name, scheme)]
    if foreign:
        raise CorpusError(
            f"{place}: ClassLabel '{foreign[0]}' of '{place.tags}' is no tag of {scheme}; set "
            "data.scheme, or name the column in the source's `tags`"
        )
    whole = label_set_of(set(names))
    as_is = scheme == "IOB2" or set(names) == set(whole.tags)
    return LabelSet(tuple(names)) if as_is else whole


def _tags_of(place: Place, row: Row, names: Sequence[str], scheme: str) -> list[str]:
    """Tags of a row by name, one a word, in the scheme of the files."""
    given = row.tags or []
    if len(given) != len(row.content):
        found = f"{place}:{row.number}: {len(row.content)} words and {len(given)} tags"
        raise CorpusError(f"{found}, expected a tag for each word; correct the file")
    tags: list[str] = []
    for index, tag in enumerate(given):
        name = names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag
        if not isinstance(name, str) or not is_tag(name, scheme):
            allowed = f"one of {' '.join(names)}" if names else f"tags of {scheme} by name"
            raise CorpusError(
                f"{_where(place, row, index)}: tag {name!r}, expected {allowed}; correct the file, "
                "data.scheme or task.labels"
            )
        tags.append(name)
    return tags


def _where(place: Place, row: Row, index: int) -> str:
    """File and line of a word: in CoNLL each has its own."""
    return f"{place}:{row.number + (index if place.format == 'conll' else 0)}"


def _content(sentence: Sentence) -> Content:
    return sentence.words if sentence.words is not None else sentence.text or ""


def _squeeze(content: Content) -> str:
    text = content if isinstance(content, str) else "".join(content)
    return "".join(text.split()).casefold()


def _key(squeezed: str) -> int:
    return int.from_bytes(hashlib.blake2b(squeezed.encode(), digest_size=8).digest(), "little")


def _shard_id(sentences: Sequence[tuple[str, Content]], copies: Counter[str]) -> tuple[str, int]:
    """Hash of sentences, and how many shards of the same ones `copies` knew before."""
    first = _hash(sentences, 0)
    copy = copies[first]
    copies[first] += 1
    return (_hash(sentences, copy) if copy else first), copy


def _hash(sentences: Sequence[tuple[str, Content]], copy: int) -> str:
    """Hash the sizes of all parts, then the parts: text "a b" differs from words "a", "b"."""
    sizes, parts = [copy], []
    for language, content in sentences:
        sizes.append(-1 if isinstance(content, str) else len(content))
        for part in (language, content) if isinstance(content, str) else (language, *content):
            parts.append(part.encode())
            sizes.append(len(parts[-1]))
    hasher = hashlib.blake2b(np.array(sizes, dtype="<i8").tobytes(), digest_size=16)
    hasher.update(b"".join(parts))
    return hasher.hexdigest()
