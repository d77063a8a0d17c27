"""What the ranks tell each other in a step: counts, then gradients.

Of the gradients of token embeddings only the rows travel that a step has touched: 1,024 tokens
touch some hundred of 20,000 to 90,000 rows, and all of them are most of a student's parameters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class Exchange:
    """One step's messages between ranks. Every rank must make one, and call what others call.

    A message takes milliseconds between processes on CPUs, so none is waited for before it is
    needed: counts travel during the forward pass, gradients and rows side by side.
    """

    def __init__(self, ranks: int, counts: Tensor, input_ids: Sequence[Tensor]) -> None:
        """Send counts (float32) on their way. ranks: 1 where there is no process group.

        input_ids: all that this rank looks up in this step; none where embeddings do not learn.
        """
        self._ranks, self._counts = ranks, counts
        if ranks == 1:
            return
        flat = [ids.reshape(-1) for ids in input_ids]
        self._rows = torch.cat(flat).unique() if flat else counts.new_zeros(0, dtype=torch.int64)
        touched = counts.new_zeros(ranks)
        touched[dist.get_rank()] = len(self._rows)
        self._sizes = torch.cat([counts, touched])
        self._sent: Any = dist.all_reduce(self._sizes, async_op=True)

    def counts(self) -> Tensor:
        """Return the sum of all ranks' counts."""
        if self._ranks == 1:
            return self._counts
        self._sent.wait()
        return self._sizes[: len(self._counts)]

    def add_up(self, tensors: Sequence[Tensor], embeddings: Tensor | None = None) -> list[Tensor]:
        """Return the sums over several ranks of these tensors (float32), in one piece of memory.

        embeddings: gradient (V, E) that is 0 but for the rows of `input_ids`; the sum takes its
        place. The ranks add up in one order, so all of them end with the same bits.
        """
        flat = torch.cat([its.reshape(-1) for its in tensors])
        sent: Any = dist.all_reduce(flat, async_op=True)
        if embeddings is not None:
            self._add_up_rows(embeddings)
        sent.wait()
        sums = flat.split([its.numel() for its in tensors])
        return [total.view_as(its) for its, total in zip(tensors, sums, strict=True)]

    def _add_up_rows(self, gradient: Tensor) -> None:
        self._sent.wait()  # a rank that was short of memory may not have asked for counts
        room = int(self._sizes[len(self._counts) :].max())
        if room * self._ranks >= len(gradient):  # then all rows weigh less than everybody's
            dist.all_reduce(gradient)
            return
        messages = []
        for mine in (self._rows, gradient[self._rows]):
            padded = mine.new_zeros(room, *mine.shape[1:])
            padded[: len(mine)] = mine
            everyones = [torch.empty_like(padded) for _ in range(self._ranks)]
            messages.append((everyones, dist.all_gather(everyones, padded, async_op=True)))
        gradient[self._rows] = 0
        for _, sent in messages:
            sent.wait()
        (rows, _), (values, _) = messages
        for its_rows, its_values in zip(rows, values, strict=True):  # what pads adds zeros
            gradient.index_add_(0, its_rows, its_values)
