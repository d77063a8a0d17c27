"""Fuzzed configs, and fuzzed files of stores, runs and models that are read back from disk.

As in test_fuzz: accepted and right, or refused in one message that names the file.
"""

import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzzing import changes, damaged, fuzzed, junk, nest, outcome, spoiled, written
from hypothesis import given, reject
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from xdray.config import Config
from xdray.configfile import changed_fields, dump_config, load_config
from xdray.header import read_header
from xdray.learner import Learner
from xdray.parts import PartFile
from xdray.runs import open_run
from xdray.stage_files import load_stage, save_stage
from xdray.storage import NUMBER
from xdray.targets import TargetStore, TargetView, verify_stores

pytestmark = pytest.mark.usefixtures("nothing_is_printed")

# configs

SOURCE = {"path": "a/*.conll", "language": "{stem}"}
TEACHER = {"model": "m", "labels": ["O", "B-X", "I-X"]}
DATA = {"train": SOURCE, "dev": {"path": "b.conll"}, "test": "c.conll", "transfer": "t.txt"}
STAGE = {"name": "a b", "terms": [{"loss": "hidden", "split": "transfer", "layers": {"1": 2}}]}
SPACE = {"student.hidden": {"low": 8, "high": 64, "log": True}, "training.epochs": [1, 2]}
CONFIGS: tuple[dict[str, Any], ...] = (
    {"run": {"folder": "x"}, "data": DATA, "teacher": TEACHER},
    {
        "run": {"folder": "x", "seed": 3},
        "data": {**DATA, "transfer": {"sources": ["t.txt", {"hub": "h", "split": "s"}], "cap": 9}},
        "teacher": {"finetune": {"encoder": "e", "epochs": 2}},
        "recipe": {"name": "mine", "stages": [STAGE]},
        "training": {"workers": [1, 2], "learning_rate": 1e-3, "clip": None},
        "cluster": {"max_resources": {"CPU": 4.5}, "teacher_labels": {"a": "b"}},
    },
    {
        "run": {"folder": "x"},
        "task": {"kind": "answering", "window": 9, "overlap": 3, "null_answers": True},
        "data": {**DATA, "train": [{**SOURCE, "format": "table", "rows": [0, None]}]},
        "teacher": TEACHER,
        "search": {"space": SPACE, "trials": 3, "retrain": {"training.epochs": 5}},
        "student": {"kind": "transformer", "hidden": 64, "heads": 2},
    },
)
SNIPPETS = (
    "!!python/object/apply:os.mkdir [CANARY]",
    "!!python/object/new:os.system ['mkdir CANARY']",
    *("!!python/name:os.system ", "&a [*a, *a]", "*a", "<<: {a: 1}", "%YAML 1.1\n---\n", "---\n"),
    *("? [a]\n: b\n", "!!binary aGk=", "!!set {a}", "2024-01-01", "!!int x", "!!bool maybe", "0o7"),
    *(
        "1e999",
        ".nan",
        "-.inf",
        '"\\0"',
        '"\\ud800"',
        "\t",
        "# x\n",
        "|\n",
        ">-\n",
        "...",
        "@",
        "`",
    ),
    *(
        "&a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b]\n",
        "run: {folder: y}\n",
        "? ",
        "!foo 3",
        "[",
        "}",
    ),
)


@st.composite
def config_texts(draw: Any) -> tuple[str, Config | None]:
    """Text of a config, and what it says where it was left as it was."""
    values = draw(st.sampled_from(CONFIGS))
    kind = draw(st.integers(0, 3))
    if kind == 1:
        values = draw(spoiled(values))
    text = nest(json.dumps(values, indent=draw(st.sampled_from([None, 1]))))
    if kind == 2:
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(st.sampled_from(SNIPPETS)) + text[at:]
    return text, Config.model_validate(values) if kind == 0 else None


def check_config(config: Config, folder: Path) -> None:
    """What was accepted is written and read back as it was."""
    text = dump_config(config)
    json.dumps(config.model_dump(mode="json"), allow_nan=False)
    with written(folder, "yaml", text.encode()) as path:
        again = load_config(str(path))
    assert again == config
    assert changed_fields(config, again) == []
    for stage in config.recipe.stages or ():
        assert (folder / f"01-{stage.name}").parent == folder


@fuzzed
@given(its=config_texts(), done=changes)
def test_config(tmp_path, its, done):
    text, expected = its
    data = damaged(text.replace("CANARY", str(tmp_path / "canary")).encode(), done)
    with written(tmp_path, "yaml", data) as path:
        config = outcome("config", (path.name,), lambda: load_config(str(path)))
    assert not (tmp_path / "canary").exists()
    if expected is not None and not done:
        assert config == expected
    if config is not None:
        check_config(config, tmp_path)


