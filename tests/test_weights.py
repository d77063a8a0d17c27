"""weights: pickles and code that come with a model are refused, and never run by accident."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tagging_task
from safetensors.torch import load_file

from xdray.checks import check_plan
from xdray.cli import main
from xdray.config import Config, StudentConfig
from xdray.configfile import dump_config
from xdray.corpus import Sentence
from xdray.errors import ConfigError, ExportError
from xdray.labels import LabelSet
from xdray.prediction import Predictor, task_of_model
from xdray.saving import load_student, save_student
from xdray.scoring import evaluate_model
from xdray.student import build_student
from xdray.teacher import load_teacher
from xdray.tokens import load_tokenizer
from xdray.weights import TRUST, teacher_fingerprint

MakeTeacher = Callable[..., Path]
MakeConfig = Callable[..., Config]
TAGGER = "AutoModelForTokenClassification"


@pytest.fixture(autouse=True)
def _nobody_trusts_and_somebody_says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal whether to run a model's code, unless it is told."""
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))


@pytest.fixture
def student(tmp_path: Path, tiny_teacher: Path, tiny_labels: LabelSet) -> Path:
    """Folder of a BiLSTM student."""
    tokenizer: Any = load_tokenizer(str(tiny_teacher))
    task = tagging_task(tiny_labels)
    model = build_student(
        StudentConfig(embedding=8, hidden=8),
        vocab_size=len(tokenizer),
        teacher_width=32,
        task=task,
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=1,
    )
    model.model.config.update(task.saved(None))
    save_student(model, tokenizer, tmp_path / "student")
    return tmp_path / "student"


def _sabotage(folder: Path) -> Path:
    """Make all code in a folder leave a trace; returns where."""
    trace = folder.parent / "it-ran"
    for path in folder.glob("*.py"):
        code = path.read_text()
        path.write_text(code + f"\nimport pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    return trace


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_the_code_in_a_students_folder_is_not_run(student: Path, tiny: MakeConfig) -> None:
    config, sentences = tiny("run"), [Sentence("1", "en", "Anna met Bob in Rome .")]

    def said() -> Any:
        records = Predictor(str(student), task_of_model(str(student)), 1, "cpu").predict(sentences)
        return records, evaluate_model(config, str(student), "dev")["dev"]

    before = said()
    trace = _sabotage(student)
    assert said() == before
    assert not trace.exists()


def _foreign(student: Path) -> Path:
    """Make it a model that only its own code can load, tokenizer too; returns its trace."""
    _change(student / "config.json", model_type="abacus")
    code = (student / "modeling_bilstm.py").read_text()
    (student / "modeling_bilstm.py").write_text(code.replace('"xdray_bilstm"', '"abacus"'))
    return _sabotage(student)


def test_a_model_of_unknown_code_is_refused_without_asking_and_without_running_it(
    student: Path, tiny: MakeConfig
) -> None:
    trace = _foreign(student)
    words = r"model_type 'abacus' is none .* --trust-remote-code"
    with pytest.raises(ConfigError, match=words):
        check_plan(tiny("run", teacher={"model": str(student)}))
    with pytest.raises(ConfigError, match=words):
        load_teacher(str(student), tagging_task(), torch.float32)
    with pytest.raises(ExportError, match="no student can be loaded"):
        load_student(student, TAGGER)
    with pytest.raises((ConfigError, ExportError, ValueError)):
        evaluate_model(tiny("run"), str(student), "dev")
    assert not trace.exists()


def test_a_tokenizer_of_unknown_code_is_refused_without_running_it(student: Path) -> None:
    auto_map = {"AutoTokenizer": [None, "modeling_bilstm.Tokenizer"]}
    _change(student / "tokenizer_config.json", tokenizer_class="Abacus", auto_map=auto_map)
    trace = _sabotage(student)
    with pytest.raises(ConfigError, match="no tokenizer could be loaded"):
        load_tokenizer(str(student))
    assert not trace.exists()


def test_trusted_code_is_run_and_counts_for_the_fingerprint(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = _foreign(student)
    monkeypatch.setenv(TRUST, "remote_code")
    load_student(student, TAGGER)
    assert trace.exists()
    first = teacher_fingerprint(str(student))
    with (student / "modeling_bilstm.py").open("a") as file:
        file.write("# changed\n")
    assert teacher_fingerprint(str(student)) != first


@pytest.mark.parametrize("place", ["teacher.model", "teacher.finetune", "student.start"])
def test_a_pickle_is_refused_before_anything_starts(
    place: str, tiny: MakeConfig, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    folder = make_teacher("bert", tmp_path / "pickled")
    _pickle(folder)
    sections: dict[str, Any] = {
        "teacher.model": {"teacher": {"model": str(folder)}},
        "teacher.finetune": {"teacher": {"model": None, "finetune": {"encoder": str(folder)}}},
        "student.start": {"student": {"kind": "encoder", "start": str(folder)}},
    }[place]
    with pytest.raises(ConfigError) as caught:
        check_plan(tiny("run", **sections))
    assert str(caught.value) == (
        f"{folder}: its weights are pytorch_model.bin, a pickle, expected model.safetensors; save "
        "it once with save_pretrained of transformers, or give --trust-pickle if you trust its "
        "author"
    )


def test_a_student_whose_weights_are_a_pickle_is_refused(student: Path) -> None:
    _pickle(student)
    with pytest.raises(ExportError, match=r"model\.safetensors"):
        load_student(student, TAGGER)


def test_a_trusted_pickle_gives_the_same_model(
    make_teacher: MakeTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_teacher("bert", tmp_path / "pickled")
    ids, mask = torch.arange(12).reshape(2, 6), torch.ones(2, 6)
    expected, _ = load_teacher(str(folder), tagging_task(), torch.float32).forward(ids, mask)
    safe = teacher_fingerprint(str(folder))
    _pickle(folder)
    monkeypatch.setenv(TRUST, "pickle")
    found, _ = load_teacher(str(folder), tagging_task(), torch.float32).forward(ids, mask)
    assert torch.equal(found, expected)
    assert teacher_fingerprint(str(folder)) != safe  # of other files


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_even_a_trusted_pickle_holds_tensors_alone(
    make_teacher: MakeTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trace = make_teacher("bert", tmp_path / "pickled"), tmp_path / "it-ran"
    weights: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    torch.save({**weights, "classifier.bias": _Touch(trace)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setenv(TRUST, "pickle")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_teacher(str(folder), tagging_task(), torch.float32)
    assert not trace.exists()


def test_the_command_line_says_whom_to_trust(
    tiny: MakeConfig,
    make_teacher: MakeTeacher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_teacher("bert", tmp_path / "pickled")
    _pickle(folder)
    (tmp_path / "x.yaml").write_text(dump_config(tiny("run", teacher={"model": str(folder)})))
    command = ["distill", str(tmp_path / "x.yaml"), "--plan"]
    assert main(command) == 1
    assert "--trust-pickle" in capsys.readouterr().err
    assert main([*command, "--trust-remote-code"]) == 1
    assert main([*command, "--trust-pickle"]) == 0


def test_chat_templates_of_a_tokenizer_name_no_files(student: Path, tmp_path: Path) -> None:
    folder = student.parent / "copy"
    shutil.copytree(student, folder)
    templates = [{"name": "default", "template": "x"}, {"name": "../../evil", "template": "x"}]
    _change(folder / "tokenizer_config.json", chat_template=templates)
    load_tokenizer(str(folder)).save_pretrained(tmp_path / "saved" / "deeper")
    assert not list(tmp_path.rglob("*.jinja"))
