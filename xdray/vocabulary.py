"""A student's vocabulary: the teacher's, cut to the tokens of the text (P1 section 2.1).

Letters: V ids of a vocabulary. WordPiece and Unigram; the tokenizer is rebuilt from its own JSON.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xdray.errors import ConfigError
from xdray.tokens import SENTENCES_PER_CALL
from xdray.wordpieces import unlimited

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

METASPACE = "\u2581"  # begins a word in a Unigram vocabulary
TOKENIZER_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "extra_special_tokens",
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """A tokenizer that kept a part of its vocabulary, and where its ids came from."""

    tokenizer: "PreTrainedTokenizerFast"
    teacher_ids: npt.NDArray[np.int64]
    """(V_student,) id in the full vocabulary of each kept token."""
    student_ids: npt.NDArray[np.int64]
    """(V_teacher,) id in the pruned vocabulary, -1 where dropped."""


def prune_tokenizer(tokenizer: "PreTrainedTokenizerFast", used: npt.NDArray[np.bool_]) -> Pruned:
    """Cut a vocabulary to the used tokens, its special and added tokens, and single characters.

    used: (V_teacher,) bool, True on ids seen; V_teacher may exceed the vocabulary (padded
    embedding tables). WordPiece and Unigram. Words whose tokens are all kept segment as before: a
    subset of the pieces leaves WordPiece's longest match and Unigram's best path where they were,
    since each character of a used piece stays a piece (one without gets the unknown token's score)
    and the lowest score, from which Unigram takes the unknown one's, stays too.
    Ids keep their order. The result is a PreTrainedTokenizerFast, whatever the class was: others
    are rebuilt from the vocabulary when loaded, and lose a customised normaliser. Raises
    ConfigError for other kinds of vocabulary.
    """
    from tokenizers import Tokenizer

    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = rules["model"], rules["added_tokens"]
    kind = model.get("type")
    if kind not in {"WordPiece", "Unigram"}:
        raise ConfigError(
            f"tokens.vocabulary: pruned, but the teacher has a {kind} vocabulary, expected "
            "WordPiece or Unigram (merges need their ancestors); set tokens.vocabulary: full"
        )
    pieces = _pieces(model)
    added_ids = sorted(token["id"] for token in added)
    size = max([*pieces.values(), *added_ids]) + 1
    if len(used) < size:
        raise ConfigError(
            f"the teacher's table has {len(used)} rows, its tokenizer ids up to {size - 1}; "
            "load the tokenizer that belongs to the teacher"
        )
    is_piece = np.zeros(len(used), np.bool_)
    is_piece[list(pieces.values())] = True
    keep = used.copy()
    keep[[*_always_kept(model, pieces, used), *added_ids]] = True
    # Added tokens that are no pieces come last: that is where a Tokenizer puts them.
    beyond = [index for index in added_ids if not is_piece[index]]
    teacher_ids = np.asarray([*np.flatnonzero(keep & is_piece), *beyond], np.int64)
    student_ids = np.full(len(used), -1, np.int64)
    student_ids[teacher_ids] = np.arange(len(teacher_ids))
    _renumber(rules, student_ids.tolist())
    pruned = _like(tokenizer, Tokenizer.from_str(json.dumps(rules)))
    return Pruned(pruned, teacher_ids, student_ids)


def _pieces(model: dict[str, Any]) -> dict[str, int]:
    """Piece to id of a model's own vocabulary."""
    if model["type"] == "WordPiece":
        return model["vocab"]
    return {piece: index for index, (piece, _) in enumerate(model["vocab"])}


def _always_kept(
    model: dict[str, Any], pieces: dict[str, int], used: npt.NDArray[np.bool_]
) -> list[int]:
    """Ids of the unknown token, of the single characters of used pieces, and what scores need."""
    seen = [piece for piece, index in pieces.items() if used[index]]
    kept: list[int] = []
    if model["type"] == "WordPiece":
        mark = model["continuing_subword_prefix"]
        kept.append(pieces[model["unk_token"]])
    else:
        mark = METASPACE
        lowest = min(pieces, key=lambda piece: model["vocab"][pieces[piece]][1])
        seen.append(lowest)
        kept.append(pieces[lowest])
        if model["unk_id"] is not None:
            kept.append(model["unk_id"])
        if model.get("byte_fallback"):
            kept.extend(pieces[byte] for byte in map("<0x{:02X}>".format, range(256)))
    for character in set().union(*seen):
        forms = (character, mark + character)
        kept.extend(pieces[form] for form in forms if form in pieces)
    return kept


def _renumber(rules: dict[str, Any], student_ids: list[int]) -> None:
    """Put the new ids into a tokenizer's rules, in place; dropped pieces leave."""
    model = rules["model"]
    if model["type"] == "WordPiece":
        new = {piece: student_ids[index] for piece, index in model["vocab"].items()}
        model["vocab"] = {piece: index for piece, index in new.items() if index >= 0}
    else:
        model["vocab"] = [
            entry for index, entry in enumerate(model["vocab"]) if student_ids[index] >= 0
        ]
        if model["unk_id"] is not None:
            model["unk_id"] = student_ids[model["unk_id"]]
    for token in rules["added_tokens"]:
        token["id"] = student_ids[token["id"]]
    rules["added_tokens"].sort(key=lambda token: token["id"])
    rules["truncation"] = rules["padding"] = None  # state of the last call; padding holds an id
    _renumber_processor(rules["post_processor"] or {}, student_ids)


def _renumber_processor(step: dict[str, Any], student_ids: list[int]) -> None:
    for inner in step.get("processors", ()):  # a sequence
        _renumber_processor(inner, student_ids)
    for token in (step.get("special_tokens") or {}).values():  # a template
        token["ids"] = [student_ids[index] for index in token["ids"]]
    for end in ("sep", "cls"):  # BERT's and RoBERTa's own
        if end in step:
            step[end][1] = student_ids[step[end][1]]


def _like(tokenizer: "PreTrainedTokenizerFast", backend: "Tokenizer") -> "PreTrainedTokenizerFast":
    """Wrap a Rust tokenizer with the settings of another."""
    from transformers import PreTrainedTokenizerFast

    settings = {name: getattr(tokenizer, name) for name in TOKENIZER_SETTINGS}
    names = tokenizer.special_tokens_map
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **settings)


