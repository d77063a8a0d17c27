"""The terms of a stage on one batch: loss sums, counts, and how much what is imitated varies.

B sentences, T tokens, N kept tokens, W width of the teacher's hidden states.
"""

import torch
from torch import Tensor

from xdray import losses
from xdray.batches import Batch
from xdray.learner import Observed
from xdray.stages import Term
from xdray.task import Task


def term_loss(
    term: Term, found: Observed, batch: Batch, task: Task, heads: tuple[int, int]
) -> Tensor:
    """Loss sum of a term; a batch that only joins the step has no rows to score.

    found: of the student. heads: attention heads of student and teacher.
    """
    if term.loss == "hidden":
        return _hidden_loss(term, found.hidden[term.student_layer], batch)
    if term.loss == "attention":
        ours, theirs, mask = _attention(term, found.qkv[term.student_layer], batch, heads)
        return losses.attention_loss(ours, theirs, mask)
    if term.loss == "relations":
        assert term.signal is not None
        target, mask = batch.unflatten(batch.hidden[term.signal])
        mine = found.qkv[term.student_layer]
        return losses.relation_loss(mine, target, mask, term.relation_heads)
    scored = batch.labels if term.loss == "labels" else batch.logits
    assert scored is not None
    logits = found.logits
    if task.sentence_logits:
        logits = logits[: len(scored)]
    else:
        logits = _kept(logits, batch, task.stretch_logits)
    if term.loss == "labels":
        return task.label_loss(logits, scored, batch)
    return task.logit_loss(term, logits, scored, batch)


def term_count(term: Term, batch: Batch, task: Task) -> int:
    """Tokens or sentences that the term's mean is over, on this rank."""
    if term.loss == "labels":
        return batch.num_labels
    if term.loss in {"attention", "relations"}:
        return len(batch.kept)
    if term.loss != "hidden":
        return task.logit_count(term, batch)
    if term.tokens == "mean":
        return len(batch.input_ids) if len(batch.kept) else 0
    return len(batch.first if term.tokens == "first" else batch.kept)


def target_moments(term: Term, batch: Batch, heads: tuple[int, int]) -> Tensor:
    """Sum, sum of squares and number of what a term imitates, (3, values); for its variance.

    Hidden states and logits vary around the mean of each of their values, attention around one.
    """
    if term.loss == "attention":
        assert term.signal is not None
        target, mask = batch.unflatten(batch.hidden[term.signal])
        maps = losses.attention_maps(target, mask, heads[1])
        maps = maps.mean(1, keepdim=True) if term.heads == "average" else maps
        real = (mask[:, None, :, None] * mask[:, None, None, :]).expand_as(maps).bool()
        values = maps[real].double()[:, None]
    else:
        states = batch.logits if term.loss == "logits" else batch.hidden[term.layer or 0]
        assert states is not None
        values = _pooled(states, batch, term.tokens if term.loss == "hidden" else "all").double()
    count = torch.full_like(values.sum(0), len(values))
    return torch.stack([values.sum(0), values.square().sum(0), count])


def _hidden_loss(term: Term, states: Tensor, batch: Batch) -> Tensor:
    assert term.layer is not None
    hidden, target = (
        _pooled(its, batch, term.tokens)
        for its in (_kept(states, batch, term.pieces), batch.hidden[term.layer])
    )
    if term.distance == "kl":
        return losses.representation_kl_loss(hidden, target)
    return losses.representation_loss(hidden, target)


def _attention(
    term: Term, vectors: Tensor, batch: Batch, heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of student and teacher (B, A, T, T), and the mask (B, T)."""
    assert term.signal is not None
    target, mask = batch.unflatten(batch.hidden[term.signal])
    ours, theirs = (
        losses.attention_maps(its, mask, number)
        for its, number in ((vectors, heads[0]), (target, heads[1]))
    )
    if term.heads == "average":
        ours, theirs = (its.mean(1, keepdim=True) for its in (ours, theirs))
    return ours, theirs, mask


def _kept(values: Tensor, batch: Batch, pieces: str) -> Tensor:
    """(B, T, ...) values of kept tokens (N, ...); of stretches the first, mean or logsumexp."""
    flat = values.flatten(0, 1)
    if batch.pieces is None or pieces == "first":
        return flat.index_select(0, batch.kept)
    positions, owners = batch.pieces
    found = flat.index_select(0, positions).float()
    sums = found.new_zeros(len(batch.kept), found.shape[-1])
    if pieces == "mean":
        counts = torch.bincount(owners, minlength=len(sums)).clamp(min=1)
        return sums.index_add(0, owners, found) / counts[:, None]
    index = owners[:, None].expand_as(found)
    most = found.detach()
    most = torch.full_like(sums, -torch.inf).scatter_reduce(0, index, most, "amax")
    return sums.index_add(0, owners, (found - most[owners]).exp()).log() + most


def _pooled(states: Tensor, batch: Batch, tokens: str) -> Tensor:
    """States of all kept tokens (N, W), of the first ones, or their means by sentence (B, W)."""
    if tokens == "first":
        return states[batch.first]
    if tokens == "all" or not len(states):
        return states
    sums = states.new_zeros(len(batch.input_ids), states.shape[-1])
    counts = torch.bincount(batch.owners, minlength=len(sums)).clamp(min=1)
    return sums.index_add(0, batch.owners, states) / counts[:, None]
