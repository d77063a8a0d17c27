"""Labelled text with a tag a word: tags checked against the set, read from any scheme into IOB2."""

from collections import Counter
from collections.abc import Sequence

from xdray.config_data import SourceConfig
from xdray.corpus import Labelled, labelled_rows, where
from xdray.errors import CorpusError
from xdray.labels import OUTSIDE, LabelSet, is_tag, label_set_of, tag_set, to_iob2
from xdray.places import Place, Row
from xdray.readers import class_names
from xdray.sentences import Sentence


def read_tagged(
    sources: Sequence[SourceConfig], scheme: str, labels: LabelSet | None, split: str
) -> Labelled:
    """Read the tagged sentences of a split; `split` names it in messages and sentence ids.

    labels None: the first ClassLabel names of the sources, else the types of the tags seen.
    Raises CorpusError on a tag outside the set, words and tags of unequal number, an id twice in
    one source and language, and on a language without sentences.
    """
    sentences: list[Sentence] = []
    counts: Counter[str] = Counter(repaired_tags=0, empty=0)
    seen: dict[str, str] = {}  # tag: where it came first
    names: dict[Place, Sequence[str]] = {}
    for place, row, language in labelled_rows(sources, split, "tags", counts):
        if place not in names:
            given = class_names(place, "tags")
            labels = labels or (_label_set(place, given, scheme) if given else None)
            names[place] = given or (labels.names if labels and scheme == "IOB2" else ())
        tags, repaired = to_iob2(_tags_of(place, row, names[place], scheme), scheme)
        counts["repaired_tags"] += repaired
        seen |= {tag: where(place, row, tags.index(tag)) for tag in {*tags} - seen.keys()}
        name = f"{split}-{len(sentences)}"
        sentences.append(Sentence(name, language, row.content, tuple(tags)))
    labels = labels or label_set_of(set(seen))
    for tag, place in seen.items():
        if tag not in labels.names:
            raise CorpusError(
                f"{place}: tag '{tag:.60}', expected one of {' '.join(labels.names):.200}; correct "
                "the file, task.labels or data.scheme"
            )
    return Labelled(sentences, labels, {"sentences": len(sentences), **counts})


def _label_set(place: Place, names: list[str], scheme: str) -> LabelSet:
    foreign = [name for name in names if not is_tag(name, scheme)]
    if foreign:
        raise CorpusError(
            f"{place}: ClassLabel '{foreign[0]}' of '{place.tags}' is no tag of {scheme}; set "
            "data.scheme, or name the column in the source's `tags`"
        )
    whole = label_set_of(set(names))
    as_is = scheme == "IOB2" or set(names) == set(whole.names)
    if as_is and OUTSIDE not in names:
        found = f"{place}: ClassLabel names of '{place.tags}' are {names!r:.60}"
        raise CorpusError(f"{found}, they lack 'O', the tag outside entities; write the file anew")
    return tag_set(names) if as_is else whole


def _tags_of(place: Place, row: Row, names: Sequence[str], scheme: str) -> list[str]:
    """Tags of a row by name, one a word, in the scheme of the files."""
    given, words = row.gold or [], row.content
    assert not isinstance(words, str), "a reader of tags gives words"
    num_words = len(words) if isinstance(words, tuple) else 0
    if len(given) != num_words:
        found = f"{place}:{row.number}: {num_words} words and {len(given)} tags"
        raise CorpusError(f"{found}, expected a tag for each word; correct the file")
    tags: list[str] = []
    for index, tag in enumerate(given):
        is_id = isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(names)
        name = names[tag] if is_id else tag
        if not isinstance(name, str) or not is_tag(name, scheme):
            allowed = f"one of {' '.join(names):.200}" if names else f"tags of {scheme} by name"
            raise CorpusError(
                f"{where(place, row, index)}: tag {name!r:.60}, expected {allowed}; correct the "
                "file, data.scheme or task.labels"
            )
        tags.append(name)
    return tags