FIELDS = {
    "run.seed": st.integers(0, 9),
    "student.embedding": st.integers(1, 9),
    "training.learning_rate": st.sampled_from([1e-3, 3e-4]),
    "data.train.path": st.sampled_from(["z", "y.txt"]),
    "data.train.0.path": st.sampled_from(["z", "y.txt"]),
    "data.transfer.cap": st.integers(1, 9) | st.none(),
    "data.transfer.sources.1.split": st.sampled_from(["a", "b"]),
    "recipe.layer": st.integers(0, 9),
    "recipe.stages.0.epochs": st.integers(1, 9),
    "tokens": st.just({"max_length": 64}),
}
PARTS = ("data", "train", "0", "1", "x", "\u0661", "9" * 5000, "recipe", "stages", "", "-1", "a\nb")
ODD_NAMES = st.lists(st.sampled_from(PARTS), max_size=4).map(".".join)
ODD_VALUES = junk.map(json.dumps) | st.sampled_from(SNIPPETS)


@fuzzed
@given(
    base=st.sampled_from(CONFIGS),
    name=st.sampled_from(sorted(FIELDS)),
    odd=st.integers(0, 4),
    data=st.data(),
)
def test_overrides(tmp_path, base, name, odd, data):
    given_value = data.draw(FIELDS[name])
    value = json.dumps(given_value) if odd else data.draw(ODD_VALUES)
    override = f"{data.draw(ODD_NAMES) if odd == 1 else name}={value}"
    override = nest(override.replace("CANARY", str(tmp_path / "canary")))
    with written(tmp_path, "yaml", json.dumps(base).encode()) as path:
        before = load_config(str(path))
        names = (path.name, repr(override)[:60])
        config = outcome("overrides", names, lambda: load_config(str(path), [override]))
    assert not (tmp_path / "canary").exists()
    if config is not None:
        check_config(config, tmp_path)
        section = override.partition("=")[0].partition(".")[0]
        assert all(its.startswith(section) for its in changed_fields(before, config))
        if odd > 1 and not name.startswith("data"):
            found: Any = config.model_dump(mode="json")
            for part_name in name.split("."):
                found = found[int(part_name) if isinstance(found, list) else part_name]
            assert found == given_value or found["max_length"] == 64


# files of a store

SHARD = "0123456789abcdef" * 2
RANDOM = np.random.default_rng(0)
LENGTHS = np.array([3, 1, 4, 2, 5] * 4, np.uint16)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS, dtype=np.int64)])
N = int(OFFSETS[-1])
FLAT: dict[str, dict[str, np.ndarray]] = {
    "logits": {
        "ids": np.arange(N, dtype=np.int32),
        "word_ids": -np.arange(N, dtype=np.int32),
        "logits": RANDOM.standard_normal((N, 3)).astype(np.float32),
    },
    "tokens-abc": {name: np.arange(N, dtype=np.int32) for name in ("ids", "word_ids", "matches")},
    "hidden-4-float16": {"hidden": RANDOM.standard_normal((N, 5)).astype(np.float16)},
    "hidden-4-int8": {
        "hidden": RANDOM.integers(-127, 128, (N, 5)).astype(np.int8),
        "scales": RANDOM.random(N, np.float32),
    },
    "qkv-4-pca2": {"hidden": RANDOM.standard_normal((N, 2)).astype(np.float16)},
}
BASIS = RANDOM.standard_normal((3, 5)).astype(np.float32)


def part(folder: Path, name: str) -> PartFile:
    """Write a whole part."""
    file = PartFile(str(folder), "k", SHARD, name, len(LENGTHS))
    its, has_codec = FLAT[name], not name.startswith(("logits", "tokens"))
    values = its["hidden"] if has_codec else its.get("logits", np.empty((0, 0)))
    facts = {
        "cut_words": 7,
        "width": values.shape[1],
        "layer": 4 if has_codec else None,
        "codec": name.rpartition("-")[2] if has_codec else None,
        "codec_error": 0.01 if has_codec else None,
    }
    texts = {"sentence_id": [f"{SHARD[:16]}-{row}" for row in range(len(LENGTHS))]}
    basis = BASIS if name.endswith("pca2") else None
    file.write(texts, its, OFFSETS, facts, basis)
    return file


