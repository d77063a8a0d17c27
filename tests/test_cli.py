"""The command line: exit status, one line on stderr, and JSON as the last line of stdout."""

import json
import os
from pathlib import Path

import pytest
import torch

from xdray.cli import main
from xdray.configfile import load_config
from xdray.errors import ConfigError

MINIMAL = """
run: {{folder: {folder}/run}}
data:
  train: {{path: "{text}/train/*.conll", language: "{{stem}}"}}
  dev: {{path: "{text}/dev/*.conll", language: "{{stem}}"}}
  test: {{path: "{text}/test/*.conll", language: "{{stem}}"}}
  transfer: {{path: "{text}/transfer/*.txt", language: "{{stem}}"}}
teacher: {{model: {teacher}}}
student: {{embedding: 8, hidden: 8}}
"""


@pytest.fixture
def config(tmp_path: Path, tiny_text: Path, tiny_teacher: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL.format(folder=tmp_path, text=tiny_text, teacher=tiny_teacher))
    return str(path)


def _last(capsys: pytest.CaptureFixture[str]) -> tuple[dict, str]:
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured.err


def test_a_plan_starts_nothing_and_writes_nothing(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["distill", config, "--plan"]) == 0
    line, _ = _last(capsys)
    assert line["status"] == "done"
    assert [stage["name"] for stage in line["plan"]["stages"]][:2] == [
        "representation",
        "logits +head",
    ]
    assert line["plan"]["transfer"]["sentences~"] > 100
    assert not (tmp_path / "run").exists()


FLEET = ["--plan", "--cluster", "2x8xH100+1x32cpu"]


def test_a_plan_for_a_cluster_says_who_sits_where_and_which_labels_it_cannot_know(
    config: str, capsys: pytest.CaptureFixture[str]
):
    args = ["cluster.teacher_labels.pool=teacher", "training.workers=[2, 4]"]
    assert main(["distill", config, *FLEET, "targets.shard_sentences=16", *args]) == 0
    printed = capsys.readouterr().out
    plan = json.loads(printed.splitlines()[-1])["plan"]
    assert [row["training workers"] for row in plan["seats"]] == ["4", "0"]
    assert [int(row["teacher actors"]) > 2 for row in plan["seats"]] == [True, False]
    assert "label pool: --cluster does not say it" in printed
    assert "actors first, workers when they are done" in printed


def test_a_plan_for_a_cluster_does_not_ask_for_room_on_this_machine(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    huge = tmp_path / "huge.txt"
    huge.write_text("Anna lives in Lyon .\n" * 2000)
    os.truncate(huge, 2**40)  # a hole on the disk: only its size is looked at
    args = ["distill", config, f"data.transfer.sources={huge}"]
    streamed = "targets.delivery=streamed"
    assert main([*args, "--plan"]) == 1
    assert "its disk has" in _last(capsys)[0]["error"]["message"]
    assert main([*args, "--plan", streamed, "cluster.object_store_gib=0.0001"]) == 1
    assert "cluster.object_store_gib" in _last(capsys)[0]["error"]["message"]
    for more in ([], [streamed, "cluster.object_store_gib=0.0001"]):
        assert main([*args, *FLEET, *more]) == 0
        assert _last(capsys)[0]["plan"]["transfer"]["sentences~"] > 10**10


def test_a_cluster_to_plan_for_is_no_cluster_to_search_on(
    config: str, capsys: pytest.CaptureFixture[str]
):
    space = "search={space: {student.hidden: [4, 8]}}"
    assert main(["tune", config, space, "--cluster", "4x8xH100"]) == 1
    assert "a cluster to plan for" in _last(capsys)[0]["error"]["message"]
    assert main(["tune", config, space, *FLEET]) == 0
    assert _last(capsys)[0]["plan"]["run"]["devices"]["available"]["gpus"] == 16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.hiden=3", "did you mean 'hidden'"),
        ("recipe.layer=9", "recipe.layer = 9: the teacher has layers 0 (embeddings) to 2"),
        ("student.embedding=64", "student.embedding = 64 is wider"),
        ("student={kind: encoder, intermediate: 65}", "has 64 feed-forward units a layer"),
        ("tokens.max_length=999", "reads at most 160 tokens"),
        (
            "teacher.labels=[B-LOC, O, I-LOC, B-ORG, I-ORG, B-PER, I-PER]",
            "of itself that the order",
        ),
        ("teacher={finetune: {encoder: x}, labels: [a, b]}", "leave `labels` out"),
        ("teacher.model=./nowhere", "no such folder"),
        ("data.dev=nothing.conll", "nothing.conll"),
        ("task.labels=[O, B-X, I-X]", "in any order"),
        ("teacher.replicas=64", "teacher.replicas"),
        ("training.workers=64", "training.workers"),
        ("cluster.num_gpus=8", "cluster.num_gpus"),
        ("data.transfer=", "data.transfer = None"),
        ("data.transfer.sources=none.txt", "none.txt"),
    ],
)
def test_a_mistake_ends_with_one_line_and_status_1_before_ray_starts(
    config: str, capsys: pytest.CaptureFixture[str], override: str, message: str
):
    import ray

    running = ray.is_initialized()
    assert main(["distill", config, override]) == 1
    line, stderr = _last(capsys)
    assert line["status"] == "failed"
    try:
        assert line["run_dir"] == load_config(config, [override]).run.folder
    except ConfigError:
        assert line["run_dir"] is None
    assert message in line["error"]["message"]
    assert len(stderr.splitlines()) == 1
    assert ray.is_initialized() == running


