"""Sentences of like length in a batch, under a budget of tokens; padded to one length.

B sentences of a batch, T tokens of its longest.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def token_budget_batches(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cut sentences, sorted by length, into batches of at most `budget` tokens, padding included.

    A sentence longer than the budget is a batch of its own. Ties keep their order.
    """
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        shortest = max(1, int(ranked[start]))
        window = ranked[start : start + max(1, budget // shortest)]
        costs = window * np.arange(1, len(window) + 1)
        stop = start + max(1, int(np.searchsorted(costs, budget, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches


def pad(
    ids: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64], pad_id: int
) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Pad some sentences into (B, T).

    Returns input ids, attention mask, and for each of their tokens in order its index into `ids`.
    """
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    width = int(lengths.max(initial=1))
    columns = np.arange(width)
    mask = columns < lengths[:, None]
    index = (starts[:, None] + columns)[mask]
    padded = np.full((len(rows), width), pad_id, dtype=np.int64)
    padded[mask] = ids[index]
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64)), index


def padded(values: NDArray[Any] | None, mask: NDArray[np.bool_]) -> Tensor | None:
    """Put the values of real tokens, in their order, into (B, T), 0 elsewhere."""
    if values is None:
        return None
    result = np.zeros(mask.shape, dtype=values.dtype)
    result[mask] = values
    return torch.from_numpy(result)
