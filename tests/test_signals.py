"""SIGTERM and Ctrl-C: what is under way ends whole, and the process leaves as it should."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdray.signals import Terminated, before_leaving, leaving, unbroken

SIGNALS = [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]


def _told(done: list[str], number: signal.Signals, times: int) -> None:
    """An unbroken block that is told to leave."""
    with leaving():
        with unbroken():
            for _ in range(times):
                signal.raise_signal(number)
            done.append("block")
        done.append("after")


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_a_signal_waits_for_the_end_of_an_unbroken_block_and_no_longer(
    number: signal.Signals, raised: type[BaseException]
):
    done: list[str] = []
    with pytest.raises(raised):
        _told(done, number, 1)
    assert done == ["block"]


def test_a_second_signal_does_not_wait_and_none_is_left_over():
    done: list[str] = []
    with pytest.raises(Terminated) as caught:
        _told(done, signal.SIGTERM, 2)
    assert (done, caught.value.code) == ([], 143)
    _told(done, signal.SIGTERM, 0)
    assert done == ["block", "after"]


def test_what_a_second_signal_left_half_done_is_not_saved():
    saved: list[str] = []
    with pytest.raises(Terminated), leaving(), before_leaving(lambda: saved.append("half")):
        _told([], signal.SIGTERM, 2)
    assert saved == []
    with pytest.raises(Terminated), leaving(), before_leaving(lambda: saved.append("whole")):
        _told([], signal.SIGTERM, 1)
    assert saved == ["whole"]


def test_an_error_of_an_unbroken_block_is_not_hidden_by_a_signal():
    @unbroken()
    def fill() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise OSError("full")

    with pytest.raises(OSError, match="full"), leaving():
        fill()


def test_handlers_are_those_of_before_again():
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    with leaving():
        assert [signal.getsignal(number) for number, _ in SIGNALS] != before
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before


def test_saving_is_for_signals_not_for_errors():
    saved = []
    with pytest.raises(Terminated), leaving(), before_leaving(lambda: saved.append("signal")):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(OSError, match="full"), before_leaving(lambda: saved.append("error")):
        raise OSError("full")
    assert saved == ["signal"]


def test_sigterm_before_anything_has_started_ends_with_a_last_line(tmp_path: Path):
    path = Path(__file__).parents[1] / "configs" / "tiny.yaml"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        job = subprocess.Popen(
            [sys.executable, "-c", SLOW_IMPORT, "distill", str(path)],
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        while not (tmp_path / "out").read_text() and job.poll() is None:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == -signal.SIGTERM  # for a shell 143
    line = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert (line["job"], line["status"]) == ("distill", "failed")
    assert line["error"]["kind"] == "Interrupted"
    assert (tmp_path / "err").read_text() == f"xdray distill: {line['error']['message']}\n"
    assert "the same command continues" in line["error"]["message"]


SLOW_IMPORT = """
import sys, time, types
from xdray.cli import main

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "xdray.distillation":
            print("importing")
            time.sleep(60)

sys.meta_path.insert(0, Slow())
main(sys.argv[1:])
"""
