"""The losses of one step: which output of the student meets which target of a batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from xdray import losses
from xdray.batches import Batch
from xdray.learner import Learner
from xdray.stages import Term


class StepLosses(nn.Module):
    """The losses of one step in one forward call, so that DDP sees one forward a step."""

    def __init__(self, student: Learner, terms: Sequence[Term]) -> None:
        """Wrap a student for the terms of a stage."""
        super().__init__()
        self.student = student
        self.terms = terms

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """Loss sum of each term, over this rank's tokens: (len(terms),) float32."""
        outputs = {}
        for split, batch in batches.items():
            hidden, logits = self.student(batch.input_ids, batch.attention_mask)
            outputs[split] = (_kept(hidden, batch), _kept(logits, batch))
        return torch.stack(
            [_term_loss(term, outputs[term.split], batches[term.split]) for term in self.terms]
        )


def _kept(values: Tensor, batch: Batch) -> Tensor:
    return values.flatten(0, 1).index_select(0, batch.kept)


def _term_loss(term: Term, output: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
    hidden, logits = output
    if term.loss == "hidden":
        assert term.layer is not None
        target = batch.hidden[term.layer]
        if term.distance == "kl":
            return losses.representation_kl_loss(hidden, target)[0]
        return losses.representation_loss(hidden, target)[0]
    if term.loss == "labels":
        assert batch.labels is not None
        return losses.label_loss(logits, batch.labels)[0]
    assert batch.logits is not None
    target = batch.logits
    if term.tokens == "first":
        logits, target = logits[batch.first], target[batch.first]
    if term.loss == "hard_labels":
        return losses.label_loss(logits, target.argmax(-1))[0]
    if term.distance == "kl":
        return losses.soft_target_loss(logits, target, term.temperature)[0]
    return losses.logit_loss(logits, target)[0]


def term_count(term: Term, batch: Batch) -> int:
    """Tokens that the term's mean is over, on this rank."""
    if term.loss == "labels":
        return batch.num_labels
    return len(batch.first if term.tokens == "first" else batch.kept)
