"""Streamed delivery, and students with tokens of their own, on real Ray."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeConfig, MakeTeacher

from xdray.annotation import make_stream, open_store
from xdray.batch_plan import Block
from xdray.cluster import Cluster
from xdray.config import Config
from xdray.corpus import inline_shards
from xdray.distillation import annotate_only, distill
from xdray.errors import ConfigError
from xdray.kinds import load_task, with_labels
from xdray.parts import BLOCK
from xdray.planning import make_plan
from xdray.reading import read_lengths
from xdray.runs import open_run
from xdray.sentences import Sentence
from xdray.sources import StreamedSource
from xdray.tokenised import Tokens

STAGES = {
    "name": "two",
    "stages": [
        {
            "name": "representation",
            "epochs": 2,
            "terms": [{"loss": "hidden", "split": "transfer", "layer": 1}],
        },
        {"name": "logits", "epochs": 3, "terms": [{"loss": "logits", "split": "transfer"}]},
    ],
}


def histories(report: dict[str, Any]) -> list[Any]:
    return [[epoch["terms"] for epoch in row["history"]] for row in report["stages"]]


@pytest.fixture
def running(tiny: MakeConfig) -> Callable[..., Config]:
    """Return a maker of small runs without a baseline."""

    def make(folder: str, **sections: Any) -> Config:
        evaluation = {"bootstrap": 0, "latency": False, "baseline": False}
        return tiny(folder, **{"recipe": STAGES, "evaluation": evaluation, **sections})

    return make


@pytest.mark.cluster
def test_streamed_and_stored_take_the_same_steps(
    running: Callable[..., Config], ray_session: None, tmp_path: Path
):
    stored = distill(running("stored"))
    before = {path.name for path in (tmp_path / "stored").iterdir()}
    store = str(tmp_path / "none")
    streamed = distill(running("streamed", targets={"delivery": "streamed", "store": store}))
    assert histories(streamed) == histories(stored)
    for one, other in zip(streamed["stages"], stored["stages"], strict=True):
        assert [e["score"] for e in one["history"]] == pytest.approx(
            [e["score"] for e in other["history"]], rel=1e-4
        )
    targets = streamed["targets"]
    rows = [stage["teacher_forward_rows"] for stage in streamed["stages"]]
    held_out = rows[0] - 2 * targets["rows"]
    assert 0 < held_out < 0.1 * targets["rows"]  # once for both stages
    assert rows[1] == 3 * targets["rows"]
    assert targets["teacher_forward_rows"] == sum(rows)
    assert targets["bytes"] == 0
    files = [path.name for path in Path(store).rglob("*.parquet")]
    assert not any("hidden" in name for name in files)  # logits of dev and test alone
    found = {path.name for path in (tmp_path / "streamed").iterdir()}
    assert found - {"pass.json"} == before - {"pass.json"}  # there where something was forwarded
    again = distill(running("streamed", targets={"delivery": "streamed", "store": store}))
    assert again["created"] == streamed["created"]
    with pytest.raises(ConfigError, match="streamed keeps nothing"):
        annotate_only(running("x", targets={"delivery": "streamed"}))


@pytest.mark.cluster
@pytest.mark.slow
def test_shards_larger_than_a_block_are_streamed_block_by_block(
    running: Callable[..., Config], ray_session: None, tmp_path: Path
):
    """The same steps; the teacher's other batches round otherwise."""
    text = tmp_path / "en.txt"
    rows = [f"the {chr(97 + n % 26)} of {n // 26}\n" for n in range(BLOCK + 90)]
    text.write_text("".join(rows))
    sections: dict[str, Any] = {
        "data": {"transfer": {"sources": {"path": str(text), "language": "en"}}},
        "training": {"batch_tokens": 512, "window_tokens": 2048},
    }
    targets = {"shard_sentences": 2048, "store": str(tmp_path / "targets")}
    stored = distill(running("stored", targets=targets, **sections))
    assert stored["targets"]["shards"] == 1
    streamed = distill(running("streamed", targets={**targets, "delivery": "streamed"}, **sections))
    for one, other in zip(streamed["stages"], stored["stages"], strict=True):
        assert one["steps"] == other["steps"]
        assert one["teacher_forward_rows"] > len(rows)
    for one, other in zip(histories(streamed), histories(stored), strict=True):
        values = [[*terms.values()] for terms in (*one, *other)]
        assert values[: len(one)] == [pytest.approx(its, rel=1e-3) for its in values[len(one) :]]


