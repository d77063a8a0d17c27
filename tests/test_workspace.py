"""Relative paths: from --workspace where it is given, and never into a copy that Ray deletes."""

import json
from pathlib import Path

import pytest

from xdray.cli import main
from xdray.errors import ConfigError, CorpusError
from xdray.places import expand
from xdray.workspace import check_kept, working_dir_copy


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Ray makes of --working-dir, and works in."""
    folder = tmp_path / "working_dir_files" / "_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:/elsewhere")
    monkeypatch.chdir(folder)
    return folder


def test_only_a_submitted_job_has_a_copy(copy: Path, monkeypatch: pytest.MonkeyPatch):
    assert working_dir_copy() == copy
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert working_dir_copy() is None


@pytest.mark.parametrize("place", ["runs/x", "./x", "../_ray_pkg_0/x", "file://{copy}/x", "{copy}"])
def test_results_in_the_copy_are_refused(copy: Path, place: str):
    place = place.format(copy=copy)
    with pytest.raises(ConfigError, match=r"^run.folder: .* which Ray deletes; .*--workspace"):
        check_kept("run.folder", place)


@pytest.mark.parametrize("place", ["/shared/x", "../x", "s3://bucket/x", "file:///shared/x"])
def test_results_elsewhere_are_not(copy: Path, place: str):
    check_kept("run.folder", place)


def test_text_that_was_not_uploaded_is_told_from_text_that_is_not_there(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(CorpusError, match=r"\.gitignore.*--workspace"):
        expand("sample/*.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=f"relative paths are taken from {tmp_path}$"):
        expand("sample/*.txt")


def test_a_workspace_holds_all_but_the_config(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shared = tmp_path / "shared"
    shared.mkdir()
    assert main(["sample", "tiny", "sample/tiny", "--workspace", str(shared)]) == 0
    config = (Path(__file__).parents[1] / "configs" / "tiny.yaml").read_text()
    (copy / "mine.yaml").write_text(config)
    assert main(["distill", "mine.yaml", "--plan", "--workspace", str(shared)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "done"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["sample", "tiny", "sample/tiny"], "folder: sample/tiny"),
        (["distill", "{root}/configs/tiny.yaml", "--plan"], "run.folder: runs/tiny"),
        (["distill", "{root}/configs/tiny.yaml", "--plan", "run.folder=/x"], "targets.store"),
        (["predict", "/model", "/text.txt", "--output", "out.jsonl"], "--output: out.jsonl"),
        (["evaluate_suite", "a.yaml", "--encoder", "a=/b", "--output", "suite"], "--output: suite"),
        (["sample", "tiny", "x", "--workspace", "nowhere"], "--workspace: nowhere is no folder"),
    ],
)
def test_each_job_refuses_to_lose_its_results(
    copy: Path, capsys: pytest.CaptureFixture[str], argv: list[str], named: str
):
    root = Path(__file__).parents[1]
    assert main([word.format(root=root) for word in argv]) == 1
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["error"]["message"].startswith(named)
