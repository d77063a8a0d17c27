"""annotator: what is forwarded and written, and that nothing beside a shard changes its files."""

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tagging_task
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

from xdray.annotation import _actor_kwargs
from xdray.annotator import Annotator, StreamingAnnotator
from xdray.batch_plan import BatchPlan, Block
from xdray.corpus import Sentence, inline_shards
from xdray.errors import ClusterError, ConfigError, TargetsError
from xdray.hidden import Hidden, token_bytes
from xdray.labels import LabelSet
from xdray.parts import BLOCK
from xdray.recording import HiddenRecord, new_record
from xdray.sources import StoredSource
from xdray.targets import AnnotateTask, TargetStore
from xdray.tokenised import Tokens, qkv
from xdray.tokens import fingerprint, load_tokenizer
from xdray.weights import teacher_fingerprint

MAX_LENGTH = 24
MakeTeacher = Callable[..., Path]
Parts = dict[str, bytes]


@pytest.fixture(scope="module")
def tasks(tiny_text: Path) -> list[AnnotateTask]:
    """Three shards, 150 sentences in all, wanted with layers 0 and 2."""
    lines = (tiny_text / "transfer" / "en.txt").read_text(encoding="utf-8").splitlines()[:149]
    lines.append("far " * 200 + "too long")
    sentences = [Sentence("", "en", line) for line in lines]
    return [AnnotateTask(shard, (0, 2)) for shard in inline_shards(sentences, 60)]


@pytest.fixture
def make(tmp_path: Path, tiny_teacher: Path, tiny_labels: LabelSet) -> Callable[..., Annotator]:
    """Return a factory of annotators: make(store name, **settings)."""

    def build(
        name: str = "store",
        model: Path = tiny_teacher,
        kind: type[Annotator] = Annotator,
        **settings: Any,
    ) -> Annotator:
        identity = {
            "teacher": teacher_fingerprint(str(model)),
            "tokenizer": fingerprint(load_tokenizer(str(model))),
            "dtype": "float32",
        }
        store = TargetStore(str(tmp_path / name), identity)
        given = {"codec": "float16", "batch_tokens": 256} | settings
        task = tagging_task(tiny_labels, max_length=MAX_LENGTH)
        return kind(str(model), task, store, **given)

    return build


def files(annotator: Annotator) -> Parts:
    """All files of the store by their path in it."""
    folder = Path(annotator.store.folder)
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_what_is_recorded_is_what_the_model_says_of_each_sentence_alone(
    make: Callable[..., Annotator], tasks: list[AnnotateTask], tiny_teacher: Path
) -> None:
    annotator = make(codec="float32")
    receipts = [annotator(task) for task in tasks]
    parts = ["logits", "hidden-0-float32", "hidden-2-float32"]
    view = annotator.store.view([(t.shard.shard_id, t.shard.rows) for t in tasks], parts)
    model = AutoModelForTokenClassification.from_pretrained(tiny_teacher)
    for place, receipt in enumerate(receipts):
        tokens = view.load_shard(place, parts)
        assert tokens.logits is not None
        assert receipt["rows"] == receipt["forwarded"] == len(tokens.lengths)
        assert np.array_equal(receipt["lengths"], tokens.lengths)
        assert receipt["tokens"] == len(tokens.ids) <= receipt["padded_tokens"]
        assert receipt["codec_error"] == {"hidden-0-float32": 0.0, "hidden-2-float32": 0.0}
        for row in range(0, len(tokens.lengths), 7):
            at = slice(tokens.offsets[row], tokens.offsets[row + 1])
            ids = torch.from_numpy(tokens.ids[at].astype(np.int64))[None]
            with torch.inference_mode():
                out = model(input_ids=ids, output_hidden_states=True)
            np.testing.assert_allclose(tokens.logits[at], out.logits[0].numpy(), 1e-4, 1e-5)
            index = np.arange(at.start, at.stop)
            for layer in (0, 2):
                expected = out.hidden_states[layer][0].numpy()
                np.testing.assert_allclose(tokens.hidden[layer].take(index), expected, 1e-4, 1e-5)
    assert sum(receipt["cut_words"] for receipt in receipts) == view.cut_words >= 150
    assert max(lengths.max() for lengths in view.lengths) <= MAX_LENGTH


