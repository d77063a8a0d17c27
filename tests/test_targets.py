"""targets: the store's keys, what is missing in it, views, and looking after stores."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tagging_task

from xdray.batch_plan import Block
from xdray.corpus import Sentence, Shard, inline_shards
from xdray.errors import TargetsError
from xdray.sources import StoredSource
from xdray.targets import (
    AnnotateTask,
    TargetStore,
    TargetView,
    delete_store,
    hidden_part,
    list_stores,
    verify_stores,
)

IDENTITY = {
    "teacher": "t",
    "tokenizer": "v",
    "words": "punctuation",
    "max_length": 16,
    "dtype": "float32",
    "labels": ["O", "B-X", "I-X"],
}
HIDDEN = hidden_part(1, "float16")
SENTENCES = [Sentence("", "en", f"sentence number {row}") for row in range(25)]
SHARDS = inline_shards(SENTENCES, 10)


def lengths_of(shard: Shard) -> np.ndarray:
    return np.arange(3, 3 + shard.rows)


def fill(store: TargetStore, shard: Shard, part: str, error: float | None = None) -> None:
    """Write a part whose values say which shard and token they are of."""
    offsets = np.concatenate([[0], np.cumsum(lengths_of(shard))]).astype(np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32)
    number = SHARDS.index(shard)
    store.prepare()
    texts = {"sentence_id": [sentence.sentence_id for sentence in shard.sentences]}
    facts: dict[str, Any] = {"cut_words": number, "codec_error": error, "codec": None, "width": 3}
    if part == "logits":
        texts["language"] = ["en"] * shard.rows
        logits = np.full((len(tokens), 3), number, np.float32)
        flat = {"ids": tokens, "word_ids": tokens, "logits": logits}
    else:
        facts |= {"codec": "float16", "width": 2}
        flat = {"hidden": np.full((len(tokens), 2), number, np.float16)}
    store.file(shard.shard_id, part, shard.rows).write(texts, flat, offsets, facts)


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    """Three shards with logits and layer 1."""
    store = TargetStore(str(tmp_path / "targets"), IDENTITY)
    for shard, error in zip(SHARDS, (0.1, 0.2, 0.2), strict=True):
        fill(store, shard, "logits")
        fill(store, shard, HIDDEN, error)
    return store


@pytest.fixture
def view(store: TargetStore) -> TargetView:
    """Look at the shards, last one first."""
    return store.view([(s.shard_id, s.rows) for s in reversed(SHARDS)], ["logits", HIDDEN])


def test_a_corpus_of_one_window_is_read_once_and_a_larger_one_each_time(view: TargetView):
    task, blocks = tagging_task(), [Block(n, 0, len(its)) for n, its in enumerate(view.lengths)]
    tokens, orders = sum(int(its.sum()) for its in view.lengths), (blocks[::-1], blocks)
    fits, larger = (
        StoredSource(view, "float16", task, "first", kept) for kept in (tokens, tokens - 1)
    )
    for source, same in ((fits, True), (larger, False)):
        one, other = (dict(zip(order, source.read(order, (1,)), strict=True)) for order in orders)
        assert [one[its] is other[its] for its in blocks] == [same] * 3
        for its in blocks:
            assert np.array_equal(
                other[its].hidden[1].take(np.arange(4)), one[its].hidden[1].take(np.arange(4))
            )
    (without,) = fits.read(blocks[:1], ())  # other layers: nothing is kept of the ones before
    assert without.hidden == {}


@pytest.mark.parametrize("name", list(IDENTITY))
def test_another_identity_is_another_store(name: str) -> None:
    other = TargetStore("x", IDENTITY | {name: ["B-X", "O", "I-X"] if name == "labels" else 0})
    assert other.folder != TargetStore("x", IDENTITY).folder
    assert TargetStore("x", dict(reversed(IDENTITY.items()))).key == TargetStore("x", IDENTITY).key


def test_a_store_is_the_same_place_for_a_process_that_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(TargetStore("targets", IDENTITY))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).uri == str(tmp_path / "targets")


def test_only_what_is_not_there_is_missing(store: TargetStore) -> None:
    tasks = [AnnotateTask(shard, (1,)) for shard in SHARDS]
    assert store.missing(tasks, "float16") == []
    assert store.missing_parts(AnnotateTask(SHARDS[0], (1, 2)), "float16") == ["hidden-2-float16"]
    assert store.missing_parts(AnnotateTask(SHARDS[0], (1,)), "int8") == ["hidden-1-int8"]
    other = TargetStore(store.uri, IDENTITY | {"dtype": "bfloat16"})
    assert other.missing_parts(tasks[0], "float16") == ["logits", HIDDEN]
    Path(store.file(SHARDS[1].shard_id, HIDDEN, 10).uri).unlink()
    logits = Path(store.file(SHARDS[2].shard_id, "logits", 5).uri)
    logits.write_bytes(logits.read_bytes()[:-9])
    assert store.missing(tasks, "float16") == tasks[1:]


def test_a_shard_with_more_rows_than_the_file_is_missing(store: TargetStore) -> None:
    longer = Shard(SHARDS[0].shard_id, 11)
    assert not store.is_done(longer, "logits")


def test_a_view_reads_the_shards_in_its_order(view: TargetView) -> None:
    assert view.shard_ids == tuple(shard.shard_id for shard in reversed(SHARDS))
    for place, number in ((0, 2), (2, 0)):
        tokens = view.load_shard(place, ["logits", HIDDEN])
        assert tokens.logits is not None
        assert set(tokens.logits.ravel()) == {number}
        assert set(tokens.hidden[1].take(np.arange(5)).ravel()) == {number}
        assert tokens.ids.tolist() == list(range(lengths_of(SHARDS[number]).sum()))
        assert tokens.lengths.tolist() == lengths_of(SHARDS[number]).tolist()


def test_a_view_reads_no_part_that_was_not_asked_for(store: TargetStore, view: TargetView) -> None:
    tokens = view.load_shard(1, [HIDDEN])
    assert tokens.logits is None
    assert len(tokens.ids) == lengths_of(SHARDS[1]).sum()
    Path(store.file(SHARDS[1].shard_id, HIDDEN, 10).uri).unlink()
    assert view.load_shard(1, ["logits"]).hidden == {}
    with pytest.raises(TargetsError, match=r"float16\.parquet: not there"):
        view.load_shard(1, ["logits", HIDDEN])


def test_a_view_sums_what_its_shards_say(view: TargetView, store: TargetStore) -> None:
    files = list(Path(store.folder, "shards").rglob("*.parquet"))
    assert view.num_bytes == sum(path.stat().st_size for path in files)
    assert view.cut_words == 0 + 1 + 2
    weights = [int(lengths_of(shard).sum()) for shard in SHARDS]
    squares = sum(w * e * e for w, e in zip(weights, (0.1, 0.2, 0.2), strict=True))
    assert view.codec_error == {HIDDEN: pytest.approx((squares / sum(weights)) ** 0.5)}


def test_a_view_of_a_missing_part_is_refused(store: TargetStore) -> None:
    with pytest.raises(TargetsError, match=r"hidden-2-float16\.parquet: not there"):
        store.view([(SHARDS[0].shard_id, 10)], ["logits", "hidden-2-float16"])


def test_a_saved_view_loads_equal(view: TargetView, tmp_path: Path) -> None:
    view.save(tmp_path)
    loaded = TargetView.load(tmp_path, view.store_uri)
    for name in ("store_uri", "key", "parts", "shard_ids", "cut_words", "num_bytes", "codec_error"):
        assert getattr(loaded, name) == getattr(view, name)
    assert [list(a) for a in loaded.lengths] == [list(a) for a in view.lengths]
    assert loaded.fingerprint == view.fingerprint
    assert np.array_equal(loaded.load_shard(0, []).ids, view.load_shard(0, []).ids)
    assert (tmp_path / "lengths.npy").stat().st_size == 128 + 2 * len(SENTENCES)


@pytest.mark.parametrize("spoil", ["no view", "no lengths", "other lengths", "broken"])
def test_a_damaged_view_is_named(view: TargetView, tmp_path: Path, spoil: str) -> None:
    view.save(tmp_path)
    if spoil == "no view":
        (tmp_path / "targets.json").unlink()
    elif spoil == "no lengths":
        (tmp_path / "lengths.npy").unlink()
    elif spoil == "other lengths":
        np.save(tmp_path / "lengths.npy", np.ones(7, np.uint16))
    else:
        (tmp_path / "targets.json").write_text("{")
    with pytest.raises(TargetsError, match=r"targets\.json: missing or damaged .*delete it"):
        TargetView.load(tmp_path, "targets")


def test_a_saved_view_names_its_store_without_secrets_and_is_read_where_the_config_says(
    view: TargetView, tmp_path: Path
) -> None:
    hidden = dataclasses.replace(view, store_uri="s3://AK:wJalrXUtnFEMI@bucket/targets")
    hidden.save(tmp_path / "a")
    assert "wJalrXUtnFEMI" not in (tmp_path / "a" / "targets.json").read_text()
    elsewhere = dataclasses.replace(view, store_uri="/a/stranger/says/so")
    elsewhere.save(tmp_path / "b")
    for folder in ("a", "b"):
        loaded = TargetView.load(tmp_path / folder, view.store_uri)
        assert np.array_equal(loaded.load_shard(0, []).ids, view.load_shard(0, []).ids)


def test_a_part_with_pickled_objects_is_damaged_and_not_unpickled(
    store: TargetStore, view: TargetView, tmp_path: Path
) -> None:
    # its import registers the type that unpickles, as in every worker
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    trace = tmp_path / "it-ran"
    file = store.file(SHARDS[0].shard_id, "logits", 10)
    table = pq.read_table(file.uri)
    blobs = pa.array([pickle.dumps(_Touch(trace))] * table.num_rows, pa.large_binary())
    column = ArrowPythonObjectType().wrap_array(blobs)
    at = table.column_names.index("length")
    pq.write_table(table.set_column(at, "length", column), file.uri)
    with pytest.raises(TargetsError, match="column 'length' holds Python objects"):
        file.lengths()
    assert not trace.exists()


class _Touch:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [-1, 9, 9]},
        {"rows": [1.5, 1.5, 9]},
        {"rows": "x"},
        {"shard_ids": ["0"]},
        {"shard_ids": 3},
        {"codec_error": []},
        {"seen": ["x"]},
        {"more": 1},
    ],
)
def test_a_view_of_another_layout_is_refused(
    view: TargetView, tmp_path: Path, changed: dict[str, Any]
) -> None:
    view.save(tmp_path)
    path = tmp_path / "targets.json"
    values = {**json.loads(path.read_text()), **changed}
    for its in (values, [values], "x"):
        path.write_text(json.dumps(its))
        with pytest.raises(TargetsError, match=r"targets\.json: missing or damaged"):
            TargetView.load(tmp_path, "targets")


@pytest.mark.parametrize("spoil", ["empty", "pickle", "zip", "floats", "square", "python 2"])
def test_lengths_that_numpy_did_not_write_as_such_are_refused(
    view: TargetView, tmp_path: Path, spoil: str
) -> None:
    view.save(tmp_path)
    path = tmp_path / "lengths.npy"
    flat = np.load(path)
    if spoil == "floats":
        np.save(path, flat.astype(np.float16))
    elif spoil == "square":
        np.save(path, flat[:, None])
    else:
        header = path.read_bytes()[:128]
        contents = {
            "empty": b"",
            "pickle": pickle.dumps(flat),
            "zip": b"PK\x03\x04",
            "python 2": header.replace(b",), }  ", b"L,), } ") + flat.tobytes(),
        }
        path.write_bytes(contents[spoil])
    with pytest.raises(TargetsError, match=r"targets\.json: missing or damaged .*lengths\.npy"):
        TargetView.load(tmp_path, "targets")


def test_views_of_other_shards_have_other_fingerprints_whatever_parts_they_show(
    store: TargetStore,
) -> None:
    shards = [(shard.shard_id, shard.rows) for shard in SHARDS]
    names = {
        store.view(chosen, parts).fingerprint
        for chosen in (shards, shards[:2], shards[::-1])
        for parts in (["logits"], ["logits", HIDDEN])
    }
    assert len(names) == 3


def test_stores_are_listed_with_identity_and_parts(store: TargetStore) -> None:
    other = TargetStore(store.uri, IDENTITY | {"dtype": "bfloat16"})
    fill(other, SHARDS[0], "logits")
    found = {facts["key"]: facts for facts in list_stores(store.uri)}
    assert set(found) == {store.key, other.key}
    assert found[other.key]["identity"] == other.identity
    assert {part: facts["shards"] for part, facts in found[store.key]["parts"].items()} == {
        "logits": 3,
        HIDDEN: 3,
    }
    bytes_of_parts = sum(facts["bytes"] for facts in found[store.key]["parts"].values())
    identity_bytes = Path(store.folder, "store.json").stat().st_size
    assert found[store.key]["bytes"] == bytes_of_parts + identity_bytes
    assert list_stores(store.uri, other.key) == [found[other.key]]
    assert list_stores(str(Path(store.uri) / "nowhere")) == []


def test_verifying_names_each_damaged_file(store: TargetStore) -> None:
    (facts,) = verify_stores(store.uri)
    assert facts == {"key": store.key, "files": 6, "rows": 50, "problems": []}
    damaged = Path(store.file(SHARDS[1].shard_id, "logits", 10).uri)
    damaged.write_bytes(b"PAR1")
    Path(damaged.parent, "notes.txt").write_text("mine")
    (facts,) = verify_stores(store.uri, store.key)
    assert facts["files"] == 7
    assert facts["rows"] == 40
    assert len(facts["problems"]) == 2
    assert any(str(damaged) in problem for problem in facts["problems"])
    assert any("notes.txt" in problem for problem in facts["problems"])


def test_deleting_takes_one_store_by_its_whole_key(store: TargetStore) -> None:
    other = TargetStore(store.uri, IDENTITY | {"dtype": "bfloat16"})
    fill(other, SHARDS[0], "logits")
    for key in ("", "..", store.key[:8]):
        with pytest.raises(TargetsError, match="no store '"):
            delete_store(store.uri, key)
    assert [facts["key"] for facts in delete_store(store.uri, store.key)] == [store.key]
    assert not Path(store.folder).exists()
    assert [facts["key"] for facts in list_stores(store.uri)] == [other.key]


def test_a_store_is_looked_at_without_torch() -> None:
    code = "import sys, xdray.targets; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
