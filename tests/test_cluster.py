"""Real pools and training runs; what needs no Ray is in test_resources, _workers, _sessions."""

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import named, wait_until

from xdray.cluster import Cluster, available, fit_on_workers, map_shards
from xdray.config_cluster import ClusterConfig
from xdray.errors import ClusterError, CorpusError, TrainingError
from xdray.resources import THIS_MACHINE, ResourcePlan, Resources
from xdray.sessions import Session

PLAN = ResourcePlan(1, 1, 0, 1, 1, 1, 0, 1, 1, Resources(2, 0, THIS_MACHINE))
CONFIG = ClusterConfig.model_validate({})


@pytest.fixture(scope="module")
def cluster(ray_session: None) -> Iterator[Cluster]:
    from ray import cloudpickle

    # workers cannot import a test file
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Cluster(CONFIG) as found:
        yield found
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Square:
    """Squares integers; 2 takes the process down while `marker` is absent, -1 and -2 raise."""

    def __init__(self, marker: str = "", seconds: float = 0.0, start: str = "") -> None:
        if start:
            raise CorpusError(start)
        self.marker, self.seconds = marker, seconds

    def __call__(self, item: int) -> dict[str, Any]:
        time.sleep(self.seconds)
        if item == 2 and self.marker and not Path(self.marker).exists():
            if self.marker != "never":
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item == -1:
            raise CorpusError("a.conll:3: one column, expected two")
        if item == -2:
            raise KeyError("missing")
        return {"item": item, "square": np.full(3, item) ** 2, "pid": os.getpid()}


@pytest.mark.cluster
def test_every_item_comes_back_once_with_its_arrays(cluster: Cluster):
    receipts = list(map_shards(cluster, Square, {}, iter(range(7)), PLAN))
    assert sorted(receipt["item"] for receipt in receipts) == list(range(7))
    assert all(receipt["index"] == receipt["item"] for receipt in receipts)
    for receipt in receipts:
        assert receipt["square"].tolist() == [receipt["item"] * receipt["item"]] * 3


@pytest.mark.cluster
def test_no_items_need_no_pool(cluster: Cluster):
    assert list(map_shards(cluster, Square, {"start": "never built"}, [], PLAN)) == []


@pytest.mark.cluster
def test_two_actors_share_four_items(cluster: Cluster):
    plan = dataclasses.replace(PLAN, replicas=2)
    receipts = map_shards(cluster, Square, {"seconds": 1.0}, range(4), plan)
    shares = collections.Counter(receipt["pid"] for receipt in receipts)
    assert len(shares) == 2
    assert max(shares.values()) <= 3  # one may be up before the other


@pytest.mark.cluster
def test_the_item_of_a_killed_actor_is_done_again_and_no_other_is_lost(
    cluster: Cluster, tmp_path: Path
):
    marker = tmp_path / "killed"
    receipts = list(map_shards(cluster, Square, {"marker": str(marker)}, range(5), PLAN))
    assert marker.exists()
    assert sorted(receipt["item"] for receipt in receipts) == list(range(5))
    assert len({receipt["pid"] for receipt in receipts}) == 2
    wait_until(lambda: not named("ray::Ledger"), 30, "its ledger outlives the pool")
    assert {receipt["item"]: receipt["tries"] for receipt in receipts} == {
        **dict.fromkeys(range(5), 1),
        2: 2,
    }


@pytest.mark.cluster
def test_an_item_that_always_kills_its_actor_ends_the_pool(cluster: Cluster):
    with pytest.raises(ClusterError, match="shard 2: killed its Square 3 times"):
        list(map_shards(cluster, Square, {"marker": "never"}, range(5), PLAN))


@pytest.mark.cluster
def test_errors_of_workers_come_home_and_leave_the_pool_free_for_the_next(cluster: Cluster):
    with pytest.raises(CorpusError, match=r"^a.conll:3: one column, expected two$"):
        list(map_shards(cluster, Square, {}, [0, -1], PLAN))
    with pytest.raises(ClusterError, match=r"Square, shard -2: KeyError: 'missing'; .*/logs$"):
        list(map_shards(cluster, Square, {}, [-2], PLAN))
    with pytest.raises(CorpusError, match=r"^no such model$"):
        list(map_shards(cluster, Square, {"start": "no such model"}, range(5), PLAN))
    stopped = map_shards(cluster, Square, {}, range(100), PLAN)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert len(list(map_shards(cluster, Square, {}, range(3), PLAN))) == 3


@pytest.mark.cluster
def test_a_ray_that_was_there_before_is_left_running(cluster: Cluster):
    import ray

    with Cluster(CONFIG) as other:
        other.start()
    assert ray.is_initialized()


