"""Text in: labelled sentences for people's tags, shards of unlabelled ones for the teacher.

Labelled text is held in memory, its size bounded by people's labour. Transfer text never is: a
plan is made in passes that keep one open shard a language, and a shard is a descriptor from which
its sentences are read again. A shard crosses neither a file nor a language, and bears the hash of
its sentences: the same text in the same order has the same `shard_id` wherever it lies.
"""

import itertools
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from xdray.config_data import SourceConfig, TransferConfig
from xdray.errors import ConfigError, CorpusError
from xdray.labels import LabelSet
from xdray.places import TABLES, Place, Row, Span, expand, format_of
from xdray.readers import read_rows
from xdray.redaction import redact
from xdray.sampling import Draw, share_out
from xdray.sentences import (
    Sentence,
    about_tokens,
    key_of,
    shard_hash,
    shard_id_of,
    squeeze,
    text_keys,
)
from xdray.windows import Windows

__all__ = [
    "Labelled",
    "Sentence",
    "Shard",
    "TransferPlan",
    "inline_shards",
    "labelled_rows",
    "places_of_sources",
    "plan_transfer",
    "read_shard",
    "text_keys",
]

UNKNOWN_LANGUAGE = "und"
TOKENS_A_SENTENCE = 32
"""A shard holds fewer sentences where they are longer: what the teacher says of it is in memory."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some sentences: where they are read again, or (dev, test) themselves."""

    shard_id: str
    """32 hex digits: hash of (language, text or words) of the sentences in order."""
    rows: int
    language: str = ""
    """Of all sentences; "": each knows its own."""
    span: Span | None = None
    """The stretch of input that holds them; None: they are inline."""
    kept: bytes = b""
    """Which rows of the stretch are of the shard: a bit each, packed, zlib."""
    copy: int = 0
    """How many shards of the same sentences came before: part of the hash, so that ids differ."""
    sentences: tuple[Sentence, ...] = ()

    def __str__(self) -> str:
        """As errors name it."""
        place = "dev or test" if self.span is None else self.span.place
        return f"{self.shard_id} ({place}, {self.rows} sentences)"


@dataclass(frozen=True, slots=True)
class Labelled:
    """The sentences of a labelled split. counts: sentences, empty (dropped), and the task's own."""

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


def labelled_rows(
    sources: Sequence[SourceConfig],
    split: str,
    gold: str,
    counts: Counter[str],
    windows: Windows | None = None,
) -> Iterator[tuple[Place, Row, str]]:
    """Yield (place, row, language) of a labelled split; `split` names it in messages.

    gold: "tags" or "label". counts: told of the `empty` rows that are dropped. Raises CorpusError
    on an id twice in one source and language, and on a language without sentences.
    """
    ids: dict[tuple[int, str, str | None], str] = {}
    languages: set[str] = set()
    kept: Counter[str] = Counter()
    for source, place in places_of_sources(sources, f"data.{split}", windows):
        languages |= {place.language} if place.language else set()
        for row in read_rows(Span(place), gold):
            language = _language_of(place, row)
            languages.add(language)
            key, here = (source, language, row.row_id), where(place, row)
            known = row.row_id is not None and row.part == 0
            if known and ids.setdefault(key, here) != here:
                raise CorpusError(f"{here}: id {row.row_id!r:.60} again, it was in {ids[key]}")
            if not squeeze(row.content):
                counts["empty"] += 1
                continue
            kept[language] += 1
            yield place, row, language
    _refuse_empty(kept, languages, f"data.{split}")


def inline_shards(sentences: Sequence[Sentence], shard_sentences: int) -> list[Shard]:
    """Cut sentences into shards that hold them, in their order; ids follow from shard and row."""
    shards: list[Shard] = []
    copies: Counter[str] = Counter()
    for start in range(0, len(sentences), shard_sentences):
        part = sentences[start : start + shard_sentences]
        shard_id, copy = shard_id_of([(s.language, s.content) for s in part], copies)
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
        place = shard.span.place
        known = [
            (shard.language or _language_of(place, row), row.content)
            for row in itertools.compress(read_rows(shard.span), kept)
        ]
        shard_id, reason = shard_hash(known, shard.copy), "other sentences"
    except CorpusError as error:
        known, shard_id, reason = [], "", str(error)
    if shard_id != shard.shard_id:
        unit = "rows" if shard.span.place.format in TABLES else "bytes"
        raise CorpusError(
            f"{shard.span.place}: {unit} {shard.span.start} to {shard.span.stop} changed since the "
            f"text was planned ({reason}); put the file back, or run the command again"
        )
    return [
        Sentence(f"{shard_id[:16]}-{row}", language, content)
        for row, (language, content) in enumerate(known)
    ]


