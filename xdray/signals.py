"""Leaving when told to: on SIGTERM and Ctrl-C a step is ended, its state saved, and all stops.

`ray job stop`, Kubernetes and `kill` send SIGTERM, and SIGKILL some seconds later.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Terminated(SystemExit):
    """SIGTERM came. Ends a process with 143, that is 128 + 15, as a shell says it."""


class _Wish:
    """Whether a block must not be broken off now, and the signal that came meanwhile."""

    unbroken = False
    number: int | None = None
    broken = False
    """A second signal broke a block all the same: its state is no whole one."""


def leave(number: int, frame: FrameType | None = None) -> None:
    """Handle SIGTERM or SIGINT: end as on any error, at once or where `unbroken` ends."""
    if _Wish.unbroken and _Wish.number is None:
        _Wish.number = number
        return
    _Wish.broken |= _Wish.unbroken
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Have `leave` handle both signals in a block; only the main thread may come here."""
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Let a signal wait for the end of a block, so that what it changes is whole; not a second one.

    Free of cost where nobody handles signals: in workers.
    """
    _Wish.unbroken = True
    try:
        yield
    finally:
        number = _Wish.number
        _Wish.unbroken, _Wish.number = False, None
    if number is not None:
        leave(number)


@contextlib.contextmanager
def before_leaving(save: Callable[[], object]) -> Iterator[None]:
    """Call `save` where a signal ends a block, but not within an `unbroken` one."""
    _Wish.broken = False
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        if not _Wish.broken:
            save()
        raise
