"""The plan: which layers learn from which split by which loss, in order. Data, no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xdray.config import StudentConfig
from xdray.config_recipe import LAYERED
from xdray.storage import fingerprint
from xdray.tokenised import Signal, qkv

LAST = -1
"""The student's last layer, whatever its number."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss on one split, everything worked out."""

    loss: str
    split: str
    weight: float
    distance: str
    temperature: float
    layer: int | None
    """Of the teacher."""
    tokens: str
    """"first": of each word or sentence; "mean": over a sentence; "all"."""
    student_layer: int = LAST
    pieces: str = "first"
    """Of a stretch of the student's own tokens: "first", or the "mean" of all."""
    heads: str = "same"
    relation_heads: int | None = None
    normalise: bool = False

    @property
    def signal(self) -> Signal | None:
        """What it needs of the teacher beside the logits."""
        if self.layer is None or self.loss == "hidden":
            return self.layer
        return qkv(self.layer)

    @property
    def long_name(self) -> str:
        """Its loss and the layers that it compares."""
        if self.layer is None:
            return self.loss
        mine = "" if self.student_layer == LAST else f"{self.student_layer}:"
        return f"{self.loss} {mine}{self.layer}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One sub-step: its terms, and the groups of layers that train."""

    stage: str
    name: str
    terms: tuple[Term, ...]
    trainable: tuple[str, ...]
    epochs: int
    patience: int
    learning_rate: float
    schedule: str
    batch_tokens: int
    new_head: bool

    @property
    def by_dev(self) -> bool:
        """Whether the best state is the task's on dev (stages with labels), else its own loss."""
        return any(term.loss == "labels" for term in self.terms)

    @property
    def trains_head(self) -> bool:
        """Whether a term stands above the head, so that tags mean something afterwards."""
        return any(term.loss not in LAYERED for term in self.terms)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that it reads; an epoch is a pass over the first."""
        return tuple(sorted({term.split for term in self.terms}, reverse=True))

    @property
    def term_names(self) -> tuple[str, ...]:
        """How logs call its terms, each by another name: its loss where that will do."""
        for names in (
            [term.loss for term in self.terms],
            [term.long_name for term in self.terms],
            [f"{term.long_name} {term.distance} {term.tokens}" for term in self.terms],
        ):
            if len(set(names)) == len(names):
                return tuple(names)
        return tuple(f"{term.long_name} ({n})" for n, term in enumerate(self.terms, start=1))

    @property
    def layers(self) -> tuple[Signal, ...]:
        """Teacher layers that its terms imitate, hidden states or queries, keys and values."""
        found = {term.signal for term in self.terms if term.signal is not None}
        return tuple(sorted(found, key=str))

    @property
    def student_layers(self) -> tuple[int, ...]:
        """Student layers before the last whose hidden states are compared."""
        hidden = [term.student_layer for term in self.terms if term.loss == "hidden"]
        return tuple(sorted({layer for layer in hidden if layer != LAST}))


def layer_groups(student: StudentConfig) -> tuple[str, ...]:
    """Groups of the student's layers from the top down, the order of unfreezing (P1 table 4)."""
    if student.kind == "bilstm":
        return ("head", "projection", "encoder", "embedding")
    layers = tuple(f"layer_{number}" for number in range(student.layers, 0, -1))
    return ("head", "projection", *layers, "embedding")


def needed_layers(stages: Sequence[Stage]) -> tuple[Signal, ...]:
    """What a plan needs of the teacher beside the logits."""
    return tuple(sorted({layer for stage in stages for layer in stage.layers}, key=str))


def compared_layers(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Student layers before the last that a plan compares, each by a map of its own."""
    return tuple(sorted({layer for stage in stages for layer in stage.student_layers}))


def chain_keys(stages: Sequence[Stage], base: dict[str, Any]) -> list[str]:
    """Key of each stage: the hash of `base` (student, data, targets ...), itself and all before.

    Two runs whose first stages have equal keys end these stages with the same weights.
    """
    keys: list[str] = []
    previous = fingerprint(base)
    for stage in stages:
        previous = fingerprint({"previous": previous, "stage": asdict(stage)})
        keys.append(previous)
    return keys
