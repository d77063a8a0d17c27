"""How far a student says what its teacher says, gold aside."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

ROWS = 65_536
"""Compared at once."""


def class_agreement(teacher: NDArray[np.floating], student: NDArray[np.floating]) -> dict[str, Any]:
    """Compare rows of logits (U, C): share with the same best class, mean KL in nats.

    KL is from teacher to student at temperature 1.
    """
    assert teacher.shape == student.shape, "the same rows and classes on both sides"
    equal, nats = 0, 0.0
    for first in range(0, len(teacher), ROWS):
        ours, theirs = (its[first : first + ROWS].astype(np.float64) for its in (teacher, student))
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        logs = log_softmax(ours, axis=-1)
        nats += float((np.exp(logs) * (logs - log_softmax(theirs, axis=-1))).sum())
    most = max(len(teacher), 1)
    return {"equal": equal / most, "mean_kl": nats / most, "units": len(teacher)}
