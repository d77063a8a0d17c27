"""Gradients between ranks: all of them in one message, but for those of token embeddings.

Of these only the rows travel that a step has touched: 1,024 tokens touch some hundred of 20,000 to
90,000 rows, and all of them are most of a student's parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def add_up(tensors: Sequence[Tensor]) -> None:
    """Put the sum over all ranks in the place of each of these tensors (float32), in one message.

    Every rank must come here, with tensors of the same shapes.
    """
    flat = torch.cat([its.reshape(-1) for its in tensors])
    dist.all_reduce(flat)
    for its, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        its.copy_(total.view_as(its))


def add_up_rows(gradient: Tensor, input_ids: Sequence[Tensor]) -> None:
    """Put the sum over all ranks in the place of this rank's gradient (V, E).

    input_ids: all that this rank has looked up since the gradient was zero. The ranks add up in one
    order, so all of them end with the same bits. Every rank must come here.
    """
    ranks = dist.get_world_size()
    rows = torch.cat([ids.reshape(-1) for ids in input_ids]).unique()
    most = torch.tensor([len(rows)], device=rows.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    room = int(most)
    if room * ranks >= len(gradient):  # then all rows weigh less than everybody's
        dist.all_reduce(gradient)
        return
    padded = rows.new_zeros(room)
    padded[: len(rows)] = rows
    values = gradient.new_zeros(room, gradient.shape[1])
    values[: len(rows)] = gradient[rows]
    all_rows = [torch.empty_like(padded) for _ in range(ranks)]
    all_values = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(all_rows, padded)
    dist.all_gather(all_values, values)
    gradient[rows] = 0
    for its_rows, its_values in zip(all_rows, all_values, strict=True):  # what pads adds zeros
        gradient.index_add_(0, its_rows, its_values)
