"""Hidden states of a shard in a codec: how they are kept in the store, and decoded where read.

float32, float16: as they are. int8: with one scale a token. pca<k>: the k leading directions of the
shard's own states, float16, with their basis beside them: no two shards need to agree on one, so
that each is written when it is forwarded. What decodes is the nearest states of rank k; a student
is taught nothing of the others.

N tokens of all sentences end to end, W teacher width (3 W of queries, keys and values).
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODEC_NAMES = r"float32|float16|int8|pca[1-9]\d*"
_TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


def directions_of(codec: str) -> int | None:
    """Return k of pca<k>, None of another codec."""
    found = re.fullmatch(r"pca(\d+)", codec)
    return int(found[1]) if found else None


def value_type(codec: str) -> Any:
    """Type of a stored value."""
    return _TYPES["float16" if directions_of(codec) else codec]


def token_bytes(codec: str, width: int) -> int:
    """Bytes of a token's states in the store, a basis apart."""
    values = directions_of(codec) or width
    return values * np.dtype(value_type(codec)).itemsize + (4 if codec == "int8" else 0)


@dataclass(frozen=True)
class Hidden:
    """Hidden states of a shard, or some of it, as they were stored; decoded where they are read."""

    values: NDArray[Any]
    """(N, W) float32, float16 or int8; (N, k) float16 of pca<k>."""
    scales: NDArray[np.float32] | None = None
    """(N,) of int8 values."""
    basis: NDArray[np.float32] | None = None
    """(1 + k, W) of pca<k>: the mean, and orthonormal directions."""

    def take(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of these tokens, decoded: (len(index), W).

        By torch: numpy takes 20 times as long for float16, and its BLAS has threads of its own,
        which wait for those of the training step (an epoch took three times as long).
        """
        import torch

        rows = torch.from_numpy(np.take(self.values, index, axis=0)).float()
        if self.scales is not None:
            rows *= torch.from_numpy(self.scales[index, None])
        if self.basis is not None:
            basis = torch.from_numpy(self.basis)
            rows = torch.addmm(basis[0], rows, basis[1:])
        return rows.numpy()
