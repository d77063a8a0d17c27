"""The whole path on real Ray: text in, student out; again, with two workers, and killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xdray.config import Config
from xdray.configfile import dump_config
from xdray.distillation import distill, finetune_only
from xdray.errors import ConfigError
from xdray.report import summary
from xdray.scoring import evaluate_model

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent
MakeConfig = Callable[..., Config]


def _student_weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student" / "model.safetensors")


def test_text_goes_in_and_a_scored_student_comes_out(
    tiny: MakeConfig, ray_session: None, capsys: pytest.CaptureFixture[str]
):
    config = tiny("first")
    report = distill(config)
    _, mark, example = capsys.readouterr().out.partition("from transformers import pipeline")
    loaded: dict[str, Any] = {}
    exec(mark + example, loaded)  # the example that was printed
    assert loaded["tagger"].model.config.model_type == "xdray_bilstm"
    folder = Path(config.run.folder)
    targets = report["targets"]
    assert targets["rows"] == targets["teacher_forward_rows"] > 0
    dropped = sum(report["corpus"]["transfer"][key] for key in ("empty", "duplicates"))
    assert targets["rows"] + dropped == report["corpus"]["transfer"]["read"]
    assert len(report["stages"]) == 9
    assert report["compression"] == pytest.approx(
        report["teacher"]["parameters"] / report["student"]["parameters"]
    )
    for name in (
        "config.yaml",
        "plan.json",
        "targets.json",
        "report.html",
        "report.json",
        "log.txt",
    ):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "report.json").read_text()).keys() >= summary(report).keys()
    # the saved student scores what the report says, by another path
    assert evaluate_model(config, None, "test")["test"] == report["student"]["test"]
    assert evaluate_model(config, config.teacher.model, "dev")["dev"]["entity_f1"] == pytest.approx(
        report["teacher"]["dev"]["entity_f1"], abs=0.02
    )  # the run's teacher may compute in bfloat16

    # the same command again finds it done; another student finds the targets there
    stamp = (folder / "student" / "model.safetensors").stat().st_mtime_ns
    assert distill(config)["created"] == report["created"]
    assert (folder / "student" / "model.safetensors").stat().st_mtime_ns == stamp
    student = {"kind": "transformer", "embedding": 8, "hidden": 16, "layers": 2, "heads": 2}
    recipe = {"name": "joint"}
    second = distill(tiny("second", student=student, recipe=recipe, evaluation={"baseline": False}))
    assert second["targets"]["teacher_forward_rows"] == 0
    assert second["targets"]["rows"] == targets["rows"]
    assert second["evaluation"]["teacher_forward_rows"] == 0
    assert second["baseline"] is None

    # stages that come out the same are taken from another run; what is new is trained and reported
    third = distill(
        tiny(
            "third",
            run={"start_from": config.run.folder},
            recipe={"name": "staged_unfreezing", "overrides": {"labels": {"epochs": 1}}},
            evaluation={"hard_labels": True, "latency": False},
        )
    )
    taken = [row["name"] for row in report["stages"] if row in third["stages"]]
    assert taken[0] == "representation"
    assert len(taken) >= 5
    assert third["stages"][-1]["epochs"] == 1
    assert third["hard_labels"]["test"].keys() == third["student"]["test"].keys()


def test_a_teacher_is_fine_tuned_from_a_configuration_alone_once_for_the_same_text(
    tiny: MakeConfig,
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    encoder = tmp_path / "encoder"
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny_teacher, encoder, ignore=weights)
    teacher: dict[str, Any] = {"model": None, "finetune": {"encoder": str(encoder), "epochs": 1}}
    with pytest.raises(ConfigError, match="it holds no weights"):
        finetune_only(tiny("tuned", teacher=teacher))
    teacher["finetune"] |= {"fresh": True, "freeze_embeddings": False}
    first = finetune_only(tiny("tuned", teacher=teacher))
    model = Path(first["teacher"]) / "model.safetensors"
    stamp = model.stat().st_mtime_ns
    assert finetune_only(tiny("tuned", teacher=teacher))["dev"] == first["dev"]
    assert model.stat().st_mtime_ns == stamp
    assert "fine-tuned before" in capsys.readouterr().out
    (tmp_path / "tuned" / "teacher.json").write_text('{"key": "of other text", "seconds": 1.0}')
    finetune_only(tiny("tuned", teacher=teacher))
    assert model.stat().st_mtime_ns > stamp
    assert "stage finetune: finished before" in capsys.readouterr().out
    (tmp_path / "tuned" / "teacher.json").unlink()
    monkeypatch.setattr("xdray.distillation.PLAN_VERSION", 99)
    finetune_only(tiny("tuned", teacher=teacher))
    assert "finished before" not in capsys.readouterr().out  # of another plan


def test_a_run_goes_on_after_its_text_grew(tiny: MakeConfig, ray_session: None, tmp_path: Path):
    """What was prepared from the old text, the pruned vocabulary, is made anew."""
    extra = tmp_path / "extra.txt"
    extra.write_text("a line\n", encoding="utf-8")
    base = tiny("grown").data.transfer.sources[0].model_dump(exclude_defaults=True)
    settings: dict[str, Any] = {
        "data": {"transfer": {"sources": [base, {"path": str(extra), "language": "en"}]}},
        "recipe": {"name": "joint_logits"},
        "training": {"epochs": 1},
        "evaluation": {"baseline": False, "latency": False},
    }
    first = distill(tiny("grown", **settings))
    start = tmp_path / "grown" / "start" / "start.json"
    key = start.read_text()
    (tmp_path / "grown" / "report.json").unlink()  # as if it had been killed before its end
    extra.write_text("a line\nZyxwvq ärgert Ōsaka ĦĦĦ\n", encoding="utf-8")
    second = distill(tiny("grown", **settings))
    assert second["targets"]["rows"] == first["targets"]["rows"] + 1
    assert start.read_text() != key


def test_another_config_in_the_same_folder_is_refused_naming_the_field(
    tiny: MakeConfig, ray_session: None, tmp_path: Path
):
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(tiny("taken")))
    (folder / "start").mkdir()
    with pytest.raises(ConfigError, match=r"student.hidden \(was 8, is 9\).*--fresh"):
        distill(tiny("taken", student={"hidden": 9}))
    (folder / "config.yaml").write_text("theme: dark")  # of something else: never deleted
    with pytest.raises(ConfigError, match=r"its config\.yaml is of something else"):
        distill(tiny("taken"), fresh=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no run folder"):
        distill(tiny("other"), fresh=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_one_and_two_workers_take_the_same_steps(tiny: MakeConfig, ray_session: None):
    """Dropout 0: the weights agree within the rounding of sums taken in another order."""
    reports = {}
    for workers in (0, 1, 2):
        config = tiny(
            f"workers-{workers}",
            student={"dropout": 0.0},
            recipe={"name": "staged"},
            training={"workers": workers},
            evaluation={"baseline": False, "latency": False},
        )
        reports[workers] = (distill(config), _student_weights(config.run.folder))
    for workers in (1, 2):
        for row, other in zip(reports[0][0]["stages"], reports[workers][0]["stages"], strict=True):
            assert row["steps"] == other["steps"]
            for epoch, its in zip(row["history"], other["history"], strict=True):
                assert epoch["terms"] == pytest.approx(its["terms"], rel=1e-3)
        for name, value in reports[0][1].items():
            torch.testing.assert_close(value, reports[workers][1][name], rtol=1e-2, atol=2e-3)
    for name, value in reports[0][1].items():
        assert torch.equal(value, reports[1][1][name]), name


KILLED = """
import sys
from xdray.cli import main
raise SystemExit(main(["distill", sys.argv[1]]))
"""


def _start(config: Path, tmp_path: Path) -> "subprocess.Popen[str]":
    script = tmp_path / "job.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script), str(config)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: int) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "too slow to kill half-way"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_in_the_pass_and_in_a_stage_ends_like_an_undisturbed_one(
    tiny: MakeConfig, tmp_path: Path, workers: int
):
    # Ray Train takes a report about every 2 seconds: a checkpoint a step, and few steps.
    settings: dict[str, Any] = {
        "recipe": {"name": "staged"},
        "training": {"workers": workers, "checkpoint_seconds": 0, "epochs": 4},
        "evaluation": {"baseline": False, "latency": False},
    }
    ends = {}
    for name in ("whole", "killed"):
        config = tiny(name, targets={"store": str(tmp_path / f"store-{name}")}, **settings)
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_config(config))
        folder = Path(config.run.folder)
        shards, stages = Path(config.targets.store), folder / "stages"
        moments = {
            "pass": lambda shards=shards: len(list(shards.glob("*/shards/*/*.parquet"))) >= 3,
            "stage": lambda stages=stages: (
                (stages / "01-representation" / "stage.json").is_file()
                and bool([*stages.glob("checkpoint-*"), *stages.glob("ray/*/checkpoint_*")])
            ),
        }
        for condition in moments.values() if name == "killed" else ():
            process = _start(path, tmp_path)
            _wait(condition, process, 180)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            assert not (folder / "report.json").exists()
        process = _start(path, tmp_path)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        last = json.loads(output.splitlines()[-1])
        assert last["status"] == "done"
        ends[name] = (_student_weights(config.run.folder), last)
    assert ends["whole"][1]["targets"]["rows"] == ends["killed"][1]["targets"]["rows"]
    for name, value in ends["whole"][0].items():
        assert torch.equal(value, ends["killed"][0][name]), name
