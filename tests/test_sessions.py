from pathlib import Path

import pytest

from xdray.sessions import LocalSession


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
