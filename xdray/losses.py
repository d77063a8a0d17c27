"""Representation, logit, soft-target and label losses: pure functions of tensors.

Each returns the sum over tokens: the caller divides by the count over all workers, which it knows
before (a count taken here would make a GPU wait). N tokens kept by the mask, W width of the
teacher's hidden states, C classes. Inputs may be of any float dtype and are compared in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional

from xdray.labels import IGNORE_INDEX


def representation_loss(hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Squared error to a teacher layer, mean over the width, summed over tokens (P1 L_RL, V2).

    hidden, teacher_hidden: (N, W).
    """
    error = functional.mse_loss(hidden.float(), teacher_hidden.float(), reduction="sum")
    return error / hidden.shape[-1]


def representation_kl_loss(hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """KL between softmaxes of both sides over the width, in nats (P1 L_RL).

    hidden, teacher_hidden: (N, W). Hidden states are no distributions, so both are made one.
    """
    return soft_target_loss(hidden, teacher_hidden, temperature=1.0)


def logit_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Squared error to the teacher's logits, mean over classes, summed over tokens (P1 L_LL).

    logits, teacher_logits: (N, C).
    """
    error = functional.mse_loss(logits.float(), teacher_logits.float(), reduction="sum")
    return error / logits.shape[-1]


def soft_target_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL from the teacher's soft targets to the student's, in nats.

    logits, teacher_logits: (N, C). Times temperature**2, so gradients keep their size as it rises
    (Hinton et al. 2015, section 2).
    """
    log_student = torch.log_softmax(logits.float() / temperature, dim=-1)
    log_teacher = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return divergence * temperature**2


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, over tokens whose label is not IGNORE_INDEX (P1 L_CE).

    logits: (N, C). labels: (N,) int64.
    """
    return functional.cross_entropy(
        logits.float(), labels, reduction="sum", ignore_index=IGNORE_INDEX
    )


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy in nats, mean over classes, for labels that do not exclude each other.

    logits: (B, C). labels: (B, C) float32, 1 where they are.
    """
    error = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
    return error / logits.shape[-1]


def soft_binary_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL from the teacher's probability of each class to the student's, in nats, mean over classes.

    logits, teacher_logits: (B, C). Times temperature**2 as `soft_target_loss`.
    """
    ours, theirs = (
        torch.stack([its.float(), torch.zeros_like(its, dtype=torch.float32)], dim=-1)
        for its in (logits, teacher_logits)
    )
    return soft_target_loss(ours, theirs, temperature) / logits.shape[-1]


def span_loss(logits: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of where an answer starts and ends, in nats, mean of the two.

    logits: (B, T, 2). positions: (B, 2) int64. mask: (B, T), 1 on real tokens.
    """
    scores = _masked_positions(logits, mask)
    return functional.cross_entropy(scores, positions.flatten(), reduction="sum") / 2


def soft_span_loss(
    logits: Tensor, teacher_logits: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """KL of where an answer starts and ends, over positions, in nats, mean of the two.

    logits, teacher_logits: (B, T, 2). mask: (B, T). Times temperature**2 as `soft_target_loss`.
    """
    scores, targets = (_masked_positions(its, mask) for its in (logits, teacher_logits))
    return soft_target_loss(scores, targets, temperature) / 2


def _masked_positions(logits: Tensor, mask: Tensor) -> Tensor:
    """(2 B, T) scores over positions, -1e4 on padding: both sides of a KL stay finite."""
    scores = logits.float().masked_fill(mask[..., None] == 0, -1e4)
    return scores.transpose(1, 2).flatten(0, 1)


def attention_maps(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Maps of a layer's heads (B, A, T, T) from its queries, keys and values (B, T, 3 W).

    mask: (B, T), 1 on tokens that are attended to. As in a layer with absolute positions.
    """
    queries, keys, _ = _heads(vectors, heads)
    return _scores(queries, keys, mask).softmax(-1)


def attention_loss(maps: Tensor, teacher_maps: Tensor, mask: Tensor) -> Tensor:
    """Squared error to the teacher's maps (P2), summed over rows.

    maps, teacher_maps: (B, A, T, T), of as many heads, or both averaged over them. mask: (B, T).
    Of a row the mean over its real columns and the heads.
    """
    real = mask[:, None, :, None] * mask[:, None, None, :]
    error = ((maps.float() - teacher_maps.float()) ** 2 * real).sum((1, 3))
    lengths = mask.sum(1).clamp(min=1)[:, None]
    return (error / (lengths * maps.shape[1])).sum()


def relation_loss(
    vectors: Tensor, teacher_vectors: Tensor, mask: Tensor, heads: int | None
) -> Tensor:
    """KL to the teacher's relations among queries, among keys and among values, summed over rows.

    vectors, teacher_vectors: (B, T, 3 W), the widths may differ; both are cut into `heads`
    relation heads (Wang et al. 2021, MiniLMv2, section 3.1), None: `common_heads`. mask: (B, T). In
    nats, mean over heads and the three relations.
    """
    if heads is None:
        heads = common_heads(vectors.shape[-1] // 3, teacher_vectors.shape[-1] // 3)
    total = vectors.new_zeros(())
    for ours, theirs in zip(_heads(vectors, heads), _heads(teacher_vectors, heads), strict=True):
        logs, targets = (_scores(its, its, mask).log_softmax(-1) for its in (ours, theirs))
        divergence = functional.kl_div(logs, targets, reduction="none", log_target=True).sum(-1)
        total = total + (divergence * mask[:, None, :]).sum()
    return total / (3 * heads)


def common_heads(width: int, other: int) -> int:
    """Heads that divide both widths, the most up to 12 (MiniLMv2's own number)."""
    return max(heads for heads in range(1, 13) if width % heads == other % heads == 0)


def _scores(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """(B, A, T, T) scaled products, -1e4 on columns of padding."""
    with torch.autocast(queries.device.type, enabled=False):  # else bfloat16, whatever the inputs
        scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    return scores.masked_fill(mask[:, None, None, :] == 0, -1e4)


def _heads(vectors: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(B, T, 3 W) to three of (B, heads, T, W / heads), float32."""
    batch, length, _ = vectors.shape
    parts = vectors.float().view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return tuple(parts)
