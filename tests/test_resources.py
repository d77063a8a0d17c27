import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdray.config import Config
from xdray.config_cluster import ClusterConfig
from xdray.configfile import make_config
from xdray.errors import ClusterError, ConfigError
from xdray.resources import (
    THIS_MACHINE,
    Resources,
    _visible_gpus,
    check_address,
    fit_plan,
    machine_resources,
)


def config(**sections: Any) -> Config:
    values: dict[str, Any] = {
        "run": {"folder": "run"},
        "data": {"train": "a.conll", "dev": "b.conll", "test": "c.conll", "transfer": "d.txt"},
        "teacher": {"model": "teacher"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return make_config(values, "test")


def machine(cpus: int, gpus: int = 0) -> Resources:
    return Resources(cpus, gpus, THIS_MACHINE)


def test_two_cores_run_one_actor_that_reserves_one_and_computes_on_both():
    plan = fit_plan(config(), 10, machine(2))
    assert (plan.replicas, plan.cpus_per_replica, plan.threads_per_replica) == (1, 1, 2)
    assert (plan.workers, plan.threads_per_worker, plan.reader_cpus) == (0, 2, 1)


def test_one_core_is_enough():
    plan = fit_plan(config(), 10, machine(1))
    assert (plan.replicas, plan.threads_per_replica) == (1, 1)
    assert plan.available.logical_cpus == 2


@pytest.mark.parametrize(("cpus", "replicas", "threads"), [(8, 1, 8), (16, 2, 8), (64, 8, 8)])
def test_many_cores_are_shared_out_to_actors_of_eight_threads(cpus, replicas, threads):
    plan = fit_plan(config(), None, machine(cpus))
    assert (plan.replicas, plan.threads_per_replica) == (replicas, threads)


def test_threads_of_the_config_make_more_actors():
    plan = fit_plan(config(cluster={"threads": 2}), None, machine(8))
    assert (plan.replicas, plan.threads_per_replica, plan.threads_per_worker) == (4, 2, 2)


def test_each_gpu_gets_an_actor_and_from_two_on_a_worker():
    one, four = (fit_plan(config(), None, machine(32, gpus)) for gpus in (1, 4))
    assert (one.replicas, one.gpus_per_replica, one.workers) == (1, 1, 0)
    assert (four.replicas, four.workers, four.gpus_per_worker) == (4, 4, 1)


def test_no_more_actors_than_shards():
    assert fit_plan(config(), 3, machine(32, 8)).replicas == 3
    assert fit_plan(config(teacher={"replicas": 4}), 2, machine(8)).replicas == 2
    assert fit_plan(config(), 0, machine(32, 8)).replicas == 1


@given(cpus=st.integers(1, 300), gpus=st.integers(0, 300), shards=st.none() | st.integers(0, 50))
@settings(deadline=None, derandomize=True)
def test_an_automatic_plan_always_leaves_a_cpu_to_read_with(cpus, gpus, shards):
    there = machine(cpus, gpus)
    cfg = config(training={"workers": 0})
    plan = fit_plan(cfg, shards, there)
    assert plan.replicas * plan.cpus_per_replica + 1 <= there.logical_cpus
    assert plan.replicas * plan.gpus_per_replica <= gpus
    assert plan.threads_per_replica >= 1


@pytest.mark.parametrize(
    ("sections", "there", "arithmetic"),
    [
        (
            {"teacher": {"replicas": 4}},
            machine(2),
            "teacher.replicas: 4 actors x 1 CPU = 4 + 1 to read = 5 CPUs, there are 2",
        ),
        (
            {"teacher": {"replicas": 4}},
            machine(64, 2),
            "teacher.replicas: 4 actors x 1 GPU = 4 GPUs, there are 2",
        ),
        (
            {"training": {"workers": 3}},
            machine(2),
            "training.workers: 3 workers x 1 CPU = 3 CPUs, there are 2",
        ),
        (
            {"training": {"workers": 3}},
            machine(64, 2),
            "training.workers: 3 workers x 1 GPU = 3 GPUs, there are 2",
        ),
        ({}, Resources(1, 0, "the cluster at x"), "there are 1 (the cluster at x)"),
    ],
)
def test_what_can_never_run_is_refused_with_the_arithmetic(sections, there, arithmetic):
    with pytest.raises(ClusterError) as caught:
        fit_plan(config(**sections), 100, there)
    assert arithmetic in str(caught.value)


def standing(*nodes: tuple[int, int, str]) -> Resources:
    """A cluster of nodes of (CPUs, GPUs, pool) that stands."""
    told = [
        {"Alive": True, "Resources": {"CPU": c, "GPU": g, "memory": 1e9}, "Labels": {"pool": pool}}
        for c, g, pool in nodes
    ]
    dead = {"Alive": False, "Resources": {"CPU": 64, "GPU": 64}, "Labels": {"pool": "teacher"}}
    return Resources.of_nodes([*told, dead], {}, "the cluster at x")


TEACHER, TRAINING = {"teacher_labels": {"pool": "teacher"}}, {"training_labels": {"pool": "t"}}


@pytest.mark.parametrize(
    ("sections", "there", "message"),
    [
        (
            {"teacher": {"gpus_per_replica": 8}},
            standing((32, 4, ""), (32, 4, "")),
            "teacher.replicas: 1 actor(s), each of 1 CPU and 8 GPU(s) of one node: the nodes of "
            "the cluster at x hold 0; ",
        ),
        (
            {"cluster": {"teacher_labels": {"pool": "tacher"}}},
            standing((8, 1, "teacher")),
            "of one node on nodes with pool: tacher: the nodes of the cluster at x hold 0; ",
        ),
        (
            {"cluster": TRAINING, "training": {"workers": [2, 4]}},
            standing((8, 1, "t"), (8, 8, "teacher")),
            "training.workers: 2 worker(s), each of 1 CPU and 1 GPU(s) of one node on nodes with "
            "pool: t: the nodes of the cluster at x hold 1; ",
        ),
        (
            {"cluster": TRAINING},
            standing((8, 4, "teacher")),
            "training.workers: 1 worker(s), each of 1 CPU and 1 GPU(s) of one node on nodes with",
        ),
    ],
)
def test_what_no_node_of_a_standing_cluster_has_room_for_is_refused(sections, there, message):
    with pytest.raises(ClusterError) as caught:
        fit_plan(config(**sections), 100, there)
    assert message in str(caught.value)


def test_labels_count_the_nodes_that_carry_them():
    there = standing((8, 2, "t"), (64, 8, "teacher"))
    assert (there.cpus, there.gpus) == (72, 10)
    plan = fit_plan(config(cluster={**TEACHER, **TRAINING}), 100, there)
    assert (plan.replicas, plan.workers) == (8, 2)
    plan = fit_plan(
        config(cluster={**TEACHER, **TRAINING}, training={"workers": [1, 4]}), 100, there
    )
    assert (plan.least_workers, plan.workers) == (1, 2)
    assert plan.as_dict()["available"]["nodes"] == 2
    spanned = fit_plan(config(teacher={"gpus_per_replica": 4}), 100, there)
    assert spanned.replicas == 2


def test_a_range_takes_what_there_is_room_for():
    some = config(teacher={"replicas": [2, 12]}, training={"workers": [1, 4]})
    plan = fit_plan(some, None, machine(9))
    assert (plan.least_replicas, plan.replicas) == (2, 8)
    assert (plan.least_workers, plan.workers) == (1, 4)
    gpus = fit_plan(some, None, machine(64, 3))
    assert (gpus.replicas, gpus.workers, gpus.least_workers) == (3, 3, 1)
    few = fit_plan(some, 1, machine(9))
    assert (few.least_replicas, few.replicas) == (1, 1)
    with pytest.raises(
        ClusterError, match="2 actors x 1 CPU = 2 \\+ 1 to read = 3 CPUs, there are 2"
    ):
        fit_plan(some, None, machine(2))


def test_a_cluster_that_grows_is_not_waited_for():
    there = Resources(64, 8, "cluster.max_resources", grows=True)
    assert fit_plan(config(), None, there).least_replicas == 1
    assert fit_plan(config(), None, machine(64, 8)).least_replicas == 8


def test_actors_may_span_gpus():
    spanning = config(teacher={"gpus_per_replica": 4})
    plan = fit_plan(spanning, None, machine(64, 8))
    assert (plan.replicas, plan.gpus_per_replica, plan.gpus_per_worker) == (2, 4, 1)
    assert fit_plan(spanning, None, machine(64)).gpus_per_replica == 0
    with pytest.raises(ClusterError, match="1 actors x 4 GPUs = 4 GPUs, there are 2"):
        fit_plan(spanning, None, machine(64, 2))


@pytest.mark.parametrize(
    "sections",
    [
        {"teacher": {"replicas": [2, 1]}},
        {"teacher": {"replicas": [0, 1]}},
        {"teacher": {"replicas": [1]}},
        {"training": {"workers": [1, 2, 3]}},
        {"training": {"workers": -1}},
        {"training": {"workers": [1, 2]}, "targets": {"delivery": "streamed"}},
    ],
)
def test_no_range_is_refused(sections):
    with pytest.raises(ConfigError, match="expected"):
        config(**sections)


def test_two_workers_fit_on_two_cores():
    assert fit_plan(config(training={"workers": 2}), None, machine(2)).threads_per_worker == 1


def test_the_plan_goes_into_the_report_as_plain_values():
    values = fit_plan(config(), 1, machine(2)).as_dict()
    available = {"cpus": 2, "gpus": 0, "source": THIS_MACHINE, "grows": False, "nodes": 0}
    assert values["available"] == available


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1,7", 2), ("0,-1,1", 1)]
)
def test_gpus_are_device_files_that_cuda_may_see(tmp_path: Path, monkeypatch, visible, count):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _visible_gpus(tmp_path) == count


def test_more_gpus_than_the_machine_shows_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ClusterError, match=r"cluster.num_gpus: 2 asked, this machine shows 0"):
        machine_resources(ClusterConfig.model_validate({"num_gpus": 2}))


def test_num_cpus_of_the_config_goes_before_the_machine():
    assert machine_resources(ClusterConfig.model_validate({"num_cpus": 7})).cpus == 7


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterError, match="RAY_ADDRESS: nothing answers at 127"):
            check_address(address)  # bound, not listening
        free.listen()
        check_address(address)


def test_a_plan_without_a_cluster_loads_neither_ray_nor_torch():
    code = (
        "import sys; from xdray.cluster import available\n"
        "from xdray.config_cluster import ClusterConfig\n"
        "available(ClusterConfig()); print(sorted({'ray', 'torch'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
