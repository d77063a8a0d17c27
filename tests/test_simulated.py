"""The arithmetic of the benchmark's simulated replicas."""

import pytest

from benchmarks.simulated import share_of_ideal


def _items(replica: int, *spans: tuple[float, float]) -> list[dict[str, float]]:
    return [{"replica": replica, "started": begin, "ended": end} for begin, end in spans]


def test_waiting_counts_and_neither_the_start_nor_the_end_does() -> None:
    steady = _items(1, *((float(n), n + 1.0) for n in range(8)))
    late = _items(2, (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7))
    assert share_of_ideal([*steady, *late], 1.0) == pytest.approx(1.0)
    waits = _items(2, (0, 1), (2, 3), (4, 5), (6, 7))
    # from 1 to 7: six of one, three of the other, of twelve
    assert share_of_ideal([*steady, *waits], 1.0) == pytest.approx(9 / 12)
    slow = _items(1, *((2.0 * n, 2 * n + 2.0) for n in range(8)))
    assert share_of_ideal(slow, 1.0) == pytest.approx(0.5)


def test_a_replica_that_came_too_late_is_no_figure() -> None:
    items = [*_items(1, *((float(n), n + 1.0) for n in range(8))), *_items(2, (7, 8))]
    with pytest.raises(AssertionError, match="while all were at work"):
        share_of_ideal(items, 1.0)
