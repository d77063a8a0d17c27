"""What strangers may hand us: one clear error each, soon, and nothing outside the folders named."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tagging_task
from datasets import config as datasets_config
from pyarrow import fs
from safetensors.torch import load_file, save_file

from xdray import mirror, storage
from xdray.config import Config
from xdray.config_data import SourceConfig
from xdray.configfile import load_config
from xdray.corpus import Sentence, labelled_rows
from xdray.distillation import distill
from xdray.errors import ClusterError, ConfigError, CorpusError, ExportError, XdrayError
from xdray.labels import LabelSet
from xdray.places import expand
from xdray.prediction import Predictor, task_of_model
from xdray.redaction import redact
from xdray.report import is_whole
from xdray.runs import open_run
from xdray.space import space_of
from xdray.strict_json import parse_json
from xdray.tasks.classification import _class_id
from xdray.teacher import load_teacher
from xdray.tokens import load_tokenizer
from xdray.weights import model_folder, teacher_fingerprint

MakeTeacher = Callable[..., Path]
MakeConfig = Callable[..., Config]


def spoil(folder: Path, name: str, **changes: Any) -> Path:
    """Change values of a JSON file of a folder."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.fixture
def model(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A folder of a tagger to spoil."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "model"))


@pytest.mark.parametrize("name", ["../../x.txt", "a/../../x.txt", "/etc/x", "a//b", "./a"])
def test_an_object_whose_name_leaves_its_folder_is_refused(name: str, monkeypatch) -> None:
    path = "bucket/model"
    infos = [fs.FileInfo(f"{path}/{its}", fs.FileType.File, size=1) for its in ("b", name)]
    monkeypatch.setattr(storage, "file_system", lambda uri: (None, path))
    monkeypatch.setattr(storage, "folder_infos", lambda uri, recursive: infos)
    with pytest.raises(ClusterError, match=r"holds an object '.*', expected names below"):
        storage.file_facts("s3://bucket/model")


def test_copies_lie_in_a_folder_that_nobody_else_writes_to(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = mirror._copies()
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(ClusterError, match="not a folder that only this user writes to"):
        mirror._copies()


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "w.bin"}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "sub/model.safetensors"}},
        {"weight_map": {"a": 5}},
        {"weight_map": {}},
        {"weight_map": ["model.safetensors"]},
        {"metadata": {}},
        [],
    ],
)
def test_an_index_names_files_of_weights_beside_it(model: Path, index: Any) -> None:
    for name in ("w.bin", "sub/model.safetensors", "../model.safetensors"):
        (model / name).parent.mkdir(exist_ok=True)
        shutil.copy(model / "model.safetensors", model / name)
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json .*; expected a weight"):
        model_folder(str(model))


