"""Tagging: one tag a word. Its labels on tokens, its tags from logits, its entities.

N tokens, C classes.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from seqeval.metrics.sequence_labeling import get_entities

from xdray.agreement import class_agreement
from xdray.alignment import match_words
from xdray.config import TaskConfig
from xdray.config_data import SourceConfig
from xdray.corpus import Labelled
from xdray.entities import entity_counts, entity_scores, f1_of
from xdray.labels import IGNORE_INDEX, OUTSIDE, LabelSet, tag_set
from xdray.places import Row
from xdray.sentences import Content, Sentence, text_of
from xdray.tagged import read_tagged
from xdray.task import Reading, Scores, Task, head_of
from xdray.tokenised import Tokens
from xdray.tokens import Encoded, encode, is_first
from xdray.words import split_words, words_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from xdray.batches import Batch
    from xdray.stages import Term

Entity = tuple[str, int, int]
"""(type, first word, last word), both inside."""


class Tagging(Task):
    """Named entities and other spans of words, as IOB2 tags."""

    model_class: ClassVar[str] = "AutoModelForTokenClassification"
    metrics: ClassVar[Mapping[str, str]] = {
        "entity_f1": "Entity F1",
        "entity_f1_strict": "Entity F1, strict IOB2",
        "mean_language_f1": "Entity F1, mean over languages",
        "macro_f1": "Entity F1, mean over types",
        "precision": "Precision",
        "recall": "Recall",
    }
    about: ClassVar[str] = (
        "F1 is of whole entities (seqeval, default mode where not said otherwise), in percent."
    )
    noun: ClassVar[str] = "A token classifier"
    pipeline: ClassVar[str] = "token-classification"
    usage: ClassVar[str] = (
        "from transformers import pipeline\n\n"
        'tagger = pipeline("token-classification", "{folder}"{remote},\n'
        '                  aggregation_strategy="first")\n'
        'print(tagger([["Anna", "lives", "in", "Lyon", "."]], is_split_into_words=True))'
    )
    gold: ClassVar[str] = "tags"
    sentence_logits: ClassVar[bool] = False
    sentence_labels: ClassVar[bool] = False
    keeps_special: ClassVar[bool] = False
    schema: ClassVar[Sequence[tuple[str, pa.DataType]]] = (
        (
            "entities",
            pa.list_(
                pa.struct(
                    [
                        ("type", pa.string()),
                        ("start", pa.int32()),
                        ("end", pa.int32()),
                        ("text", pa.string()),
                        ("score", pa.float32()),
                    ]
                )
            ),
        ),
    )

    @classmethod
    def given_labels(cls, settings: TaskConfig) -> LabelSet:
        """Return the tag set that the config names; empty where it leaves it to the data."""
        return tag_set(settings.labels) if settings.labels else LabelSet(())

    def read(self, sources: Sequence[SourceConfig], split: str) -> Labelled:
        """Read the tagged sentences of a split."""
        return read_tagged(sources, self.scheme, self.labels or None, split)

    def gold_of(self, here: str, row: Row, labels: LabelSet) -> Any:
        """`read` does it: a tag may set the labels."""
        raise NotImplementedError

    def encode(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        contents: Sequence[Content],
        spans: bool = False,
    ) -> Encoded:
        """Tokens of sentences, word by word; never with spans."""
        words = [words_of(content, self.word_rule) for content in contents]
        return encode(tokenizer, words, self.max_length)

    def match(
        self, own: Encoded, teacher: Encoded, contents: Sequence[Content]
    ) -> NDArray[np.int32]:
        """Words are cut before tokens are: by word."""
        return match_words(own, teacher)

    def label_array(self, tokens: Tokens, sentences: Sequence[Sentence]) -> NDArray[np.int64]:
        """(N,) the word's label on its first token."""
        return token_labels(tokens, self.golds(sentences), self.labels)

    def label_loss(self, logits: "Tensor", labels: "Tensor", batch: "Batch") -> "Tensor":
        """Cross-entropy over first tokens of words."""
        from xdray import losses

        return losses.label_loss(logits, labels)

    def logit_loss(
        self, term: "Term", logits: "Tensor", target: "Tensor", batch: "Batch"
    ) -> "Tensor":
        """As the base, over all kept tokens or the first ones of words."""
        if term.tokens == "first":
            logits, target = logits[batch.first], target[batch.first]
        return super().logit_loss(term, logits, target, batch)

    def logit_count(self, term: "Term", batch: "Batch") -> int:
        """Tokens."""
        return len(batch.first if term.tokens == "first" else batch.kept)

    def decode(
        self, logits: NDArray[np.float32], tokens: Tokens, sentences: Sequence[Sentence]
    ) -> list[list[str]]:
        """Best tag of each word."""
        return decode_tags(logits, tokens, self._num_words(sentences), self.labels)

    def golds(self, sentences: Sequence[Sentence]) -> list[list[str]]:
        """Tags of each sentence."""
        return [list(sentence.gold or ()) for sentence in sentences]

    def scores(
        self, gold: Sequence[Any], predicted: Sequence[Any], languages: Sequence[str]
    ) -> Scores:
        """Entity scores, by language and by type too."""
        return entity_scores(gold, predicted, languages)

    def figures(self, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
        """Entity scores as if all were of one language."""
        found = entity_scores(gold, predicted, [""] * len(gold))
        return {name: found[name] for name in self.metrics}

    def statistics(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(S, 3) entities in both, predicted, gold."""
        return entity_counts(gold, predicted, self.metric).astype(np.float64)

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """F1; NaN where there is no gold entity."""
        return np.where(sums[..., 2] > 0, f1_of(sums), np.nan)

    @property
    def means_over_languages(self) -> bool:
        """Whether the metric is the mean over languages of theirs."""
        return self.metric == "mean_language_f1"

    def agreement(
        self, teacher: Reading, student: Reading, sentences: Sequence[Sentence]
    ) -> dict[str, Any]:
        """Over the words that both could read."""
        counts = self._num_words(sentences)
        ours, theirs = (word_logits(its.logits, its.tokens, counts) for its in (teacher, student))
        both = np.isfinite(ours[:, 0]) & np.isfinite(theirs[:, 0])
        found = class_agreement(ours[both], theirs[both])
        return {"equal_tags": found["equal"], "mean_kl": found["mean_kl"], "words": found["units"]}

    def _num_words(self, sentences: Sequence[Sentence]) -> list[int]:
        return [len(words_of(sentence.content, self.word_rule)) for sentence in sentences]

    def records(
        self, run: Any, tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sentence]
    ) -> list[dict[str, Any]]:
        """Entities with character offsets; a sentence too long for the model is read in windows."""
        texts = [text_of(sentence.content) for sentence in sentences]
        spans = [
            joined_spans(s.content)
            if isinstance(s.content, tuple)
            else split_words(text, self.word_rule)
            for text, s in zip(texts, sentences, strict=True)
        ]
        words = [
            [text[start:stop] for start, stop in its]
            for text, its in zip(texts, spans, strict=True)
        ]
        tags, scores = self._tag(run, tokenizer, words)
        return [
            {
                **head_of(sentence),
                "entities": [
                    {
                        "type": kind,
                        "start": its[first][0],
                        "end": its[last][1],
                        "text": text[its[first][0] : its[last][1]],
                        "score": round(float(np.mean(score[first : last + 1])), 4),
                    }
                    for kind, first, last in entities_of(tag)
                ],
            }
            for sentence, text, its, tag, score in zip(
                sentences, texts, spans, tags, scores, strict=True
            )
        ]

    def _tag(
        self, run: Any, tokenizer: "PreTrainedTokenizerFast", words: list[list[str]]
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Tag and score of each word."""
        tags: list[list[str]] = [[] for _ in words]
        scores: list[list[float]] = [[] for _ in words]
        left = [row for row, its in enumerate(words) if its]
        while left:
            rest = [words[row][len(tags[row]) :] for row in left]
            encoded = encode(tokenizer, rest, self.max_length)
            bounds = itertools.pairwise(encoded.offsets.tolist())
            kept = [  # up to the last word read; behind a cut the next window begins
                max(1, 1 + int(encoded.word_ids[start:stop].max())) if cut else len(its)
                for its, cut, (start, stop) in zip(rest, encoded.cut_words, bounds, strict=True)
            ]
            tokens = self.mark(Tokens(encoded.ids, encoded.word_ids, encoded.offsets))
            logits = run(tokens)
            decoded = decode_tags(logits, tokens, kept, self.labels)
            for row, its, score in zip(
                left, decoded, word_scores(logits, tokens, kept), strict=True
            ):
                tags[row] += its
                scores[row] += score
            left = [row for row in left if len(tags[row]) < len(words[row])]
        return tags, scores


TASK = Tagging


def first_tokens(tokens: Tokens) -> NDArray[np.bool_]:
    """(N,) True on the first token of each word."""
    return is_first(tokens.word_ids, tokens.offsets)


def token_labels(
    tokens: Tokens, tags: Sequence[Sequence[str]], labels: LabelSet
) -> NDArray[np.int64]:
    """(N,) the word's label on its first token, else IGNORE_INDEX. tags: a list a sentence."""
    ids = labels.ids
    lengths = np.array([len(sentence) for sentence in tags], dtype=np.int64)
    words = np.array([ids[tag] for sentence in tags for tag in sentence], dtype=np.int64)
    begin = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
    first = first_tokens(tokens)
    flat = np.full(len(tokens.word_ids), IGNORE_INDEX, dtype=np.int64)
    flat[first] = words[np.repeat(begin, tokens.lengths)[first] + tokens.word_ids[first]]
    return flat


def decode_tags(
    logits: NDArray[np.float32], tokens: Tokens, num_words: Sequence[int], labels: LabelSet
) -> list[list[str]]:
    """Best tag of each word; a word without a token (cut off, or unreadable) is O."""
    best = logits.argmax(-1)
    first = first_tokens(tokens)
    sentences = np.repeat(np.arange(len(num_words)), tokens.lengths)[first]
    result = [[OUTSIDE] * count for count in num_words]
    for sentence, word, label in zip(
        sentences.tolist(), tokens.word_ids[first].tolist(), best[first].tolist(), strict=True
    ):
        result[sentence][word] = labels.names[label]
    return result


def word_logits(
    logits: NDArray[np.float32], tokens: Tokens, num_words: Sequence[int]
) -> NDArray[np.float32]:
    """(words, C) logits of each word's first token, NaN rows for words without a token."""
    first = first_tokens(tokens)
    begin = np.concatenate([[0], np.cumsum(num_words)]).astype(np.int64)
    result = np.full((int(begin[-1]), logits.shape[1]), np.nan, dtype=np.float32)
    result[np.repeat(begin[:-1], tokens.lengths)[first] + tokens.word_ids[first]] = logits[first]
    return result


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Entities of one sentence as seqeval reads them: an I- after O or another type starts one."""
    return [(kind, first, last) for kind, first, last in get_entities(list(tags))]


def joined_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word stands in the words joined by single spaces."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def word_scores(
    logits: NDArray[np.float32], tokens: Tokens, num_words: Sequence[int]
) -> list[list[float]]:
    """Probability of the best tag on each word's first token; 0 for a word without a token."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    best = 1 / shifted.sum(-1)
    first = first_tokens(tokens)
    sentences = np.repeat(np.arange(len(num_words)), tokens.lengths)[first]
    result = [[0.0] * count for count in num_words]
    for sentence, word, score in zip(
        sentences.tolist(), tokens.word_ids[first].tolist(), best[first].tolist(), strict=True
    ):
        result[sentence][word] = score
    return result