def _respelt(draw: Any, data: bytes) -> bytes:
    """The same file with another footer, or other columns, written whole."""
    table = pq.read_table(pa.BufferReader(data))
    footer = json.loads((table.schema.metadata or {})[b"xdray"])
    if draw(st.booleans()):
        text = nest(json.dumps(draw(spoiled(footer))))
        table = table.replace_schema_metadata({"xdray": text})
    else:
        name = draw(st.sampled_from(table.column_names))
        index, column = table.column_names.index(name), table[name]
        kind = draw(st.integers(0, 4))
        if kind == 0:
            table = table.remove_column(index)
        elif kind == 1:
            table = table.set_column(index, name, pa.nulls(len(column), column.type))
        elif kind == 2:
            table = table.slice(draw(st.integers(0, 3)), draw(st.integers(0, 30)))
        elif kind == 3:
            table = table.set_column(index, name, column.take(pa.array(range(len(column))[::-1])))
        else:
            other = draw(st.sampled_from([pa.int64(), pa.string(), pa.binary(), pa.float32()]))
            try:
                table = table.set_column(index, name, column.cast(other))
            except pa.ArrowException:
                reject()
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=draw(st.booleans()))
    return sink.getvalue()


def read_part(file: PartFile, how: str) -> Any:
    if how == "verify":
        return file.verify()
    if how == "lengths":
        return file.lengths()
    if how == "footer":
        return file.footer()
    if "hidden" in FLAT[file.part]:
        return file.hidden(LENGTHS)
    return file.read(list(FLAT[file.part]), LENGTHS)


def check_part(found: Any, name: str, how: str, exact: bool) -> None:
    """exact: what it says must be what was written, not only of its shape."""
    if how == "verify":
        assert found == len(LENGTHS)
    elif how == "lengths":
        # what a file says of its sentences is believed here, and compared when they are read
        assert len(found) == len(LENGTHS)
        assert not exact or np.array_equal(found, LENGTHS)
    elif how == "footer":
        assert (found["shard_id"], found["key"], found["part"]) == (SHARD, "k", name)
        assert found["rows"] == len(LENGTHS)
    elif "hidden" in FLAT[name]:
        decoded = found.take(np.arange(N))
        if exact:
            assert np.array_equal(found.values, FLAT[name]["hidden"])
            assert found.scales is None or np.array_equal(found.scales, FLAT[name]["scales"])
            assert found.basis is None or np.array_equal(found.basis, BASIS)
        assert decoded.shape == (N, 5) or not exact
    elif exact:
        for column, values in FLAT[name].items():
            assert np.array_equal(found[column], values.reshape(N, -1))