def test_a_block_of_a_shard_is_streamed_as_it_is_read_from_the_store(
    make: Callable[..., Annotator], tiny_labels: LabelSet
) -> None:
    sentences = [Sentence("", "en", f"the {'far ' * (n % 7)}{n}") for n in range(BLOCK + 40)]
    (shard,) = inline_shards(sentences, 2048)
    annotator, streaming = make(), make(kind=StreamingAnnotator, own=None, pieces="first")
    annotator(AnnotateTask(shard, (1,)))
    view = annotator.store.view([(shard.shard_id, shard.rows)], ["logits", "hidden-1-float16"])
    source = StoredSource(view, "float16", tagging_task(tiny_labels), "first")
    blocks = sorted(BatchPlan(source, 256, 256, seed=0).order(0))
    assert blocks == [(0, 0, BLOCK), (0, BLOCK, BLOCK + 40)]
    for block, stored in zip(blocks, source.read(blocks, (1,)), strict=True):
        rows = range(block.start, block.stop)
        streamed: Tokens = streaming(AnnotateTask(shard, (1,), rows))["tokens"]
        assert np.array_equal(streamed.ids, stored.ids)
        assert np.array_equal(streamed.offsets, stored.offsets)
        assert streamed.logits is not None
        assert stored.logits is not None
        np.testing.assert_allclose(streamed.logits, stored.logits, 1e-4, 1e-5)
        index = np.arange(len(stored.ids))
        one, other = (its.hidden[1].take(index) for its in (streamed, stored))
        np.testing.assert_allclose(one, other, 2e-3, 1e-4)  # float16 rounds either way
    rows = np.array([3, 255, 256, 700, BLOCK, BLOCK + 39])
    (whole,) = source.read([Block(0, 0, BLOCK + 40)], (1,))
    found = [tokens.select(its) for tokens, its in source.read_rows([(0, rows)], (1,))]
    assert [len(its.lengths) for its in found] == [2, 1, 1, 2]  # a row group each
    chosen, index = whole.select(rows), whole.places(rows)
    assert np.array_equal(np.concatenate([its.ids for its in found]), whole.ids[index])
    assert np.array_equal(chosen.ids, whole.ids[index])
    states = [its.hidden[1].take(np.arange(len(its.ids))) for its in (*found, chosen)]
    assert np.array_equal(np.concatenate(states[:-1]), states[-1])
    kept = whole.word_ids[index] >= 0
    assert np.array_equal(states[-1][kept], whole.hidden[1].take(index[kept]))