def test_files_of_two_labelled_splits_are_refused_however_they_are_written(
    config: str, tiny_text: Path, capsys: pytest.CaptureFixture[str]
):
    overlapping = f"data.test=[{tiny_text}/test/*.conll, {tiny_text}/./dev/*.conll]"
    assert main(["distill", config, overlapping]) == 1
    assert "data.dev and data.test both read" in _last(capsys)[0]["error"]["message"]


def test_a_refused_config_does_not_take_the_run_folder(
    config: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["annotate", config, "recipe.layer=9"]) == 1
    capsys.readouterr()
    assert main(["annotate", config, "recipe.layer=9", "data.scheme=BIOES"]) == 1
    assert "recipe.layer = 9" in _last(capsys)[0]["error"]["message"]  # not: of another config


def test_an_error_of_the_system_ends_with_a_last_line_too(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from xdray import distillation

    for error in (OSError(28, "No space left on device"), ValueError("a fault of ours")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(distillation, "distill", fail)
        assert main(["distill", config]) == 1
        line, _ = _last(capsys)
        assert line["error"] == {"kind": type(error).__name__, "message": str(error)}


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_runs_short_is_one_line_that_says_what_to_lower(
    config: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from xdray import distillation

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(distillation, "distill", fail)
    assert main(["distill", config]) == 1
    line, shown = _last(capsys)
    assert "memory ran short" in line["error"]["message"]
    assert "lower batch_tokens" in shown
    assert "Traceback" not in shown


def test_a_word_that_is_no_override_is_a_usage_error(config: str):
    with pytest.raises(SystemExit) as caught:
        main(["distill", config, "--plam"])
    assert caught.value.code == 2


def test_options_may_stand_before_overrides(config: str, capsys: pytest.CaptureFixture[str]):
    assert main(["distill", config, "--plan", "student.hidden=9"]) == 0
    capsys.readouterr()


def test_text_whose_targets_no_disk_can_hold_is_refused_before_anything_starts(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "huge.txt"
    path.write_text("Anna lives in Lyon .\n" * 2000, encoding="utf-8")
    os.truncate(path, 1 << 43)  # a hole: 8 TiB that take no room
    assert main(["distill", config, f"data.transfer.sources={path}"]) == 1
    line, _ = _last(capsys)
    assert "GiB, its disk has" in line["error"]["message"]
    assert not (tmp_path / "run" / "plan.json").exists()