@fuzzed
@given(
    name=st.sampled_from(sorted(FLAT)),
    how=st.sampled_from(["footer", "lengths", "read", "read", "verify"]),
    again=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_targets_file(tmp_path, name, how, again, data, done):
    file = part(tmp_path, name)
    path = Path(file.uri)
    raw = path.read_bytes()
    path.write_bytes(damaged(_respelt(data.draw, raw) if again else raw, done))
    found = outcome("targets file", (path.name,), lambda: read_part(file, how))
    assert found is not None or again or done
    if found is None:
        return
    check_part(found, name, how, exact=not again)


@fuzzed
@given(
    which=st.sampled_from(["targets.json", "lengths.npy"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_targets_view(tmp_path, which, spoil, data, done):
    view = TargetView(
        store_uri=str(tmp_path / "store"),
        key="k",
        parts=("logits",),
        shard_ids=("0" * 32, SHARD),
        lengths=[LENGTHS[:3], LENGTHS],
        cut_words=3,
        num_bytes=100,
        codec_error={},
    )
    view.save(tmp_path)
    path = tmp_path / which
    raw = path.read_bytes()
    if spoil and which == "targets.json":
        raw = nest(json.dumps(data.draw(spoiled(json.loads(raw))))).encode()
    path.write_bytes(damaged(raw, done))
    found = outcome("targets view", ("targets.json",), lambda: TargetView.load(tmp_path, "targets"))
    assert found is not None or done or spoil
    if found is not None:
        assert [its.dtype for its in found.lengths] == [np.uint16] * len(found.shard_ids)
        if not done and not (spoil and which == "targets.json"):
            assert found.fingerprint == view.fingerprint
            assert all(map(np.array_equal, found.lengths, view.lengths))


@fuzzed
@given(
    which=st.sampled_from(["store.json", "shard"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_store(tmp_path_factory, which, spoil, data, done):
    tmp_path = tmp_path_factory.mktemp("store")
    store = TargetStore(str(tmp_path), {"teacher": "t", "labels": ["O"], "max_length": 9})
    store.prepare()
    file = part(tmp_path, "logits")
    path = Path(store.folder, "store.json")
    if which == "shard":
        path = Path(
            store.folder,
            "shards",
            "01",
            data.draw(st.sampled_from([Path(file.uri).name, "x.y", "a.b.parquet"])),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(file.uri).read_bytes())
    raw = path.read_bytes()
    if spoil and which == "store.json":
        raw = nest(json.dumps(data.draw(spoiled(json.loads(raw))))).encode()
    path.write_bytes(damaged(raw, done))
    found = outcome("store", (path.name,), lambda: verify_stores(str(tmp_path)))
    assert found is not None or which == "store.json"
    if found is not None:
        told = json.loads(Path(store.folder, "store.json").read_text("utf-8-sig"))
        assert bool(found[0]["problems"]) == (which == "shard" or told != store.identity)


# files of a run


@fuzzed
@given(
    which=st.sampled_from(["config.yaml", "remembered.json", "report.json", "teacher.json"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_run_folder(tmp_path_factory, which, spoil, data, done):
    folder = tmp_path_factory.mktemp("run")
    config = Config.model_validate({**CONFIGS[0], "run": {"folder": str(folder)}})
    values = {
        "config.yaml": config.model_dump(mode="json"),
        "remembered.json": {"dtype": "float32"},
        "report.json": {"status": "done", "stages": [], "evaluation": {}},
        "teacher.json": {"key": "k", "seconds": 3.5},
    }
    for name, its in values.items():
        (folder / name).write_text(json.dumps(its))
    its = values[which]
    if spoil:
        its = data.draw(spoiled(its))
    raw = damaged(nest(json.dumps(its)).encode(), done)
    (folder / which).write_bytes(raw)

    def read() -> dict[str, Any]:
        with open_run(config, fresh=False) as run:
            return {
                "report.json": run.read_json(
                    "report.json", status=str, stages=list, evaluation=dict
                ),
                "teacher.json": run.read_json("teacher.json", key=str, seconds=NUMBER),
                "remembered.json": {"dtype": run.remembered("dtype", lambda: "bfloat16")},
            }

    found = outcome("run folder", (which, str(folder)), read)
    assert found is not None or done or spoil
    if found is not None and not (done or spoil):
        assert found == {name: values[name] for name in found}
    if found is not None:
        assert found["remembered.json"]["dtype"] in {"float32", "bfloat16"} or done or spoil
        assert load_config(str(folder / "config.yaml")) == config
    assert {path.name for path in folder.iterdir()} <= {*values, "log.txt", ".lock"}


@fuzzed
@given(
    which=st.sampled_from(["stage.json", "student.safetensors"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_stage(tmp_path, which, spoil, data, done):
    row = {"key": "k", "name": "a", "dev": None, "steps": 3, "seconds": 1.5, "history": []}
    student = cast(Learner, torch.nn.Linear(3, 2))
    save_stage(student, tmp_path, row)
    path = tmp_path / which
    raw = path.read_bytes()
    if spoil and which == "stage.json":
        raw = nest(json.dumps(data.draw(spoiled(row)))).encode()
    path.write_bytes(damaged(raw, done))
    other: Any = torch.nn.Linear(3, 2)
    found = outcome("stage", (which,), lambda: (load_stage(other, tmp_path, "k"),))
    if not (done or spoil):
        assert found == (row,)
    if found and found[0] is not None:
        assert found[0]["key"] == "k"
        same = torch.equal(other.weight, cast(Any, student).weight)
        assert which == "student.safetensors" or same


# a model's config.json

HEADERS = (
    {
        "model_type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 9,
        "id2label": {"0": "O", "1": "B-X"},
    },
    {
        "model_type": "roberta",
        "dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "vocab_size": 9,
        "max_position_embeddings": 20,
        "pad_token_id": 1,
        "embedding_size": 4,
    },
)


@fuzzed
@given(values=st.sampled_from(HEADERS), spoil=st.booleans(), data=st.data(), done=changes)
def test_model_header(tmp_path, values, spoil, data, done):
    its = data.draw(spoiled(values)) if spoil else values
    (tmp_path / "config.json").write_bytes(damaged(nest(json.dumps(its)).encode(), done))
    found = outcome("model header", ("config.json",), lambda: read_header(str(tmp_path)))
    assert found is not None or done or spoil
    if found is not None:
        numbers = (found.width, found.num_layers, found.vocab_size, found.embedding_width)
        assert all(type(its) is int and its > 0 for its in numbers)
        assert all(isinstance(tag, str) for tag in found.tags)
        if not (done or spoil):
            assert (found.width, found.num_layers, found.num_heads, found.vocab_size) == (
                8,
                2,
                2,
                9,
            )
            assert found.max_positions in {None, 18}
            assert found.tags in {(), ("O", "B-X")}


@fuzzed
@given(text=st.text(max_size=30) | st.sampled_from(SNIPPETS))
def test_what_another_yaml_reader_cannot_read_is_refused(tmp_path, text):
    """No YAML that ruamel itself refuses comes through by another way."""
    try:
        YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError):
        with written(tmp_path, "yaml", text.encode("utf-8", "replace")) as path:
            assert outcome("config", (path.name,), lambda: load_config(str(path))) is None
