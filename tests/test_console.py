"""Progress on a pipe, and the log file that workers share with the driver."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from xdray.console import Console


def test_progress_on_a_pipe_is_a_line_with_rate_and_only_at_the_end_when_quick(
    capsys: pytest.CaptureFixture[str],
):
    with Console() as console:
        for done in (0, 10, 20, 30):
            console.progress("targets", done, 30, "sentences")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("targets: 30 of 30 sentences, ")


def test_a_part_that_is_done_when_first_heard_of_has_no_rate_and_no_line(
    capsys: pytest.CaptureFixture[str],
):
    with Console() as console:
        console.progress("stage labels, epoch 10 of 10", 8, 8, "steps")
    assert capsys.readouterr().out == ""


def test_what_is_said_is_printed_and_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    console = Console(tmp_path / "log.txt")
    console.say("stage labels [+head]: 3 s")
    assert capsys.readouterr().out == "stage labels [+head]: 3 s\n"
    assert (tmp_path / "log.txt").read_text().endswith("Z stage labels [+head]: 3 s\n")


def test_no_secret_is_said_shown_or_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console, uri = Console(tmp_path / "log.txt"), "s3://AK:wJalrXUtnFEMI@b"
    console.say(f"reading {uri}")
    table = Table("store")
    table.add_row(uri)
    console.show(table)
    printed, logged = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in (printed, logged):
        assert text.count("s3://REDACTED@b") == 2
        assert "wJalrXUtnFEMI" not in text


def test_lines_of_a_worker_are_printed_by_the_driver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    driver, worker = Console(tmp_path / "log.txt"), Console(tmp_path / "log.txt", quiet=True)
    driver.say("before")
    with driver.follow():
        worker.say("epoch 1 of 2")
        worker.say("epoch 2 of 2")
    worker.say("after")
    assert capsys.readouterr().out.splitlines() == ["before", "epoch 1 of 2", "epoch 2 of 2"]


@pytest.mark.parametrize(
    ("prints", "status", "said"),
    [
        ("Console().say('a line')", 1, "xdray sample: stdout: nobody reads it any more; the same"),
        ("print('a line')", 0, ""),  # its last word is lost, its work is done
    ],
)
def test_a_job_whose_reader_has_gone_says_so_and_no_more(prints: str, status: int, said: str):
    script = "from xdray import cli; from xdray.console import Console\n"
    script += f"cli.VERBS['sample'] = lambda args: {prints} or {{}}\n"
    script += "raise SystemExit(cli.main(['sample', 'tiny', 'nowhere']))"
    reader, writer = os.pipe()
    os.close(reader)
    job = subprocess.run(
        [sys.executable, "-c", script],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    os.close(writer)
    assert job.returncode == status
    assert job.stderr.startswith(said)
    assert len(job.stderr.splitlines()) == bool(said)