def test_an_index_is_of_what_a_teacher_is_known_by(model: Path) -> None:
    before = teacher_fingerprint(str(model))
    names = dict.fromkeys(load_file(model / "model.safetensors"), "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert teacher_fingerprint(str(model)) != before


@pytest.mark.parametrize(
    "text",
    ["x" * 100_000, "?" + "key" * 33_000, "://a:" * 20_000, "a:" * 50_000, "@" + "a:" * 50_000],
)
def test_a_long_text_is_looked_through_for_secrets_soon(text: str) -> None:
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 3


def test_the_second_of_many_keys_is_found_soon() -> None:
    text = "{" + ",".join(f'"k{n}":1' for n in range(200_000)) + ',"k199999":2}'
    started = time.process_time()
    with pytest.raises(ValueError, match="key 'k199999' twice"):
        parse_json(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)),
        "? <<\n: {a: 1}",
        "run: {!!merge x: {a: 1}}",
    ],
)
def test_merge_keys_of_yaml_are_refused_soon(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError, match="a merge key"):
        load_config(str(tmp_path / "x.yaml"))
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("names", "value"), [(("1", "2", "3"), 0), (("-1", "0", "1"), 2), (("1", "2"), "0")]
)
def test_no_number_is_an_id_where_classes_are_numbers(names: tuple[str, ...], value: Any) -> None:
    labels = LabelSet(names)
    assert _class_id("f:1", int(names[1]), labels) == 1
    with pytest.raises(CorpusError, match=f"label {re.escape(repr(value))}, expected one of"):
        _class_id("f:1", value, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "NOUN", "1": "VERB", "2": "O"}}, "'NOUN' is not 'O', 'B-TYPE'"),
        ({"id2label": {"0": "O", "5": "B-X", "7": "I-X"}}, "expected a text for each id from 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected a number"),
        ({"architectures": 5}, "no architecture"),
        ({"architectures": [5]}, "5"),
        ({"word_rule": 5}, "its word_rule is 5"),
    ],
)
def test_a_config_of_a_model_that_says_nonsense_is_refused(
    model: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(XdrayError, match=message):
        task_of_model(str(spoil(model, "config.json", **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "zzz"},
        {"pad_token_id": 9999},
        {"initializer_range": "x"},
        {"quantization_config": {"quant_method": "awq"}},
    ],
)
def test_a_config_that_transformers_stumbles_over_is_one_error(
    model: Path, changes: dict[str, Any]
) -> None:
    task = task_of_model(str(model))
    with pytest.raises(ExportError, match="no student can be loaded from it: "):
        Predictor(str(spoil(model, "config.json", **changes)), task, 1, "cpu")


def test_weights_of_layers_that_a_config_leaves_out_are_not_left_out(model: Path) -> None:
    spoil(model, "config.json", num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"its weights have .*layer\.1\..*, of a layer that its"):
        load_teacher(str(model), tagging_task(), torch.float32)


def test_scores_that_are_no_numbers_are_no_answer(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] * torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    predictor = Predictor(str(model), task_of_model(str(model)), 1, "cpu")
    with pytest.raises(ExportError, match="scores are not finite"):
        predictor.predict([Sentence("1", "en", "A b")])


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # Rust panics
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[NONE]"}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}},
    ],
)
def test_a_tokenizer_that_falls_over_is_one_error(model: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no tokenizer could be loaded: "):
        load_tokenizer(str(spoil(model, "tokenizer.json", **changes)))


def test_a_language_is_a_code_and_no_text(tmp_path: Path, tiny: MakeConfig) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "", "language": "x" * 60_000}))
    config = tiny("run", data={"transfer": {"sources": {"path": f"{tmp_path}/x.jsonl"}}})
    with pytest.raises(CorpusError, match=r"language is 'x{30,60}.*, expected a code"):
        distill(config)


def test_lines_that_end_in_carriage_returns_are_not_one_sentence(
    tmp_path: Path, tiny: MakeConfig
) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\rtwo\rthree\r")
    config = tiny("run", data={"transfer": {"sources": {"path": f"{tmp_path}/x.txt"}}})
    with pytest.raises(CorpusError, match=r"x\.txt:1: a carriage return within a line"):
        distill(config)


def test_links_that_lead_back_up_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    for name in ("b", "c"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert expand(f"{tmp_path}/**/*.txt") == [f"{tmp_path}/a/x.txt"]


@pytest.mark.parametrize(
    "report",
    [
        {"status": "done", "stages": 5, "evaluation": {}},
        {"status": "done", "stages": [{}], "evaluation": {}},
        {"status": "failed", "stages": [], "evaluation": {}},
        {"status": "done", "stages": [], "evaluation": {}, "teacher": 5},
    ],
)
def test_a_report_of_something_else_is_not_taken_for_done(
    report: dict[str, Any], tiny: MakeConfig, tmp_path: Path
) -> None:
    assert not is_whole(report)
    config = tiny("run")
    with open_run(config, False) as run:
        run.write_json("report.json", report)
    with pytest.raises(ConfigError, match=r"run/report\.json: damaged, or of something else"):
        distill(config)


def test_a_secret_among_the_values_of_a_search_is_refused(tiny: MakeConfig) -> None:
    space = {"student.start": ["https://user:SECRET@host/m", "other"]}
    config = tiny("run", search={"space": space, "trials": 2})
    with pytest.raises(ConfigError, match=r"'student\.start' holds a secret"):
        space_of(config)


def test_a_state_of_a_copy_that_was_cut_off_is_no_state(tmp_path: Path) -> None:
    (tmp_path / mirror.STATE).write_text("")
    assert mirror.Mirror("s3://b/x", str(tmp_path), "t")._state() == {}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("lines", ['null{"text": "a"}\n', '{"text": "a"}\n  null\n'])
def test_a_line_of_null_in_a_folder_for_datasets_is_refused_and_crashes_nothing(
    ending: str, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / f"train.{ending}").write_text(lines)
    source = SourceConfig(hub=str(tmp_path / "set"), split="train")
    number = len(lines.splitlines())
    with pytest.raises(CorpusError, match=rf"train\.{ending}:{number}: null, expected an object"):
        list(labelled_rows([source], "train", "label", Counter()))
