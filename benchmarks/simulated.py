"""A simulated teacher. No torch: 64 processes that load it at once would fill a small machine."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any


class SleepingTeacher:
    """A teacher of known latency: no arithmetic."""

    def __init__(self, seconds: float) -> None:
        """seconds: of a batch."""
        self.seconds = seconds

    def __call__(self, item: int) -> dict[str, Any]:
        """Sleep for the batches of a shard; returns who did, from when to when."""
        started = time.monotonic()
        time.sleep(self.seconds * item)
        return {"replica": os.getpid(), "started": started, "ended": time.monotonic()}


def share_of_ideal(receipts: Sequence[Mapping[str, Any]], seconds: float) -> float:
    """Work done over that of replicas that never wait, `seconds` an item.

    From when each replica has done one, until none may be left for it: neither the start of
    processes nor their end is scheduling.
    """
    firsts: dict[int, float] = {}
    for its in receipts:
        firsts[its["replica"]] = min(its["ended"], firsts.get(its["replica"], its["ended"]))
    begin, end = max(firsts.values()), max(its["started"] for its in receipts)
    done = sum(
        max(0.0, min(end, its["ended"]) - max(begin, its["started"]))
        / (its["ended"] - its["started"])
        for its in receipts
    )
    assert 2 * done > len(receipts), f"{done:.0f} of {len(receipts)} items while all were at work"
    return done * seconds / (len(firsts) * (end - begin))
