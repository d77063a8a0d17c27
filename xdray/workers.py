"""What runs in the processes of a pool, and what must come home from them; Ray is handed in."""

import contextlib
import ctypes
import functools
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdray.errors import ClusterError, XdrayError
from xdray.redaction import redact

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DEATHS = 3  # of the processes that tried one item


class Ledger:
    """Tries of each item that has not come to an end, and the error that ended a run.

    Lives in a process of its own, since it is needed when a worker has died.
    """

    def __init__(self) -> None:
        self._tries: dict[int, int] = {}
        self._error: XdrayError | None = None

    def tries(self, index: int) -> int:
        """Tries of an item so far."""
        return self._tries.get(index, 0)

    def begin(self, index: int) -> int:
        """Count a try of an item; return which one it is, from 1."""
        self._tries[index] = self._tries.get(index, 0) + 1
        return self._tries[index]

    def end(self, index: int) -> None:
        """Forget an item that gave a result."""
        self._tries.pop(index, None)

    def fail(self, error: XdrayError) -> None:
        """Keep an error that no second try would mend; the first one stays."""
        self._error = self._error or error

    def error(self) -> XdrayError | None:
        """Return that error."""
        return self._error


class Turns:
    """Lets threads work side by side, but one that asks for it alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working, self._asking, self._is_alone = 0, 0, False

    @contextlib.contextmanager
    def take(self, alone: bool) -> Iterator[None]:
        """Work in the block; others wait as long as one is alone, or asks for it."""
        with self._changed:
            self._asking += alone
            self._changed.wait_for(
                lambda: not self._is_alone and not (self._working if alone else self._asking)
            )
            self._asking -= alone
            self._working, self._is_alone = self._working + 1, alone
        try:
            yield
        finally:
            with self._changed:
                self._working, self._is_alone = self._working - 1, False
                self._changed.notify_all()


class PoolWorker:
    """One actor of a pool: a row with an item in, a row with its receipt or its error out.

    An error raised here would be wrapped by Ray, printed, and try every actor; as a row it comes
    home as it was.
    """

    def __init__(
        self,
        worker_class: Callable[..., Callable[[Any], Any]],
        worker_kwargs: dict[str, Any],
        tries_of: Callable[[int], int],
        count_try: Callable[[int], int],
        count_end: Callable[[int], object],
        folder: str,
        logs: str,
    ) -> None:
        self._tries_of, self._count_try, self._count_end = tries_of, count_try, count_end
        self._name, self._logs = worker_class.__name__, logs
        # built on the first item, since Ray would restart for ever an actor that dies at its start
        self._worker = functools.cache(lambda: worker_class(**worker_kwargs))
        self._building, self._turns = threading.Lock(), Turns()
        enter(folder)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Work on the one row of a batch."""
        import pyarrow as pa

        index, item = pickle.loads(batch["item"][0].as_py())
        again = self._tries_of(index) > 0
        with self._turns.take(alone=again):  # so that no other item dies of one that kills
            receipt = pickle.dumps(self._receipt(index, item))
        return pa.table({"receipt": pa.array([receipt], pa.large_binary())})

    def _receipt(self, index: int, item: Any) -> Any:
        tries = self._count_try(index)
        if tries > MAX_DEATHS:
            return ClusterError(
                f"shard {item}: killed its {self._name} {MAX_DEATHS} times, expected a result; "
                "often memory is short: lower targets.shard_sentences, teacher.batch_tokens or "
                f"replicas and run the same command again; see {self._logs}"
            )
        try:
            with self._building:  # `cache` alone would let a second thread build another one
                worker = self._worker()
            receipt = worker(item)
        except Exception as error:
            sys.stderr.write(redact(traceback.format_exc()))  # into the actor's log
            return as_xdray_error(error, f"{self._name}, shard {item}", self._logs)
        self._count_end(index)
        return {**receipt, "index": index, "tries": tries}


def keep_few_shapes(training: bool = False) -> None:
    """Let oneDNN keep 64 compiled products, not one for each of the last 1,024 shapes of a batch.

    PyTorch's layer above it too, 1,024 a thread, but where a process trains, whose steps would take
    a tenth longer. Half a GiB and more. Both read this once, at their first product. What the user
    set stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if not training:
        os.environ.setdefault("LRU_CACHE_CAPACITY", "64")


def trim_memory() -> None:
    """Hand freed memory back: batches of many shapes leave glibc's heaps full of holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def enter(folder: str) -> None:
    """Work where the command was typed, as relative paths of the config do, if it is there."""
    if Path(folder).is_dir():
        os.chdir(folder)


def as_xdray_error(error: BaseException, where: str, logs: str) -> XdrayError:
    """Return the XdrayError inside an error, else a ClusterError that tells the innermost one."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, XdrayError):
            return cause
    return ClusterError(f"{where}: {_one_line(causes[-1])}; the traceback is under {logs}")


def last_line(error: BaseException) -> str:
    """Return kind and message of the innermost error, in one line."""
    return _one_line(list(_causes(error))[-1])


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it wraps, outside in, as Ray Core, Data and Train wrap them."""
    yield error
    inside = [error.__cause__, getattr(error, "cause", None)]
    inside += [getattr(error, "controller_failure", None)]
    inside += [*getattr(error, "worker_failures", {}).values()]
    for cause in inside:
        if isinstance(cause, BaseException):
            yield from _causes(cause)