def test_more_training_workers_than_shards_are_refused(
    running: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "")
    config = running(
        "few",
        targets={"delivery": "streamed"},
        teacher={"replicas": "auto"},
        training={"workers": 2},
        cluster={"num_cpus": 8},
    )
    shards = inline_shards([Sentence("1", "en", "a b")] * 40, 64)
    nothing: Any = None
    with open_run(config, False) as run, pytest.raises(ConfigError, match="make 1 shards; set"):
        make_stream(run, "t", None, nothing, nothing, shards)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_ray_train_worker_is_fed_and_an_early_end_frees_the_teacher(
    running: Callable[..., Config], ray_session: None
):
    early = {"epochs": 8, "patience": 1, "learning_rate": 1.0, "schedule": "constant"}
    stages = {"name": "early", "stages": [{**stage, **early} for stage in STAGES["stages"]]}
    settings: dict[str, Any] = {"recipe": stages}
    alone = distill(running("alone", **settings))
    streamed = {"delivery": "streamed"}
    fed = distill(running("fed", targets=streamed, training={"workers": 1}, **settings))
    assert histories(fed) == histories(alone)
    assert any(stage["epochs"] < 7 for stage in fed["stages"])


@pytest.mark.cluster
def test_teacher_and_student_work_at_the_same_time(
    running: Callable[..., Config], ray_session: None, tiny_labels: Any
):
    class SlowTeacher:  # inside, so that it travels to the actors whole
        def __init__(self, **_: Any) -> None:
            pass

        def __call__(self, task: Any) -> dict[str, Any]:
            time.sleep(0.3)
            ids = np.zeros(task.shard.rows, np.int32)
            return {"tokens": Tokens(ids, ids, np.arange(len(ids) + 1))}

    config = running("slow", targets={"delivery": "streamed", "shard_sentences": 16})
    task = with_labels(load_task(config), tiny_labels)
    teacher = str(config.teacher.model)
    shards = inline_shards([Sentence(f"{n}", "en", ("a", f"{n}")) for n in range(16 * 12)], 16)
    with open_run(config, False) as run, Cluster(config.cluster) as cluster:
        store = open_store(run, teacher, task)
        view = read_lengths(run, cluster, teacher, None, task, store, shards)
        stream = make_stream(run, teacher, None, task, store, shards)
    slow = StreamedSource(replace(stream, kwargs={}, worker=SlowTeacher), view, task, 0, 1)
    reader = slow.read([Block(number, 0, 16) for number in range(12)], ())
    next(reader)  # the actor is up
    started = time.monotonic()
    count = 0
    for _ in reader:
        time.sleep(0.3)  # the student
        count += 1
    seconds = time.monotonic() - started
    assert count == len(shards) - 1
    assert seconds < 0.75 * count * 0.6, f"{seconds:.2f} s, {count * 0.6:.2f} s in turn"


def test_the_plan_compares_deliveries_and_refuses_shards_that_do_not_fit(
    running: Callable[..., Config],
):
    plan = make_plan(running("plan"))["deliveries"]
    assert plan["recommended"] == plan["chosen"] == "stored"
    assert plan["stored"]["bytes~"] > 0 == plan["streamed"]["bytes~"]
    assert plan["streamed"]["teacher_passes_at_most"] == 5
    once = {"name": "one", "stages": [{**STAGES["stages"][0], "epochs": 1}]}
    assert make_plan(running("once", recipe=once))["deliveries"]["recommended"] == "streamed"
    with pytest.raises(ConfigError, match=r"set targets\.shard_sentences, 32 now, to \d+ or less"):
        make_plan(
            running(
                "large", targets={"delivery": "streamed"}, cluster={"object_store_gib": 0.00001}
            )
        )


OWN = {"tokenizer": "bert", "pieces": "mean", "max_length": 48}


@pytest.mark.cluster
@pytest.mark.parametrize("delivery", ["stored", "streamed"])
def test_a_byte_pair_teacher_teaches_a_word_piece_tagger(
    running: Callable[..., Config],
    ray_session: None,
    make_teacher: MakeTeacher,
    tiny_teacher: Path,
    delivery: str,
):
    settings: dict[str, Any] = {
        "teacher": {"model": str(make_teacher("roberta"))},
        "tokens": {**OWN, "tokenizer": str(tiny_teacher)},
        "targets": {"delivery": delivery},
    }
    with pytest.raises(ConfigError, match=r"set student\.embedding_init: random"):
        distill(running("svd", **settings))
    student = {"embedding_init": "random", "embedding": 8, "hidden": 8}
    report = distill(running(f"tagger-{delivery}", student=student, **settings))
    for row in report["stages"]:
        values = [next(iter(epoch["terms"].values())) for epoch in row["history"]]
        assert values[-1] < values[0]
    assert report["student"]["segmentation"]["test"]["resegmented"] > 0
    maps = {"loss": "relations", "split": "transfer", "relation_heads": 2}
    recipe = {"name": "r", "stages": [{"name": "r", "terms": [maps]}]}
    student = {"kind": "transformer", "embedding": 8, "hidden": 16, "layers": 1, "heads": 2}
    student["embedding_init"] = "random"
    with pytest.raises(ConfigError, match="compares tokens with each other"):
        distill(running("maps", student=student, **{**settings, "recipe": recipe}))
