"""Processes that a test started, however deep, by /proc: to kill some, and to see none left."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def descendants(of: int | None = None) -> dict[int, str]:
    """Living processes below a process (this one) and what they call themselves."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found: dict[int, str] = {}
    below = {of or os.getpid()}
    while below:
        below = {pid for pid, parent in parents.items() if parent in below} - found.keys()
        found |= {pid: _title(pid) for pid in below}
    return found


def of_session(session: int) -> dict[int, str]:
    """Living processes of a session (setsid), orphans too."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found[int(entry.name)] = _title(int(entry.name))
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def named(name: str, of: int | None = None) -> list[int]:
    """Ids of the processes below whose title holds a name."""
    return sorted(pid for pid, title in descendants(of).items() if name in title)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Fail where a condition does not come true in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"after {seconds} s: {what}"
        time.sleep(0.05)


@contextmanager
def killer(
    name: str, moments: Sequence[Callable[[], object]], pause: float = 0.0
) -> Iterator[list[int]]:
    """SIGKILL a process below by its title as each moment comes, `pause` seconds later.

    Yields the list of those killed.
    """
    killed: list[int] = []
    stop = threading.Event()

    def work() -> None:
        for moment in moments:
            while not (moment() and set(named(name)) - set(killed)):
                if stop.wait(0.05):
                    return
            stop.wait(pause)
            victims = [pid for pid in named(name) if pid not in killed]
            if victims:
                os.kill(victims[-1], signal.SIGKILL)
                killed.append(victims[-1])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()
