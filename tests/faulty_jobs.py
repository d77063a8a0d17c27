"""Runs jobs that are killed half-way: a process that has imported everything and forks for each.

A forked job costs no start of Python and torch, so many can be killed. It needs a targets store
that holds all that it asks for: Ray, which it would start then, cannot be forked.

As a script it reads a JSON object a line (argv, out, folder, and what is to happen) and answers
with one: status (an exit status, or minus a signal) and calls.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


@dataclass
class Job:
    """How a job ended."""

    status: int
    """Exit status, or minus the signal that killed it."""
    calls: int
    """Calls that change a file below its folder, until its end."""
    seconds: float
    output: str

    @property
    def last(self) -> dict[str, Any]:
        """Its last line."""
        return json.loads(self.output.splitlines()[-1])


class Forker:
    """The process that forks, from the side of the test."""

    def __init__(self, process: "subprocess.Popen[str]", out: Path) -> None:
        self._process, self._out = process, out

    def run(self, argv: list[str], folder: str, **fault: Any) -> Job:
        """Run a job to its end. kill_at: the call below `folder` before which it is killed;
        torn: where that is the opening of a file to write, after it. kill_after: seconds. warm: in
        the process that forks, so that later jobs find imported what it imports.
        """
        assert self._process.stdin
        assert self._process.stdout
        order = {"argv": argv, "folder": folder, "out": str(self._out), **fault}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks is gone"
        return Job(**json.loads(line), output=self._out.read_text(encoding="utf-8"))


@contextmanager
def forker(out: Path) -> Iterator[Forker]:
    """Start the process that forks. out: a file for what jobs print."""
    names = ("RAY_ADDRESS", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        yield Forker(process, out)
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    from xdray.cli import main

    for line in sys.stdin:
        order = json.loads(line)
        started = time.monotonic()
        if order.get("warm"):
            with Path(order["out"]).open("w") as out, redirect_stdout(out):
                status = main(order["argv"])
            _answer({"status": status, "calls": 0, "seconds": time.monotonic() - started})
            continue
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            _run(order, send)
        os.close(send)
        status = _wait(child, order.get("kill_after"))
        with os.fdopen(receive, "rb") as pipe:
            calls = len(pipe.read())
        seconds = time.monotonic() - started
        _answer({"status": status, "calls": calls, "seconds": seconds})


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _wait(child: int, kill_after: float | None) -> int:
    until = time.monotonic() + (kill_after or 600.0)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _run(order: dict[str, Any], send: int) -> None:
    """In the child: watch the calls, run the job."""
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    calls, busy = 0, False

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal calls, busy
        if event not in CALLS or busy:
            return
        busy = True
        path = args[0]
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(order["folder"]):
            writes = event != "open" or bool(args[2] & WRITES)
            calls += writes
            if writes:
                os.write(send, b"x")
            if writes and calls == order.get("kill_at"):
                if event == "open" and order.get("torn"):
                    os.open(path, args[2] & ~os.O_EXCL, 0o666)
                os.kill(os.getpid(), signal.SIGKILL)
        busy = False

    sys.addaudithook(watch)
    from xdray.cli import main

    status = 70
    try:
        status = main(order["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