def test_memory_short_beside_the_forward_pass_takes_smaller_batches_from_then_on(
    make: Callable[..., Annotator], tasks: list[AnnotateTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, put, sizes = make(), HiddenRecord.put, list[int]()
    receipt = undisturbed(tasks[0])

    def short_of_memory(self: HiddenRecord, index: Any, states: torch.Tensor) -> None:
        sizes.append(len(states))
        if len(states) > 150:
            raise torch.OutOfMemoryError("tried to allocate")
        put(self, index, states)

    monkeypatch.setattr(HiddenRecord, "put", short_of_memory)
    annotator = make("small")
    found = annotator(tasks[0])
    assert (receipt["oom_halvings"], found["oom_halvings"]) == (0, 1)
    failed = next(place for place, size in enumerate(sizes) if size > 150)
    assert annotator.batch_tokens == 128 >= max(sizes[failed + 1 :])
    parts = tasks[0].parts("float16")
    exact, again = (
        its.store.view([(tasks[0].shard.shard_id, 60)], parts).load_shard(0, parts)
        for its in (undisturbed, annotator)
    )
    assert np.array_equal(exact.ids, again.ids)
    assert exact.logits is not None
    assert again.logits is not None
    np.testing.assert_allclose(exact.logits, again.logits, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(HiddenRecord, "put", _no_memory)
    with pytest.raises(ClusterError, match="what it says of one sentence does not fit"):
        make("none")(tasks[0])


def _no_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("tried to allocate")


def test_ids_in_are_ids_out_in_their_order(
    make: Callable[..., Annotator], tasks: list[AnnotateTask]
) -> None:
    import pyarrow.parquet as pq

    annotator = make()
    annotator(tasks[1])
    for part in tasks[1].parts("float16"):
        table = pq.read_table(annotator.store.file(tasks[1].shard.shard_id, part, 60).uri)
        ids = [sentence.sentence_id for sentence in tasks[1].shard.sentences]
        assert table["sentence_id"].to_pylist() == ids


def test_a_second_call_forwards_nothing_and_says_the_same(
    make: Callable[..., Annotator], tasks: list[AnnotateTask]
) -> None:
    annotator = make()
    first = annotator(tasks[0])
    before = files(annotator)
    again = pickle.loads(pickle.dumps(make()(tasks[0])))
    assert files(annotator) == before
    assert (first["forwarded"], again["forwarded"]) == (60, 0)
    assert (again["bytes"], again["padded_tokens"]) == (0, 0)
    assert np.array_equal(first["lengths"], again["lengths"])
    for name in ("shard_id", "rows", "tokens", "cut_words", "oom_halvings"):
        assert first[name] == again[name]
    assert again["codec_error"] == pytest.approx(first["codec_error"])


def test_a_layer_added_later_is_equal_to_the_bit_and_leaves_the_rest_alone(
    make: Callable[..., Annotator], tasks: list[AnnotateTask]
) -> None:
    whole, grown = make("whole"), make("grown")
    shard = tasks[0].shard
    whole(tasks[0])
    grown(AnnotateTask(shard))
    path = Path(grown.store.file(shard.shard_id, "logits", 60).uri)
    written = path.stat()
    receipt = grown(tasks[0])
    assert receipt["forwarded"] == 60
    assert sorted(receipt["codec_error"]) == ["hidden-0-float16", "hidden-2-float16"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert files(grown) == files(whole)


def test_files_are_equal_to_the_bit_whatever_the_order_and_the_neighbours(
    make: Callable[..., Annotator], tasks: list[AnnotateTask]
) -> None:
    tasks = [AnnotateTask(task.shard, (0, 2, qkv(1), qkv(2))) for task in tasks]
    in_turn, at_once = (make(f"{n}", threads=n, batch_tokens=100) for n in (1, 2))
    inside, most = [], []

    def enter(*_: Any) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)

    at_once.teacher.model.register_forward_pre_hook(enter)
    at_once.teacher.model.register_forward_hook(lambda *_: inside.remove(1))
    for task in tasks:
        in_turn(task)
    threads = [threading.Thread(target=at_once, args=(task,)) for task in reversed(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2  # batches, whatever the number of shards
    assert len(files(at_once)) == 5 * len(tasks)
    assert files(at_once) == files(in_turn)


def test_batches_stay_within_the_budget_of_padded_tokens(
    make: Callable[..., Annotator], tasks: list[AnnotateTask]
) -> None:
    annotator, shapes = make(batch_tokens=100), []
    annotator.teacher.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    receipt = annotator(tasks[0])
    assert max(rows * tokens for rows, tokens in shapes) <= 100
    assert sum(rows * tokens for rows, tokens in shapes) == receipt["padded_tokens"]
    assert sum(rows for rows, _ in shapes) == 60
    assert [tokens for _, tokens in shapes] == sorted((t for _, t in shapes), reverse=True)


def test_a_damaged_file_is_written_anew(
    make: Callable[..., Annotator], tasks: list[AnnotateTask]
) -> None:
    annotator = make()
    annotator(tasks[0])
    before = files(annotator)
    path = Path(annotator.store.file(tasks[0].shard.shard_id, "hidden-2-float16", 60).uri)
    path.write_bytes(path.read_bytes()[:-1])
    assert annotator(tasks[0])["forwarded"] == 60
    assert files(annotator) == before


def test_another_teacher_or_tokenizer_than_the_stores_is_refused(
    make: Callable[..., Annotator], make_teacher: MakeTeacher, tiny_labels: LabelSet
) -> None:
    annotator = make()
    other = str(make_teacher("bert", seed=7))
    settings: dict[str, Any] = {"batch_tokens": 100, "codec": "int8"}
    with pytest.raises(TargetsError, match=r"its teacher is .* put the same model on all machines"):
        Annotator(other, tagging_task(tiny_labels), annotator.store, **settings)
    identity = annotator.store.identity | {
        "tokenizer": "0" * 32,
        "teacher": teacher_fingerprint(other),
    }
    store = TargetStore(annotator.store.uri, identity)
    with pytest.raises(TargetsError, match="its tokenizer is 0000"):
        Annotator(other, tagging_task(tiny_labels), store, **settings)


def test_a_teacher_that_gives_no_numbers_is_refused(
    make: Callable[..., Annotator],
    make_teacher: MakeTeacher,
    tmp_path: Path,
    tasks: list[AnnotateTask],
) -> None:
    folder = make_teacher("bert", tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    annotator = make(model=folder)
    with pytest.raises(TargetsError, match=rf"{tasks[0].shard.shard_id}: .* logits are not finite"):
        annotator(tasks[0])
    assert not Path(annotator.store.folder, "shards").exists()


@pytest.mark.parametrize(("codec", "low", "high"), [("float16", 1e-5, 4e-4), ("int8", 3e-3, 9e-3)])
def test_the_error_reported_is_that_of_the_decoded_values(
    codec: str, low: float, high: float
) -> None:
    exact = torch.randn(64, 32, generator=torch.manual_seed(0))
    exact[5] = 0
    record = HiddenRecord(64, 32, codec)
    order = np.random.default_rng(0).permutation(64)
    for index in (order[:40], order[40:]):
        record.put(index, exact[index])
    decoded = Hidden(record.values, record.scales).take(np.arange(64))
    assert decoded[5].tolist() == [0] * 32
    assert record.scales is None or (record.scales > 0).all()
    pairs = list(zip(decoded.ravel().tolist(), exact.ravel().tolist(), strict=True))
    expected = (sum((d - e) ** 2 for d, e in pairs) / sum(e**2 for _, e in pairs)) ** 0.5
    assert record.error("x") == pytest.approx(expected, rel=1e-5)
    assert low < expected < high


def test_pca_keeps_the_nearest_states_of_its_rank() -> None:
    generator = torch.manual_seed(0)
    spread = torch.diag(torch.tensor([9.0, 5, 3, 1, 0.5, 0.1]))
    exact = torch.randn(700, 6, generator=generator) @ spread + torch.arange(6)
    record = new_record(700, 6, "pca3")
    order = np.random.default_rng(0).permutation(700)
    for index in np.array_split(order, 5):
        record.put(index, exact[index])
    hidden = record.finish()
    assert hidden.values.shape == (700, 3)
    assert hidden.basis is not None
    centre = exact.mean(0)
    left, sizes, right = torch.linalg.svd(exact - centre, full_matrices=False)
    nearest = (left[:, :3] * sizes[:3]) @ right[:3] + centre
    decoded = torch.from_numpy(hidden.take(np.arange(700)))
    torch.testing.assert_close(decoded, nearest, rtol=0, atol=0.02)
    error = float((decoded - exact).norm() / exact.norm())
    assert record.error("x") == pytest.approx(error, rel=1e-3)
    assert 0.05 < error < 0.2
    assert np.array_equal(hidden.take(np.array([7, 7])), decoded[[7, 7]].numpy())
    assert [token_bytes(codec, 6) for codec in ("float32", "float16", "int8", "pca3")] == [
        24,
        12,
        10,
        6,
    ]


def test_pca_of_fewer_tokens_than_directions_is_exact() -> None:
    exact = torch.randn(3, 32, generator=torch.manual_seed(0))
    record = new_record(3, 32, "pca8")
    record.put(np.arange(3), exact)
    decoded = torch.from_numpy(record.finish().take(np.arange(3)))
    torch.testing.assert_close(decoded, exact, rtol=0, atol=0.01)
    assert record.error("x") < 0.002


def test_pca_of_values_that_are_no_numbers_or_too_large_is_refused() -> None:
    for value, message in ((float("nan"), "not finite"), (70000.0, "beyond pca1")):
        record = new_record(2, 2, "pca1")
        record.put(np.array([0, 1]), torch.tensor([[1.0, value], [2.0, 3.0]]))
        record.finish()
        with pytest.raises(TargetsError, match=message):
            record.error("shard x")


def test_int8_is_off_by_at_most_half_a_step_of_its_tokens_largest_value() -> None:
    exact = torch.tensor([[127.0, 1.4, -3.6], [0.0127, -0.00994, 0.00001]])
    record = HiddenRecord(2, 3, "int8")
    record.put(np.array([0, 1]), exact)
    assert record.values.tolist() == [[127, 1, -4], [127, -99, 0]]
    assert record.scales is not None
    np.testing.assert_allclose(record.scales, [1, 0.0001], rtol=1e-6)


def test_values_beyond_float16_are_refused_and_values_that_are_no_numbers() -> None:
    record = HiddenRecord(1, 2, "float16")
    record.put(np.array([0]), torch.tensor([[1.0, 70000.0]]))
    with pytest.raises(TargetsError, match="shard x: a hidden value is beyond float16"):
        record.error("shard x")
    record = HiddenRecord(1, 2, "int8")
    record.put(np.array([0]), torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(TargetsError, match="shard x: the teacher gave values that are not finite"):
        record.error("shard x")


def test_a_teacher_over_several_gpus_asks_for_accelerate_before_anything_starts(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("xdray.annotation.find_spec", lambda name: None)
    plan: Any = SimpleNamespace(gpus_per_replica=2, threads_per_replica=1)
    nothing: Any = None
    with pytest.raises(ConfigError, match=r"a teacher over several GPUs needs accelerate"):
        _actor_kwargs(tiny("run"), "m", nothing, nothing, plan)
    plan.gpus_per_replica = 1
    assert _actor_kwargs(tiny("run"), "m", nothing, nothing, plan)["device"] == "cuda"