def compare_segmentation(
    teacher_tokenizer: "PreTrainedTokenizerFast",
    student_tokenizer: "PreTrainedTokenizerFast",
    sentences: Iterable[Sequence[str]],
) -> dict[str, int]:
    """Count the words that two tokenizers see differently, each occurrence for itself.

    unknown: the student has an unknown token where the teacher has none. resegmented: other tokens
    without that.
    """
    counts = Counter(itertools.chain.from_iterable(sentences))
    result = {"words": counts.total(), "resegmented": 0, "unknown": 0}
    distinct = list(counts)
    for start in range(0, len(distinct), SENTENCES_PER_CALL):
        words = distinct[start : start + SENTENCES_PER_CALL]
        segments = [_segments(one, words) for one in (teacher_tokenizer, student_tokenizer)]
        for word, (tokens, unknown), (student_tokens, student_unknown) in zip(
            words, *segments, strict=True
        ):
            if student_unknown and not unknown:
                result["unknown"] += counts[word]
            elif tokens != student_tokens:
                result["resegmented"] += counts[word]
    return result


def _segments(
    tokenizer: "PreTrainedTokenizerFast", words: list[str]
) -> Iterator[tuple[list[str], bool]]:
    """Tokens of each word, and whether one of them is the unknown token."""
    encodings = unlimited(tokenizer).encode_batch(
        [[word] for word in words], is_pretokenized=True, add_special_tokens=False
    )
    return ((one.tokens, tokenizer.unk_token_id in one.ids) for one in encodings)
