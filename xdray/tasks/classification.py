"""Classification: one class, or any number of them, of a text or a pair of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xdray.agreement import class_agreement
from xdray.config import TaskConfig
from xdray.errors import ConfigError, CorpusError
from xdray.labels import LabelSet
from xdray.places import Place, Row
from xdray.readers import class_names
from xdray.sentences import Sentence
from xdray.task import Reading, Scores, Task
from xdray.tokenised import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from xdray.batches import Batch
    from xdray.stages import Term

CHANCE = 0.5
"""Probability from which a label of several is said."""
MOST_DIGITS = 20
"""Of an id; Python refuses to read numbers of thousands."""


class Classification(Task):
    """Gold is a class id; with `task.multi_label` a tuple of ids, in ascending order."""

    metrics: ClassVar[Mapping[str, str]] = {
        "accuracy": "Accuracy",
        "f1": "F1 of the second class",
        "macro_f1": "F1, mean over classes",
        "micro_f1": "F1, all labels together",
        "matthews": "Matthews correlation",
    }
    about: ClassVar[str] = (
        "All figures but the correlation are shares of test sentences, in percent."
    )
    schema: ClassVar[Sequence[tuple[str, pa.DataType]]] = (
        ("labels", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))),
    )

    @classmethod
    def given_labels(cls, settings: TaskConfig) -> LabelSet:
        """Return the classes that the config names, two or more (with multi_label one)."""
        labels = super().given_labels(settings)
        if labels and len(labels) < 2 and not settings.multi_label:
            raise ConfigError(f"task.labels: {list(labels.names)}, expected two classes or more")
        return labels

    @property
    def model_settings(self) -> dict[str, Any]:
        """Tells transformers which loss is meant."""
        several = self.settings.multi_label
        kind = "multi_label_classification" if several else "single_label_classification"
        return {**super().model_settings, "problem_type": kind}

    @property
    def own_metrics(self) -> Sequence[str]:
        """F1 of the second class is of two; a correlation of one label a text, micro F1 of many."""
        if self.settings.multi_label:
            return ["accuracy", "macro_f1", "micro_f1"]
        return ["accuracy", *(["f1"] if len(self.labels) == 2 else []), "macro_f1", "matthews"]

    def label_set(self, place: Place) -> LabelSet:
        """Return the names of the place's ClassLabel column."""
        names = class_names(place, "label")
        return LabelSet(tuple(names)) if names else super().label_set(place)

    def gold_of(self, here: str, row: Row, labels: LabelSet) -> int | tuple[int, ...]:
        """Class id of a name or an id; of a list of them where a text has several."""
        if not self.settings.multi_label:
            return _class_id(here, row.gold, labels)
        if not isinstance(row.gold, list):
            raise CorpusError(
                f"{here}: label is {row.gold!r:.60}, expected a list of labels, since "
                "task.multi_label is true"
            )
        return tuple(sorted({_class_id(here, value, labels) for value in row.gold}))

    def label_array(self, tokens: Tokens, sentences: Sequence[Sentence]) -> NDArray[Any]:
        """(S,) class ids; with several labels (S, C) 1.0 where they are."""
        golds = self.golds(sentences)
        if not self.settings.multi_label:
            return np.array(golds, dtype=np.int64)
        return self._indicators(golds).astype(np.float32)

    def label_loss(self, logits: "Tensor", labels: "Tensor", batch: "Batch") -> "Tensor":
        """Cross-entropy in nats; with several labels the mean binary one over classes."""
        from xdray import losses

        if self.settings.multi_label:
            return losses.binary_loss(logits, labels)
        return losses.label_loss(logits, labels)

    def logit_loss(
        self, term: "Term", logits: "Tensor", target: "Tensor", batch: "Batch"
    ) -> "Tensor":
        """As the base; with several labels each is a distribution of its own."""
        from xdray import losses

        if not self.settings.multi_label or (term.loss, term.distance) == ("logits", "mse"):
            return super().logit_loss(term, logits, target, batch)
        if term.loss == "hard_labels":
            return losses.binary_loss(logits, (target > 0).float())
        return losses.soft_binary_loss(logits, target, term.temperature)

    def decode(
        self, logits: NDArray[np.float32], tokens: Tokens, sentences: Sequence[Sentence]
    ) -> list[Any]:
        """Best class; or those at least as likely as not."""
        if not self.settings.multi_label:
            return logits.argmax(-1).tolist()
        return [tuple(np.flatnonzero(row >= 0).tolist()) for row in logits]

    def figures(self, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
        """scikit-learn's metrics; those that the labels have."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        several = self.settings.multi_label
        ours, theirs = (
            self._indicators(its) if several else np.asarray(its, np.int64)
            for its in (gold, predicted)
        )
        classes = list(range(len(self.labels)))
        kwargs: dict[str, Any] = {"zero_division": 0}
        found = {
            "accuracy": float(accuracy_score(ours, theirs)),
            "macro_f1": float(f1_score(ours, theirs, average="macro", labels=classes, **kwargs)),
        }
        if several:
            micro = f1_score(ours, theirs, average="micro", labels=classes, **kwargs)
            return {**found, "micro_f1": float(micro)}
        one = len({*ours.tolist(), *theirs.tolist()}) < 2  # 0 there, and a warning
        found["matthews"] = 0.0 if one else float(matthews_corrcoef(ours, theirs))
        if len(classes) == 2:
            binary = f1_score(ours, theirs, pos_label=1, average="binary", **kwargs)
            found["f1"] = float(binary)
        return found

    def scores(
        self, gold: Sequence[Any], predicted: Sequence[Any], languages: Sequence[str]
    ) -> Scores:
        """All metrics, by language, and F1 of each class."""
        hits, said, true = np.split(self.statistics(gold, predicted).sum(axis=0)[2:], 3)
        f1 = 2 * hits / np.maximum(said + true, 1)
        by_type = dict(zip(self.labels.names, f1.tolist(), strict=True))
        return {**super().scores(gold, predicted, languages), "by_type": by_type}

    def statistics(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(S, 2 + 3 C): a unit, equal, then per class in both, predicted, gold."""
        ours, theirs = self._indicators(gold), self._indicators(predicted)
        equal = (ours == theirs).all(axis=1)
        ones = np.ones(len(ours))
        return np.column_stack([ones, equal, ours & theirs, theirs, ours]).astype(np.float64)

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metric from the counts."""
        units, equal = sums[..., 0], sums[..., 1]
        hits, said, true = np.split(sums[..., 2:], 3, axis=-1)
        known = np.maximum(units, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.nan_to_num(2 * hits / (said + true))
            if self.metric == "macro_f1":
                result = f1.mean(-1)
            elif self.metric == "micro_f1":
                result = np.nan_to_num(2 * hits.sum(-1) / (said + true).sum(-1))
            elif self.metric == "f1":
                result = f1[..., 1]
            elif self.metric == "matthews":  # Gorodkin 2004, of K classes
                above = equal * units - (said * true).sum(-1)
                below = (units**2 - (said**2).sum(-1)) * (units**2 - (true**2).sum(-1))
                result = np.nan_to_num(above / np.sqrt(below))
            else:
                result = equal / known
        return np.where(units > 0, result, np.nan)

    def agreement(
        self, teacher: Reading, student: Reading, sentences: Sequence[Sentence]
    ) -> dict[str, Any]:
        """Equal answers; KL where classes exclude each other."""
        if self.settings.multi_label:
            return super().agreement(teacher, student, sentences)
        return class_agreement(teacher.logits, student.logits)

    def described(self, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Labels with their probabilities, the best first; with one label a sentence, one."""
        from scipy.special import expit, softmax

        several = self.settings.multi_label
        chances = expit(logits) if several else softmax(logits, axis=-1)
        records = []
        for row in chances:
            order = np.argsort(-row, kind="stable")
            order = order[row[order] >= CHANCE] if several else order[:1]
            said = [
                {"label": self.labels.names[k], "score": round(float(row[k]), 4)} for k in order
            ]
            records.append({"labels": said})
        return records

    def _indicators(self, ids: Sequence[Any]) -> NDArray[np.bool_]:
        """(S, C) True on the classes of each sentence."""
        result = np.zeros((len(ids), len(self.labels)), dtype=bool)
        for row, its in enumerate(ids):
            result[row, list(its) if isinstance(its, tuple) else its] = True
        return result


def _class_id(here: str, value: Any, labels: LabelSet) -> int:
    """Id of a label given by name or, failing that, as a number below the number of labels.

    Names that are numbers are names: 1 and "1" are the same label, and no other number is an id.
    """
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(name, str) and name in labels.ids:
        return labels.ids[name]
    number: Any = None if any(name.lstrip("-").isdecimal() for name in labels.names) else value
    if isinstance(number, str) and number.strip().isdecimal() and len(number) < MOST_DIGITS:
        number = int(number)
    if isinstance(number, float) and math.isfinite(number) and number == int(number):
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(labels):
        return number
    names = " ".join(labels.names)
    raise CorpusError(
        f"{here}: label {value!r:.60}, expected one of {names:.200} or an id from 0 to "
        f"{len(labels) - 1}; correct the file, task.labels, or the source's `label` column"
    )


TASK = Classification