def plan_transfer(
    transfer: TransferConfig,
    excluded: frozenset[int],
    shard_sentences: int,
    seed: int,
    windows: Windows | None = None,
    in_order: bool = False,
    max_length: int | None = None,
) -> TransferPlan:
    """Choose the transfer sentences and cut them into shards; the text itself is not kept.

    excluded: `text_keys` of dev and test; sentences among them are dropped and counted. With caps
    a first pass counts each language, and the choice is a uniform draw of the exact number.
    shard_sentences: at most; with max_length, fewer where they have more than TOKENS_A_SENTENCE
    tokens, about, of so many at most. in_order: shards follow the text, all languages of it.
    """
    found = places_of_sources(transfer.sources, "data.transfer", windows)
    places = [place for _, place in found]
    draws = _draws(transfer, places, excluded, seed)
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    copies: Counter[str] = Counter()
    shards: list[Shard] = []
    for place in places:
        unfinished: dict[str, list[tuple[int, Row]]] = defaultdict(list)
        tokens: Counter[str] = Counter()
        for index, language, row in _eligible(place, excluded, tallies):
            if draws is not None and not draws[language].take():
                continue
            tallies[language]["taken"] += 1
            of = "" if in_order else language
            unfinished[of].append((index, row))
            if max_length is not None:
                tokens[of] += about_tokens(row.content, max_length)
            is_long = tokens[of] >= shard_sentences * TOKENS_A_SENTENCE
            if is_long or len(unfinished[of]) == shard_sentences:
                shards.append(_shard(place, of, unfinished.pop(of), copies))
                del tokens[of]
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
        language = _language_of(place, row)
        tally = tallies[language]
        tally["read"] += 1
        squeezed = squeeze(row.content)
        if not squeezed:
            tally["empty"] += 1
        elif excluded and key_of(squeezed) in excluded:
            tally["duplicates"] += 1
        else:
            yield index, language, row


def _draws(
    transfer: TransferConfig, places: Sequence[Place], excluded: frozenset[int], seed: int
) -> dict[str, Draw] | None:
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
    caps = {name: transfer.caps.get(name, transfer.cap) for name in sorted(counts)}
    limits = {n: counts[n] if cap is None else min(cap, counts[n]) for n, cap in caps.items()}
    quotas = share_out(counts, limits, transfer.sentences, transfer.alpha)
    _refuse_empty(quotas, wanted, f"data.transfer.sentences = {transfer.sentences}")
    draws = {name: Draw(counts[name], quotas[name], f"{seed} {name}") for name in quotas}
    return defaultdict(lambda: Draw(0, 0, ""), draws)  # a language of later rows: files changed


def _shard(
    place: Place, language: str, rows: Sequence[tuple[int, Row]], copies: Counter[str]
) -> Shard:
    """Describe a shard by its rows and their indices in the place."""
    (begin, first), (end, last) = rows[0], rows[-1]
    mask = np.zeros(end - begin + 1, dtype=bool)
    mask[[index - begin for index, _ in rows]] = True
    kept = zlib.compress(np.packbits(mask).tobytes())
    known = [(language or _language_of(place, row), row.content) for _, row in rows]
    shard_id, copy = shard_id_of(known, copies)
    span = Span(place, first.start, last.stop, first.number, first.part)
    return Shard(shard_id, len(rows), language, span, kept, copy)


def places_of_sources(
    sources: Sequence[SourceConfig], where: str, windows: Windows | None = None
) -> list[tuple[int, Place]]:
    """Files and subsets of the sources, each with the number of its source."""
    found = [
        (number, replace(place, windows=windows))
        for number, source in enumerate(sources)
        for place in _places_of(source)
    ]
    for place, times in Counter(replace(place, language=None) for _, place in found).items():
        if times > 1:
            raise CorpusError(f"{where}: {place} is read {times} times; let one source name it")
    return found


def _places_of(source: SourceConfig) -> Iterator[Place]:
    columns = (source.words, source.tags, source.text)
    more: dict[str, Any] = {
        "pair": source.pair,
        "label": source.label,
        "header": source.header,
        "short_rows": source.short_rows,
        "rows": source.row_range,
    }
    if source.hub is not None:
        name = str(Path(source.hub).absolute()) if Path(source.hub).is_dir() else source.hub
        for subset in source.subsets or [None]:
            language = _language(source, {"subset": subset} if subset else {})
            yield Place(name, "hub", *columns, language, subset, source.split, **more)
    for path in expand(source.path) if source.path is not None else []:
        kind = format_of(path) if source.format == "auto" else source.format
        pure = PurePosixPath(redact(path.partition("?")[0] if "://" in path else path))
        language = _language(source, {"stem": pure.stem, "parent": pure.parent.name})
        yield Place(path, kind, *columns, language, **more)


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


def _language_of(place: Place, row: Row) -> str:
    return place.language or row.language or UNKNOWN_LANGUAGE


def where(place: Place, row: Row, index: int = 0) -> str:
    """File and line of a word: in CoNLL each has its own."""
    return f"{place}:{row.number + (index if place.format == 'conll' else 0)}"
