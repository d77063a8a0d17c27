"""Hidden states of a shard as the teacher gives them, batch by batch, put into a codec."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdray.errors import TargetsError
from xdray.hidden import Hidden, directions_of, value_type

CHUNK = 8192
"""Tokens brought into the basis at once."""


def new_record(tokens: int, width: int, codec: str) -> "HiddenRecord":
    """Return the record of a codec, for so many tokens of a shard."""
    directions = directions_of(codec)
    if directions is None:
        return HiddenRecord(tokens, width, codec)
    return LeadingRecord(tokens, width, codec, directions)


class HiddenRecord:
    """Hidden states of a shard in a codec, filled batch by batch, with the error that it makes."""

    def __init__(self, tokens: int, width: int, codec: str) -> None:
        self.codec = codec
        self.values: NDArray[Any] = np.empty((tokens, width), value_type(codec))
        self.scales = np.empty(tokens, np.float32) if codec == "int8" else None
        self._squares = [0.0, 0.0]

    def put(self, index: NDArray[np.int64], states: Tensor) -> None:
        """Encode (n, W) states into the rows of these tokens, on the states' own device."""
        exact = states.float()
        if self.scales is None:
            values = exact.half() if self.codec == "float16" else exact
            decoded = values.float()
        else:
            scales = exact.abs().amax(-1, keepdim=True) / 127
            scales = torch.where(scales == 0, 1, scales)  # of a token with zeros only
            values = (exact / scales).round().to(torch.int8)
            decoded = values * scales
            self.scales[index] = scales[:, 0].cpu().numpy()
        self.values[index] = values.cpu().numpy()
        self._add_squares(decoded - exact, exact)

    def _add_squares(self, lost: Tensor, exact: Tensor) -> None:
        for place, what in enumerate((lost, exact)):
            self._squares[place] += float(torch.linalg.vector_norm(what, dtype=torch.float64)) ** 2

    def finish(self) -> Hidden:
        """What is stored, once all tokens are in."""
        return Hidden(self.values, self.scales)

    def error(self, what: str) -> float:
        """||decoded - exact|| / ||exact||. Raises TargetsError where a value was lost."""
        lost, exact = self._squares
        if not np.isfinite(exact):
            raise TargetsError(f"{what}: the teacher gave values that are not finite; try float32")
        if not np.isfinite(lost):
            raise TargetsError(
                f"{what}: a hidden value is beyond {self.codec} (65,504); set targets.codec: int8 "
                "or float32"
            )
        return float(f"{(lost / exact) ** 0.5 if exact else 0.0:.6g}")


class LeadingRecord(HiddenRecord):
    """The leading directions of a shard's states: a pass over them in float16 when all are in."""

    def __init__(self, tokens: int, width: int, codec: str, directions: int) -> None:
        super().__init__(tokens, width, codec)
        self.directions = directions
        self._sum: Any = 0.0
        self._products: Any = 0.0

    def put(self, index: NDArray[np.int64], states: Tensor) -> None:
        """Keep (n, W) states, and their sums of products."""
        exact = states.float()
        self._sum += exact.sum(0, dtype=torch.float64)
        self._products += (exact.T @ exact).double()
        self.values[index] = exact.half().cpu().numpy()

    def finish(self) -> Hidden:
        """Find the directions, and bring all states into them."""
        states, tokens = self.values, len(self.values)
        mean = self._sum.cpu() / tokens
        products = self._products.cpu()
        if not torch.isfinite(products).all():
            self._squares = [0.0, float("nan")]
            return Hidden(states)
        covariance = products / tokens - torch.outer(mean, mean)
        directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.directions]
        centre, directions = mean.float(), directions.float()
        self.values = np.empty((tokens, self.directions), np.float16)
        for start in range(0, tokens, CHUNK):
            rows = slice(start, start + CHUNK)
            exact = torch.from_numpy(states[rows]).float()
            values = ((exact - centre) @ directions).half()
            self._add_squares(values.float() @ directions.T + centre - exact, exact)
            self.values[rows] = values.numpy()
        self._squares[1] = float(products.trace())  # of what was given: float16 may not hold it
        return Hidden(self.values, None, torch.cat([centre[None], directions.T]).numpy())
