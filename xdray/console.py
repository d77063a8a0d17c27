"""What a job says while it works: lines, progress with rate and time left, the run's log file.

On a terminal progress is one moving bar; on a pipe it is a plain line every half minute.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from xdray.redaction import redact

PLAIN_SECONDS = 30.0
"""Between two progress lines on a pipe."""
FOLLOW_SECONDS = 1.0
"""Between two looks at the log file that workers write."""


class _Stdout(RichConsole):
    """Stdout; rich itself would end the process where nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        """Raise an error as any file would that cannot be written."""
        mute_stdout()
        raise BrokenPipeError("stdout: nobody reads it any more; the same command continues")


def mute_stdout() -> None:
    """Let what is printed from here on go nowhere, what Python has kept for its end too."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Console:
    """Prints to stdout and appends to the run's log file."""

    def __init__(self, log_file: Path | None = None, quiet: bool = False) -> None:
        """log_file: None for no file. quiet: the file only (a worker, whose driver prints)."""
        self.log_file = log_file
        self._rich = _Stdout(highlight=False, soft_wrap=True, quiet=quiet)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._started = self._shown = 0.0

    def __enter__(self) -> "Console":
        """Use as a context, so that a bar never outlives an error."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self.end()

    def say(self, text: str) -> None:
        """One line, printed and logged with the time."""
        text = redact(text)
        self._rich.print(text, markup=False)
        self._log(text)

    def show(self, renderable: RenderableType) -> None:
        """Print a table of rich's; only its text goes into the log file."""
        self.end()
        with self._rich.capture() as capture:
            self._rich.print(renderable)
        text = redact(capture.get())
        self._rich.out(text, end="", highlight=False)
        self._log("\n" + text)

    def progress(self, title: str, done: int, total: int, unit: str) -> None:
        """Say how far a part is; another title ends the part before."""
        now = time.monotonic()
        first = title != self._title
        if first:
            self.end()
            self._title, self._started, self._shown = title, now, now
        if self._quiet:
            return
        if self._rich.is_terminal:
            self._move_bar(title, done, total, unit, now)
        elif now - self._shown >= PLAIN_SECONDS or (done == total and not first):
            self._shown = now
            self._rich.print(_plain(title, done, total, unit, now - self._started), markup=False)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._title = None, None, ""

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Print the lines that other processes append to the log file meanwhile."""
        assert self.log_file is not None
        position = self.log_file.stat().st_size if self.log_file.exists() else 0
        stop = threading.Event()
        thread = threading.Thread(
            target=self._print_new_lines, args=(self.log_file, position, stop), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _print_new_lines(self, path: Path, position: int, stop: threading.Event) -> None:
        finished = False
        while not finished:
            finished = stop.wait(FOLLOW_SECONDS)
            if not path.exists():
                continue
            with path.open(encoding="utf-8") as file:
                file.seek(position)
                for line in iter(file.readline, ""):
                    self._rich.print(line.rstrip("\n").partition(" ")[2], markup=False)
                position = file.tell()

    def _move_bar(self, title: str, done: int, total: int, unit: str, now: float) -> None:
        if self._bar is None or self._task is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, rate="")
            self._bar.start()
        rate = f"{_rate(done, now - self._started):.0f} {unit}/s"
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def _log(self, text: str) -> None:
        if self.log_file is not None:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {text}\n")


def _rate(done: int, seconds: float) -> float:
    return done / seconds if seconds > 0 else 0.0


def _plain(title: str, done: int, total: int, unit: str, seconds: float) -> str:
    rate = _rate(done, seconds)
    left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
    return f"{title}: {done} of {total} {unit}, {rate:.0f} {unit}/s{left}"


@contextmanager
def stderr_without(word: bytes) -> Iterator[None]:
    """Hold back stderr, of libraries too, then let it go without the lines that have a word."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, b"".join(line for line in held if word not in line))
