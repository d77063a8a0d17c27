"""How much of each language is taken, and which sentences: exact, by seed, in flat memory."""

import random
from collections.abc import Mapping


class Draw:
    """Exactly `wanted` of `left` rows to come, each subset as likely as any other.

    Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S).
    """

    def __init__(self, left: int, wanted: int, seed: str) -> None:
        self.left = left
        self.wanted = wanted
        self._random = random.Random(seed).random

    def take(self) -> bool:
        """Whether the next row is taken."""
        taken = self._random() * self.left < self.wanted
        self.left -= 1
        self.wanted -= taken
        return taken


def share_out(
    counts: Mapping[str, int], limits: Mapping[str, int], sentences: int | None, alpha: float
) -> dict[str, int]:
    """Sentences to take of each language: its limit, or its share of `sentences` by count ** alpha.

    A language with less than its share is taken whole, the rest is shared out anew.
    """
    left = sentences
    if left is None or left >= sum(limits.values()):
        return dict(limits)
    quotas: dict[str, int] = {}
    while True:
        weights = {n: counts[n] ** alpha for n in limits if n not in quotas}
        shares = {n: left * weight / sum(weights.values()) for n, weight in weights.items()}
        whole = {n: limits[n] for n, share in shares.items() if limits[n] <= share}
        if not whole:
            break
        quotas |= whole
        left -= sum(whole.values())
    quotas |= {n: int(share) for n, share in shares.items()}
    by_remainder = sorted(shares, key=lambda n: (int(shares[n]) - shares[n], n))
    for name in by_remainder[: left - sum(int(share) for share in shares.values())]:
        quotas[name] += 1
    return quotas