def count_steps(settings: dict[str, Any], session: Session) -> dict[str, Any]:
    """Sum the ranks, then one checkpoint a step; may kill the last rank, or raise in it."""
    import torch
    import torch.distributed as dist

    total = torch.tensor([session.rank + 1.0])
    if session.world_size > 1:
        dist.all_reduce(total)
    folder = session.latest_checkpoint()
    first = int((Path(folder) / "step").read_text()) + 1 if folder else 0
    marker = Path(settings.get("marker", "/"))
    for step in range(first, settings["steps"]):
        session.save(lambda folder, n=step: (folder / "step").write_text(str(n)), {"step": step})
        last_rank = session.rank == session.world_size - 1
        if step == settings.get("dies_after") and last_rank and not marker.exists():
            time.sleep(3.0)  # until the checkpoint is on Ray Train's record
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step >= settings.get("raises_from", 99) and last_rank:
            with marker.open("a") as tries:
                tries.write("x")
            raise TrainingError("stage logits, step 1: the loss is nan")
    return {
        "first": first,
        "total": total.item(),
        "device": session.device,
        "run_folder": session.run_folder,
        "folder": str(Path.cwd()),
    }


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_survive_a_kill_and_the_same_name_goes_on(cluster: Cluster, tmp_path: Path):
    plan, marker = dataclasses.replace(PLAN, workers=2), tmp_path / "killed"
    settings = {"steps": 3, "dies_after": 1, "marker": str(marker)}
    interrupt = signal.getsignal(signal.SIGINT)
    run = fit_on_workers(cluster, count_steps, settings, plan, str(tmp_path), "run", 1)
    assert signal.getsignal(signal.SIGINT) is interrupt  # Ray's would end with status 0
    assert marker.exists()
    assert 1 <= run["first"] <= 2  # not from the start
    assert run["total"] == 3.0  # 1 + 2: they talk to each other
    assert (run["device"], run["run_folder"]) == ("cpu", str(tmp_path / "run"))
    assert run["folder"] == str(Path.cwd())

    more = fit_on_workers(cluster, count_steps, {"steps": 5}, PLAN, str(tmp_path), "run", 0)
    assert (more["first"], more["total"]) == (3, 1.0)
    kept = [path for path in (tmp_path / "run").glob("checkpoint_*") if path.is_dir()]
    assert len(kept) == 2


@pytest.mark.cluster
@pytest.mark.slow
def test_elastic_workers_start_with_what_is_there_and_go_on_after_a_kill(
    cluster: Cluster, tmp_path: Path
):
    plan, marker = dataclasses.replace(PLAN, workers=4, least_workers=1), tmp_path / "killed"
    settings = {"steps": 3, "dies_after": 1, "marker": str(marker)}
    run = fit_on_workers(cluster, count_steps, settings, plan, str(tmp_path), "elastic", 1)
    assert marker.exists()
    assert 1 <= run["first"] <= 2
    assert run["total"] in {1.0, 3.0}  # one or two workers again: there are two CPUs, not four


@pytest.mark.cluster
@pytest.mark.slow
def test_our_error_in_one_of_two_workers_ends_the_run_without_a_second_try(
    cluster: Cluster, tmp_path: Path
):
    plan, marker = dataclasses.replace(PLAN, workers=2), tmp_path / "tries"
    settings = {"steps": 3, "raises_from": 0, "marker": str(marker)}
    with pytest.raises(TrainingError, match=r"^stage logits, step 1: the loss is nan$"):
        fit_on_workers(cluster, count_steps, settings, plan, str(tmp_path), "run", 3)
    assert marker.read_text() == "x"


def test_max_resources_are_believed_without_asking_the_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    grown = ClusterConfig.model_validate({"max_resources": {"CPU": 512, "GPU": 64}})
    assert available(grown) == Resources(512, 64, "cluster.max_resources", grows=True)
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: nothing answers at 127.0.0.1:1"):
        available(ClusterConfig.model_validate({"max_resources": {"GPU": 64}}))


SCRIPT = """
from xdray.cluster import Cluster, map_shards
from xdray.config_cluster import ClusterConfig
from xdray.resources import ResourcePlan, Resources

class Slow:  # by turn: Ray may do what it does again after what came later
    def __call__(self, item):
        import os, sys, time
        print("noise of a worker", file=sys.stderr)
        turn = len(os.listdir("done"))
        if turn == 1 and not os.path.exists("killed"):
            open("killed", "w").close()
            os._exit(1)
        time.sleep([0, 1, 600][turn])
        open(f"done/{item}", "w").close()
        return {"turn": turn}

plan = ResourcePlan(1, 1, 0, 1, 0, 1, 0, 1, 1, Resources(1, 0, "this machine"))
try:
    with Cluster(ClusterConfig(num_cpus=1, object_store_gib=0.1)) as cluster:
        for receipt in map_shards(cluster, Slow, {}, "abc", plan):
            print(receipt["turn"], flush=True)
finally:
    print("left", flush=True)
"""


@pytest.mark.cluster
def test_on_one_cpu_a_user_sees_no_noise_of_ray_and_sigterm_ends_all(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "done").mkdir()
    names = ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS", "RAY_TRAIN_ENABLE_PRINT_PATCH")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        driver = subprocess.Popen(
            [sys.executable, str(script)], stdout=out, stderr=err, cwd=tmp_path, env=environment
        )
        deadline = time.monotonic() + 120
        while "1\n" not in (tmp_path / "out").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(60) == 128 + signal.SIGTERM
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "out").read_text() == "0\n1\nleft\n"
    assert (tmp_path / "err").read_text() == ""


LEFT_BY_AN_ERROR = """
from xdray.cluster import Cluster, map_shards
from xdray.config_cluster import ClusterConfig
from xdray.resources import ResourcePlan, Resources

class Quick:
    def __call__(self, item):
        return {}

plan = ResourcePlan(1, 1, 0, 1, 0, 1, 0, 1, 1, Resources(1, 0, "this machine"))
try:
    with Cluster(ClusterConfig(num_cpus=1, object_store_gib=0.1)) as cluster:
        pool = map_shards(cluster, Quick, {}, "abcdef", plan)
        print(next(pool)["index"])
        raise OSError("no space left")
except OSError:
    pool.close()  # as Python does with the error, when Ray is down
import ray
print(ray.is_initialized())
"""


@pytest.mark.cluster
def test_a_pool_that_outlives_its_ray_starts_none_anew(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(LEFT_BY_AN_ERROR)
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (found.stdout, found.stderr, found.returncode) == ("0\nFalse\n", "", 0)
