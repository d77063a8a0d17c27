"""Encoding: hidden states alone, without a head or labels; what universal students are made by."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xdray.config import TaskConfig
from xdray.config_data import SourceConfig
from xdray.corpus import Labelled
from xdray.errors import ConfigError
from xdray.labels import LabelSet
from xdray.places import Row
from xdray.sentences import Sentence
from xdray.task import Task
from xdray.tokenised import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from xdray.batches import Batch


class Encoding(Task):
    """No gold and no logits: rows of width 0. A student is judged by how near its states come."""

    model_class: ClassVar[str] = "AutoModel"
    metrics: ClassVar[Mapping[str, str]] = {"none": "None"}
    about: ClassVar[str] = "An encoder has no score of its own: fine-tune it, evaluate_suite does."
    noun: ClassVar[str] = "An encoder"
    pipeline: ClassVar[str] = "feature-extraction"
    usage: ClassVar[str] = (
        "from transformers import AutoModel, AutoTokenizer\n\n"
        'model = AutoModel.from_pretrained("{folder}"{remote})\n'
        'tokenizer = AutoTokenizer.from_pretrained("{folder}"{remote})\n'
        'print(model(**tokenizer("One text.", return_tensors="pt")).last_hidden_state.shape)'
    )
    named_labels: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    has_gold: ClassVar[bool] = False
    schema: ClassVar[Sequence[tuple[str, pa.DataType]]] = (("vector", pa.list_(pa.float32())),)

    def described(self, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return the sentence's vector."""
        return [{"vector": row.tolist()} for row in logits]

    @classmethod
    def given_labels(cls, settings: TaskConfig) -> LabelSet:
        """There are none."""
        if settings.labels:
            raise ConfigError("task.labels: encoding has no labels")
        return LabelSet(())

    @property
    def model_settings(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def read(self, sources: Sequence[SourceConfig], split: str) -> Labelled:
        """No labelled text is read."""
        return Labelled([], self.labels, {"sentences": 0})

    def gold_of(self, here: str, row: Row, labels: LabelSet) -> Any:
        """There is none."""
        raise NotImplementedError

    def label_array(self, tokens: Tokens, sentences: Sequence[Sentence]) -> NDArray[Any]:
        """(0,)."""
        return np.empty(0, np.int64)

    def label_loss(self, logits: "Tensor", labels: "Tensor", batch: "Batch") -> "Tensor":
        """There is none."""
        raise NotImplementedError

    def decode(
        self, logits: NDArray[np.float32], tokens: Tokens, sentences: Sequence[Sentence]
    ) -> list[Any]:
        """Nothing is said."""
        return [None for _ in sentences]

    def figures(self, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
        """There are none."""
        return {}

    def statistics(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(U, 0)."""
        return np.empty((len(gold), 0))

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """NaN."""
        return np.full(sums.shape[:-1], np.nan)


TASK = Encoding
