"""What a kind of task is: the one interface through which the rest of the house sees tasks/.

A `Task` reads gold, says what a model's logits mean, scores them, and picks the losses against gold
and teacher. The defaults here are those of a task with one row of logits a sentence; no torch is
imported before a loss is asked for.

N tokens of all sentences end to end, S sentences, U units that are scored (sentences; questions
where windows of a text belong together), C classes.
"""

import abc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xdray.alignment import match_characters
from xdray.config import TaskConfig
from xdray.config_data import SourceConfig
from xdray.corpus import Labelled, labelled_rows, where
from xdray.errors import ConfigError
from xdray.labels import LabelSet
from xdray.places import Place, Row
from xdray.readers import class_names
from xdray.sentences import Content, Sentence, TextPair, text_of
from xdray.tokenised import Tokens
from xdray.tokens import Encoded, encode_texts
from xdray.windows import Windows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from xdray.batches import Batch
    from xdray.stages import Term

Scores = dict[str, Any]


class Reading(NamedTuple):
    """What a model made of a split."""

    logits: NDArray[np.float32]
    """(N, C) or (S, C)."""
    tokens: Tokens
    said: Sequence[Any]
    """(U,) decided predictions."""


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """One kind of task with its labels. Picklable."""

    labels: LabelSet
    """Names in the order of the logits; empty until the data is read, where the config names none.
    """
    metric: str
    """Decides on dev, and is the base of retention."""
    settings: TaskConfig
    word_rule: str
    max_length: int
    scheme: str
    teacher_labels: tuple[str, ...] = ()
    """Names of the teacher's labels where its config.json has none."""

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """Of transformers."""
    metrics: ClassVar[Mapping[str, str]]
    """Name to title; the first is the default."""
    about: ClassVar[str]
    """What the figures are, a sentence for reports."""
    noun: ClassVar[str] = "A text classifier"
    """What a model card calls the student."""
    pipeline: ClassVar[str] = "text-classification"
    """The Hub's name for it."""
    usage: ClassVar[str] = (
        "from transformers import pipeline\n\n"
        'classify = pipeline("text-classification", "{folder}"{remote})\n'
        'print(classify("A text."))  # a pair: {{"text": "One.", "text_pair": "Another."}}'
    )
    """Python that loads a student; {folder} and {remote} are filled in."""
    gold: ClassVar[str] = "label"
    """Kind of column that people's answers stand in: label or tags."""
    sentence_logits: ClassVar[bool] = True
    """Whether a model gives logits (B, C); else (B, T, C)."""
    sentence_labels: ClassVar[bool] = True
    """Whether `label_array` has a row a sentence; else one a token."""
    keeps_special: ClassVar[bool] = True
    """Whether losses see special tokens too."""
    named_labels: ClassVar[bool] = True
    """Whether labels have names that teacher and data must agree on."""
    head_width: ClassVar[int | None] = None
    """Scores a row that a model must give; None: one a label."""
    has_gold: ClassVar[bool] = True
    """Whether there is labelled text to learn from and score on."""
    has_classes: ClassVar[bool] = True
    """Whether logits are scores of classes: soft targets and hard labels make sense."""
    stretch_logits: ClassVar[str] = "first"
    """What the logits of a stretch of tokens are: those of its first, or their logsumexp."""

    @property
    def kind(self) -> str:
        """Name of the kind, that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def model_settings(self) -> dict[str, Any]:
        """What a model's config.json says of the task."""
        return {"id2label": self.labels.id2label, "label2id": self.labels.ids}

    @property
    def own_metrics(self) -> Sequence[str]:
        """Names of the metrics that it has with its labels."""
        return list(self.metrics)

    chooses = False
    """Whether something is chosen on dev to `decide` by."""

    @property
    def windows(self) -> Windows | None:
        """How long second texts are cut; None: they are not."""
        return None

    @property
    def means_over_languages(self) -> bool:
        """Whether the metric is the mean over languages of theirs."""
        return False

    # text

    @classmethod
    def given_labels(cls, settings: TaskConfig) -> LabelSet:
        """Return the labels that the config names; empty where it leaves them to the data."""
        return LabelSet(tuple(settings.labels or ()))

    def read(self, sources: Sequence[SourceConfig], split: str) -> Labelled:
        """Read a labelled split; its labels are the task's, or found in the text where it has none.

        Raises CorpusError.
        """
        counts: Counter[str] = Counter(empty=0)
        sentences: list[Sentence] = []
        labels = self.labels
        names: dict[Place, Sequence[str]] = {}
        for place, row, language in labelled_rows(sources, split, self.gold, counts, self.windows):
            if self.named_labels and place not in names:
                names[place] = class_names(place, self.gold) or ()
            labels = labels or self.label_set(place)
            row = row._replace(gold=_named(row.gold, names.get(place, ())))
            gold = self.gold_of(where(place, row), row, labels)
            name = f"{split}-{len(sentences)}"
            sentences.append(Sentence(name, language, row.content, gold))
        return Labelled(sentences, labels, {"sentences": len(sentences), **counts})

    def label_set(self, place: Place) -> LabelSet:
        """Return the labels that a place's header names. Raises ConfigError where it has none."""
        raise ConfigError(f"{place}: names no labels; set task.labels to them, in the ids' order")

    @abc.abstractmethod
    def gold_of(self, here: str, row: Row, labels: LabelSet) -> Any:
        """Check and return what people said of a row. Raises CorpusError naming `here`."""

    def encode(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        contents: Sequence[Content],
        spans: bool = False,
    ) -> Encoded:
        """Tokens of sentences. spans: also say which characters each stands for."""
        return encode_texts(tokenizer, contents, self.max_length, spans=spans)

    def match(
        self, own: Encoded, teacher: Encoded, contents: Sequence[Content]
    ) -> NDArray[np.int32]:
        """(N,) where a stretch begins in the student's tokens and in the teacher's, of the latter.

        The teacher's token in its sentence, else -1. Both encoded with spans.
        """
        return match_characters(own, teacher, contents)

    def tokens(
        self, tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sentence]
    ) -> tuple[Tokens, int]:
        """Tokens of sentences, and the number of words cut off."""
        encoded = self.encode(tokenizer, [sentence.content for sentence in sentences])
        tokens = Tokens(encoded.ids, encoded.word_ids, encoded.offsets, spans=encoded.spans)
        return self.mark(tokens), int(encoded.cut_words.sum())

    def mark(self, tokens: Tokens) -> Tokens:
        """Let tokens know what their logits and labels belong to."""
        tokens.sentence_logits, tokens.sentence_labels = self.sentence_logits, self.sentence_labels
        tokens.keeps_special = self.keeps_special
        return tokens

    @abc.abstractmethod
    def label_array(self, tokens: Tokens, sentences: Sequence[Sentence]) -> NDArray[Any]:
        """Gold as the loss takes it: a row a sentence or a token."""

    def unmarked(self, labels: NDArray[Any], sentences: Sequence[Sentence]) -> int:
        """Units whose gold `label_array` could not find in what is read."""
        return 0

    # losses

    @abc.abstractmethod
    def label_loss(self, logits: "Tensor", labels: "Tensor", batch: "Batch") -> "Tensor":
        """Sum over labels. logits: (B, C), or (N, C) of the kept tokens."""

    def logit_loss(
        self, term: "Term", logits: "Tensor", target: "Tensor", batch: "Batch"
    ) -> "Tensor":
        """Sum over rows of a logits or hard_labels term. logits, target: (B, C) or (N, C)."""
        from xdray import losses

        if term.loss == "hard_labels":
            return losses.label_loss(logits, target.argmax(-1))
        if term.distance == "kl":
            return losses.soft_target_loss(logits, target, term.temperature)
        return losses.logit_loss(logits, target)

    def logit_count(self, term: "Term", batch: "Batch") -> int:
        """Rows that such a term's mean is over."""
        return len(batch.logits) if batch.logits is not None else 0

    # scores

    @abc.abstractmethod
    def decode(
        self, logits: NDArray[np.float32], tokens: Tokens, sentences: Sequence[Sentence]
    ) -> list[Any]:
        """Read logits, (S, C) or (N, C), into what is scored: one prediction a unit."""

    def golds(self, sentences: Sequence[Sentence]) -> list[Any]:
        """Gold of each unit."""
        return [sentence.gold for sentence in sentences]

    def units(self, sentences: Sequence[Sentence]) -> list[int]:
        """Unit that each sentence is of, counted as they come up."""
        return list(range(len(sentences)))

    def languages(self, sentences: Sequence[Sentence]) -> list[str]:
        """Language of each unit."""
        return [sentence.language for sentence in sentences]

    def choose(self, gold: Sequence[Any], predicted: Sequence[Any]) -> Any:
        """What is chosen on dev to `decide` by, e.g. a threshold; None: nothing is."""
        return None

    def saved(self, chosen: Any) -> dict[str, Any]:
        """What a student's config.json says, beside `model_settings`, for `as_saved`."""
        return {"task_kind": self.kind, "word_rule": self.word_rule}

    def as_saved(self, values: Mapping[str, Any]) -> "Task":
        """Return the task as the config.json of a student says that it was."""
        return self

    def decide(self, predicted: Sequence[Any], chosen: Any) -> list[Any]:
        """Apply what was chosen on dev to what `decode` gave."""
        return list(predicted)

    def scores(
        self, gold: Sequence[Any], predicted: Sequence[Any], languages: Sequence[str]
    ) -> Scores:
        """All metrics, as fractions, and by language."""
        result: Scores = self.figures(gold, predicted)
        names = sorted(set(languages))
        groups = {
            name: [unit for unit, its in enumerate(languages) if its == name] for name in names
        }
        result["by_language"] = {
            name: {
                **self.figures([gold[u] for u in units], [predicted[u] for u in units]),
                "sentences": len(units),
            }
            for name, units in groups.items()
        }
        return result

    @abc.abstractmethod
    def figures(self, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
        """Each metric of some units."""

    @abc.abstractmethod
    def statistics(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(U, K) figures whose sums over units give the metric: for resampling."""

    @abc.abstractmethod
    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metric of sums (..., K) of statistics: (...)."""

    def agreement(
        self, teacher: Reading, student: Reading, sentences: Sequence[Sentence]
    ) -> dict[str, Any]:
        """How far the student says what the teacher says of the same sentences, gold aside."""
        same = [a == b for a, b in zip(teacher.said, student.said, strict=True)]
        return {"equal": sum(same) / max(1, len(same)), "units": len(same)}

    # prediction

    schema: ClassVar[Sequence[tuple[str, pa.DataType]]]
    """Columns of a predicted record beside id, language and text."""

    def records(
        self, run: Any, tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sentence]
    ) -> list[dict[str, Any]]:
        """What is said of sentences without gold. run: Tokens -> logits (S, C) or (N, C)."""
        tokens, _ = self.tokens(tokenizer, sentences)
        found = self.described(run(tokens))
        return [
            {**head_of(sentence), **said} for sentence, said in zip(sentences, found, strict=True)
        ]

    def described(self, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Records of logits (S, C), without what `head_of` has."""
        raise NotImplementedError


def _named(gold: Any, names: Sequence[str]) -> Any:
    """Gold with the names that a file's ClassLabel feature gives its ids, in whatever order."""
    if isinstance(gold, list):
        return [_named(its, names) for its in gold]
    known = isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(names)
    return names[gold] if known else gold


def head_of(sentence: Sentence) -> dict[str, Any]:
    """Id, language and text of a record; a pair has its second text as `pair`."""
    content = sentence.content
    head = {"id": sentence.sentence_id, "language": sentence.language}
    if isinstance(content, TextPair):
        return {**head, "text": content.first, "pair": content.second}
    return {**head, "text": text_of(content)}


def own_tokens(
    task: Task,
    own: "PreTrainedTokenizerFast",
    teacher: "PreTrainedTokenizerFast",
    contents: Sequence[Content],
) -> Tokens:
    """Tokens of sentences by the student's own tokenizer, with their matches in the teacher's."""
    mine, theirs = (task.encode(its, contents, spans=True) for its in (own, teacher))
    tokens = Tokens(mine.ids, mine.word_ids, mine.offsets, spans=mine.spans)
    tokens.matches = task.match(mine, theirs, contents)
    return task.mark(tokens)
