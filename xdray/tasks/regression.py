"""Regression: one number for a text or a pair of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xdray.config import TaskConfig
from xdray.errors import ConfigError, CorpusError
from xdray.labels import LabelSet
from xdray.places import Row
from xdray.sentences import Sentence
from xdray.task import Reading, Task
from xdray.tokenised import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from xdray.batches import Batch

VALUE = "value"
LARGEST = float(np.finfo(np.float32).max)


class Regression(Task):
    """Gold is a number; a model's one logit is that number."""

    metrics: ClassVar[Mapping[str, str]] = {
        "spearman": "Spearman correlation",
        "pearson": "Pearson correlation",
    }
    about: ClassVar[str] = "Correlations with people's scores, times 100."
    noun: ClassVar[str] = "A regressor"
    usage: ClassVar[str] = (
        "from transformers import pipeline\n\n"
        'score = pipeline("text-classification", "{folder}"{remote}, function_to_apply="none")\n'
        'print(score({{"text": "A plane takes off.", "text_pair": "A plane lands."}}))'
    )
    named_labels: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    head_width: ClassVar[int | None] = 1
    schema: ClassVar[Sequence[tuple[str, pa.DataType]]] = ((VALUE, pa.float32()),)

    @classmethod
    def given_labels(cls, settings: TaskConfig) -> LabelSet:
        """There is one, without a choice."""
        if settings.labels:
            raise ConfigError("task.labels: a regression has a number for gold, no labels")
        return LabelSet((VALUE,))

    @property
    def model_settings(self) -> dict[str, Any]:
        """Tells transformers which loss is meant."""
        return {**super().model_settings, "problem_type": "regression"}

    def gold_of(self, here: str, row: Row, labels: LabelSet) -> float:
        """Return the number, which must be finite in the float32 of the loss."""
        given = row.gold
        # Python reads True as 1.0 and "1_0" as 10.0
        is_other = isinstance(given, bool) or (isinstance(given, str) and "_" in given)
        try:
            number = math.nan if is_other else float(given)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise CorpusError(f"{here}: label {given!r:.60}, expected a finite number (float32)")
        return number

    def label_array(self, tokens: Tokens, sentences: Sequence[Sentence]) -> NDArray[np.float32]:
        """(S, 1)."""
        return np.array(self.golds(sentences), dtype=np.float32)[:, None]

    def label_loss(self, logits: "Tensor", labels: "Tensor", batch: "Batch") -> "Tensor":
        """Squared error."""
        from xdray import losses

        return losses.logit_loss(logits, labels)

    def decode(
        self, logits: NDArray[np.float32], tokens: Tokens, sentences: Sequence[Sentence]
    ) -> list[float]:
        """Return the logit itself."""
        return logits[:, 0].tolist()

    def figures(self, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
        """Scipy's correlations; 0 where one side is constant."""
        from scipy.stats import pearsonr, spearmanr

        if len(set(gold)) < 2 or len(set(predicted)) < 2:
            return {"spearman": 0.0, "pearson": 0.0}
        return {
            "spearman": float(np.asarray(spearmanr(gold, predicted))[0]),
            "pearson": float(np.asarray(pearsonr(gold, predicted))[0]),
        }

    def statistics(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(S, 6) moments of both sides; for Spearman of their ranks in the whole split."""
        from scipy.stats import rankdata

        sides = [np.asarray(side, np.float64) for side in (gold, predicted)]
        if self.metric == "spearman":
            sides = [rankdata(side) for side in sides]
        x, y = (side - side.mean() if len(side) else side for side in sides)
        return np.column_stack([np.ones(len(x)), x, y, x * y, x * x, y * y])

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pearson's correlation from the moments."""
        n, x, y, xy, xx, yy = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            result = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
        return np.where(n > 1, np.nan_to_num(result), np.nan)

    def agreement(
        self, teacher: Reading, student: Reading, sentences: Sequence[Sentence]
    ) -> dict[str, Any]:
        """Correlation of the two, and root of their mean squared difference."""
        ours, theirs = (
            teacher.logits[:, 0].astype(np.float64),
            student.logits[:, 0].astype(np.float64),
        )
        return {
            **self.figures(ours.tolist(), theirs.tolist()),
            "rms_difference": float(np.sqrt(np.mean((ours - theirs) ** 2))),
            "units": len(ours),
        }

    def described(self, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return the number."""
        return [{VALUE: round(float(row[0]), 4)} for row in logits]


TASK = Regression
