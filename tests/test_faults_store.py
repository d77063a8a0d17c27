"""Faults of the teacher's pass: actors killed at their reads and writes, a storage that fails."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tagging_task
from faulty_files import PLAN, STATE, hits, plan
from processes import killer, named, wait_until

from xdray.annotator import Annotator
from xdray.cluster import Cluster, map_shards
from xdray.config_cluster import ClusterConfig
from xdray.corpus import Sentence, inline_shards
from xdray.errors import ClusterError, TargetsError
from xdray.labels import LabelSet
from xdray.resources import THIS_MACHINE, ResourcePlan, Resources
from xdray.targets import AnnotateTask, TargetStore
from xdray.tokens import fingerprint, load_tokenizer
from xdray.weights import teacher_fingerprint

pytestmark = pytest.mark.faults
POOL = ResourcePlan(1, 1, 0, 1, 0, 1, 0, 1, 1, Resources(2, 0, THIS_MACHINE))
CODEC = "float16"
HARM = ("cut", "cut", "cut", "cut", "empty", "zeros", "end", "other", "gone", "tail")
Pass = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def cluster(faulty_ray: None) -> Iterator[Cluster]:
    with Cluster(ClusterConfig.model_validate({})) as found:
        yield found


@pytest.fixture(scope="module")
def tasks(tiny_text: Path) -> list[AnnotateTask]:
    """Twenty shards and a bit, wanted with layer 1."""
    lines = (tiny_text / "transfer" / "en.txt").read_text(encoding="utf-8").splitlines()
    shards = inline_shards([Sentence("", "en", line) for line in lines if line][:160], 8)
    return [AnnotateTask(shard, (1,)) for shard in shards]


@pytest.fixture(scope="module")
def annotating(
    cluster: Cluster, tiny_teacher: Path, tiny_labels: LabelSet, tasks: list[AnnotateTask]
) -> Callable[[str], tuple[TargetStore, Pass]]:
    """Return a maker of stores with a pass over them that does what is missing: its receipts."""
    model = str(tiny_teacher)
    identity = {
        "teacher": teacher_fingerprint(model),
        "tokenizer": fingerprint(load_tokenizer(model)),
        "dtype": "float32",
    }

    def make(uri: str) -> tuple[TargetStore, Pass]:
        store = TargetStore(uri, identity)
        kwargs = {
            "model": model,
            "task": tagging_task(tiny_labels),
            "store": store,
            "batch_tokens": 256,
            "codec": CODEC,
            "threads": 1,
        }

        def run() -> list[dict[str, Any]]:
            missing = store.missing(tasks, CODEC)
            return list(map_shards(cluster, Annotator, kwargs, missing, POOL, threads=2))

        return store, run

    return make


@pytest.fixture(scope="module")
def undisturbed(
    annotating: Callable[[str], tuple[TargetStore, Pass]],
    tasks: list[AnnotateTask],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """Files of a pass without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _, run = annotating(str(folder / "store"))
    assert len(run()) == len(tasks) == 20
    return _files(folder)


def _files(folder: Path) -> dict[str, bytes]:
    """Objects of the store; a put whose process was ended is none, its draft stays by `_Put`."""
    every = (folder / "store").rglob("*")
    found = (path for path in every if path.is_file() and path.suffix != ".put")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _none_left() -> None:
    """No actor of a pool, and none of its ledgers."""
    wait_until(lambda: not named("PoolWorker") + named("ray::Ledger"), 30, "actors are left")


@pytest.mark.parametrize("seed", range(4))
def test_actors_killed_at_random_writes_and_a_failing_storage_leave_the_same_store(
    annotating: Callable[[str], tuple[TargetStore, Pass]],
    tasks: list[AnnotateTask],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    tell_faults: Callable[..., None],
    seed: int,
):
    rng = random.Random(seed)
    names = [task.shard.shard_id for task in tasks]
    kills = [
        {"at": "put", "name": name, "nth": rng.randint(1, 2), "do": f"kill-{how}"}
        for name in rng.sample(names, 5)
        for how in [rng.choice(["before", "half", "after"])]
    ]
    fails = _fails(rng, names, ["put", "info"])
    plan(tmp_path, kills + fails)
    store, run = annotating(f"fsspec+faulty://{tmp_path}/store")
    receipts = run()
    assert sorted(receipt["shard_id"] for receipt in receipts) == sorted(names)
    met = hits(tmp_path)  # a shard that another one's kill ended may never come to its own fault
    assert sum(map(bool, met)) >= 8, met
    assert _files(tmp_path) == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == {"store", PLAN, STATE}
    assert store.missing(tasks, CODEC) == []
    _none_left()
    tell_faults("teacher actor, killed at a write to remote storage", survived=sum(met[:5]))
    tell_faults("remote storage that fails for a while (pass)", survived=sum(met[5:]))

    plan(tmp_path, _fails(rng, names, ["info", "open", "read"]))
    assert store.missing(tasks, CODEC) == []
    parts = ["logits", f"hidden-1-{CODEC}"]
    view = store.view([(task.shard.shard_id, task.shard.rows) for task in tasks], parts)
    tokens = [view.load_shard(shard, parts) for shard in range(len(tasks))]
    assert sum(len(its.lengths) for its in tokens) == 160
    assert all(hits(tmp_path)), hits(tmp_path)
    tell_faults("remote storage that fails for a while (reading)", survived=sum(hits(tmp_path)))


