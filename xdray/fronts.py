"""What nothing beats: the Pareto front of some points, and the area that they dominate."""

import itertools
from collections.abc import Sequence

MAXIMISED = {"score"}
"""Objectives of which more is better; of the others less."""


def pareto_front(points: Sequence[Sequence[float]], objectives: Sequence[str]) -> list[int]:
    """Indices of the points that no other beats in every objective, in their order."""
    signs = [1 if o in MAXIMISED else -1 for o in objectives]
    signed = [tuple(s * v for s, v in zip(signs, point, strict=True)) for point in points]

    def beaten(k: int) -> bool:
        return any(
            all(a >= b for a, b in zip(other, signed[k], strict=True))
            and (other != signed[k] or place < k)
            for place, other in enumerate(signed)
            if place != k
        )

    return [k for k in range(len(signed)) if not beaten(k)]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that some (score, cost) points dominate down to a reference (worst score and cost)."""
    worst_score, worst_cost = reference
    inside = sorted((c, s) for s, c in points if s > worst_score and c < worst_cost)
    area, best = 0.0, worst_score
    for (cost, score), following in itertools.zip_longest(inside, inside[1:]):
        best = max(best, score)
        area += ((following[0] if following else worst_cost) - cost) * (best - worst_score)
    return area
