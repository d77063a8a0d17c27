import contextlib
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from xdray.sessions import LocalSession, RaySession
from xdray.watching import Meters


def write(text: str):
    return lambda folder: (folder / "state").write_text(text)


def latest(session: LocalSession) -> str:
    folder = session.latest_checkpoint()
    assert folder is not None
    return (Path(folder) / "state").read_text()


def test_a_new_process_finds_the_last_checkpoint_and_only_that(tmp_path: Path):
    session = LocalSession(tmp_path / "run", "cpu")
    assert session.latest_checkpoint() is None
    for number in range(12):
        session.save(write(str(number)), {"step": number})
    assert latest(LocalSession(tmp_path / "run", "cpu")) == "11"
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_checkpoint_that_was_not_finished_is_never_read(tmp_path: Path):
    session = LocalSession(tmp_path, "cpu")
    session.save(write("whole"), {})

    def dies(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.save(dies, {})
    assert latest(session) == "whole"
    session.save(lambda folder: (folder / "other").touch(), {})
    assert [path.name for path in Path(session.latest_checkpoint() or "").iterdir()] == ["other"]


def test_a_kill_between_the_new_name_and_the_removal_of_the_old_costs_nothing(tmp_path: Path):
    session = LocalSession(tmp_path, "cpu")
    session.save(write("new"), {})
    newest = Path(session.latest_checkpoint() or "")
    stale = newest.with_name("checkpoint-00000000")
    stale.mkdir()
    (stale / "state").write_text("old")
    assert latest(session) == "new"
    session.save(write("newer"), {})
    assert latest(session) == "newer"
    assert not stale.exists()


def test_a_session_without_a_folder_has_no_checkpoints():
    session = LocalSession(None, "cpu")
    assert session.latest_checkpoint() is None
    with pytest.raises(AssertionError):
        session.save(write("x"), {})


class Train:
    """Stands where ray.train does; it never gets the checkpoint."""

    def get_checkpoint(self) -> None:
        return None

    def report(self, metrics: object, checkpoint: object) -> None:
        os._exit(9)  # no `finally` runs

    class Checkpoint:
        @staticmethod
        def from_directory(folder: str) -> str:
            return folder


def session_of(folder: str, rank: int = 0) -> RaySession:
    return RaySession(rank, 1, "cpu", folder, Train(), contextlib.ExitStack(), Meters())


def test_what_a_killed_worker_was_writing_is_removed_by_the_next_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for run in ("mine", "other"):
        worker = multiprocessing.get_context("fork").Process(
            target=session_of(run).save, args=(write("half"), {})
        )
        worker.start()
        worker.join()
        assert worker.exitcode == 9
    assert len(list(tmp_path.iterdir())) == 2
    session_of("mine", rank=1).latest_checkpoint()  # rank 0 may be writing
    assert len(list(tmp_path.iterdir())) == 2
    session_of("mine").latest_checkpoint()
    assert len(list(tmp_path.iterdir())) == 1
    session_of("other").latest_checkpoint()
    assert not list(tmp_path.iterdir())


def test_a_killed_run_s_unfinished_checkpoint_is_removed_where_the_run_goes_on(tmp_path: Path):
    (tmp_path / "checkpoint.partial").mkdir()
    assert LocalSession(tmp_path, "cpu").latest_checkpoint() is None
    assert not list(tmp_path.iterdir())