def _fails(rng: random.Random, names: list[str], calls: list[str]) -> list[dict[str, Any]]:
    """Failures of calls for some of the shards, once or twice in a row, at the first of each."""
    return [
        {"at": rng.choice(calls), "name": name, "nth": 1, "times": rng.randint(1, 2), "do": "fail"}
        for name in rng.sample(names, 6)
    ]


def test_actors_killed_at_any_time_on_a_local_disk_leave_the_same_store(
    annotating: Callable[[str], tuple[TargetStore, Pass]],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    tell_faults: Callable[..., None],
):
    _, run = annotating(str(tmp_path / "store"))
    rng = random.Random(0)

    def at(count: int) -> Callable[[], bool]:
        return lambda: len(list(tmp_path.rglob("*.parquet"))) >= count

    moments = [at(count) for count in sorted(rng.sample(range(38), 4))]
    with killer("PoolWorker", moments) as killed:
        receipts = run()
    assert len(killed) >= 3
    assert len({receipt["shard_id"] for receipt in receipts}) == len(receipts) == 20
    assert _files(tmp_path) == undisturbed
    _none_left()
    tell_faults("teacher actor, killed at a random time", survived=len(killed))


@pytest.mark.parametrize("seed", range(2))
def test_a_storage_that_fills_up_or_stays_away_ends_in_one_error_and_what_is_done_stays(
    annotating: Callable[[str], tuple[TargetStore, Pass]],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    tell_faults: Callable[..., None],
    seed: int,
):
    _, run = annotating(f"fsspec+faulty://{tmp_path}/store")
    nth = random.Random(seed).randint(3, 30)
    do, message = [
        ("full", r"\.parquet: the disk is full: .*run the same command again"),
        ("fail", r"\.parquet: cannot be written: .*does not answer"),
    ][seed]
    plan(tmp_path, [{"at": "put", "nth": nth, "times": 999, "do": do}])
    with pytest.raises(ClusterError, match=message):
        run()
    written = _files(tmp_path)
    assert len(written) == nth - 1
    files = Counter(Path(name).name.partition(".")[0] for name in written)
    plan(tmp_path, [])
    receipts = run()
    # two files a shard; an actor works on two shards, so that two may be half done
    assert len(receipts) == 20 - sum(count == 2 for count in files.values())
    assert _files(tmp_path) == undisturbed
    _none_left()
    what = ["remote storage that fills up", "remote storage that stays away"][seed]
    tell_faults(what, refused=1)


def test_damaged_files_are_done_again_where_the_footer_tells_and_named_where_it_does_not(
    annotating: Callable[[str], tuple[TargetStore, Pass]],
    tasks: list[AnnotateTask],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    tell_faults: Callable[..., None],
):
    rng = random.Random(0)
    store, run = annotating(str(tmp_path / "store"))
    assert len(run()) == 20
    files = sorted((tmp_path / "store").rglob("*.parquet"))
    victims = rng.sample(files, 14)
    shards = {path.name.partition(".")[0] for path in victims[:10]}
    for path, how in zip(victims[:10], HARM, strict=True):
        data = path.read_bytes()
        damaged = {
            "cut": data[: rng.randrange(len(data))],
            "empty": b"",
            "zeros": bytes(len(data)),
            "end": data[:-4] + b"XXXX",
            "other": victims[13].read_bytes(),  # whole, of another shard or part
            "tail": data[len(data) // 2 :],
        }
        path.unlink() if how == "gone" else path.write_bytes(damaged.get(how, b""))
    receipts = run()
    assert {receipt["shard_id"] for receipt in receipts} == shards
    assert _files(tmp_path) == undisturbed
    tell_faults("targets file cut, emptied, swapped or gone before the pass", survived=10)

    parts = ["logits", f"hidden-1-{CODEC}"]
    view = store.view([(task.shard.shard_id, task.shard.rows) for task in tasks], parts)
    for path in victims[10:13]:  # a bit that turned inside a page, where no footer tells
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data) // 4, len(data) // 2)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        shard = view.shard_ids.index(path.name.partition(".")[0])
        with pytest.raises(TargetsError, match=rf"{path.name}: damaged .*delete it and run the"):
            view.load_shard(shard, parts)
        path.unlink()
    assert len(run()) == 3
    assert _files(tmp_path) == undisturbed
    tell_faults("bit that turned in a targets file", refused=3)


def test_an_item_that_kills_every_actor_ends_the_pool_and_names_itself(
    annotating: Callable[[str], tuple[TargetStore, Pass]],
    tasks: list[AnnotateTask],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    tell_faults: Callable[..., None],
):
    name = tasks[7].shard.shard_id
    plan(tmp_path, [{"at": "put", "name": name, "nth": 1, "times": 99, "do": "kill-before"}])
    _, run = annotating(f"fsspec+faulty://{tmp_path}/store")
    with pytest.raises(ClusterError, match=r"killed its Annotator 3 times, expected a result; .*"):
        run()
    assert hits(tmp_path) == [3]
    plan(tmp_path, [])
    run()
    assert _files(tmp_path) == undisturbed
    _none_left()
    tell_faults("shard that kills every actor", refused=3)
