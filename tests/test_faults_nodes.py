"""A cluster of four nodes on this machine; one dies in the pass, in training, at the end."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeConfig
from test_faults_ray import SETTINGS, _checkpoints, _come, _start, _training, _weights

from xdray.configfile import dump_config
from xdray.distillation import distill

pytestmark = [
    pytest.mark.faults,
    # sockets that ray.cluster_utils leaves open (2.60)
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TEACHER = {"num_cpus": 1, "num_gpus": 1, "labels": {"pool": "teacher"}}
STUDENT = {"num_cpus": 1, "num_gpus": 1, "labels": {"pool": "student"}}


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head, two nodes for teachers and one for students; each of the three has a fake GPU."""
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"object_store_memory": 100_000_000}
    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, **options})
    cluster.made = {  # type: ignore[attr-defined]
        name: cluster.add_node(**kind, **options)
        for name, kind in (("a", TEACHER), ("b", TEACHER), ("c", STUDENT))
    }
    yield cluster
    cluster.shutdown()


def test_a_node_that_dies_in_each_part_changes_nothing(
    tiny_at: MakeConfig,
    faulty_ray: None,
    nodes: Any,
    tmp_path: Path,
    tell_faults: Callable[..., None],
):
    settings = {**SETTINGS, "targets": {"store": str(tmp_path / "store"), "shard_sentences": 16}}
    undisturbed = tiny_at(tmp_path / "undisturbed", training=_training(0), **settings)
    report = distill(undisturbed)
    settings["targets"] |= {"store": str(tmp_path / "store-killed")}
    places = {
        "teacher_labels": {"pool": "teacher"},
        "training_labels": {"pool": "student"},
        "max_resources": {"CPU": 4, "GPU": 0},  # a fake one computes nothing
    }
    config = tiny_at(
        tmp_path / "run",
        training=_training(1),
        teacher={"replicas": 2},
        cluster=places,
        **settings,
    )
    path, out, log = tmp_path / "run.yaml", tmp_path / "out", tmp_path / "run" / "log.txt"
    path.write_text(dump_config(config))
    store = tmp_path / "store-killed"
    driver = _start(path, out, RAY_ADDRESS=nodes.address)
    parts: list[tuple[str, dict[str, Any], Callable[[], Any]]] = [
        ("a", TEACHER, lambda: len(list(store.rglob("*.parquet"))) >= 8),
        ("c", STUDENT, _checkpoints(tmp_path / "run")(3)),
        ("b", TEACHER, lambda: "scoring dev and test" in log.read_text()),
    ]
    try:
        for name, kind, moment in parts:
            _come(moment, driver, out)
            nodes.remove_node(nodes.made[name], allow_graceful=False)
            nodes.add_node(**kind, object_store_memory=100_000_000)  # as an autoscaler would
        assert driver.wait(180) == 0, out.read_text()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    last = json.loads(out.read_text().splitlines()[-1])
    assert "continued at epoch" in log.read_text()
    targets = ("rows", "tokens", "teacher_forward_rows")
    assert {k: last["targets"][k] for k in targets} == {k: report["targets"][k] for k in targets}
    whole = json.loads((tmp_path / "run" / "report.json").read_text())
    assert whole["student"]["test"] == report["student"]["test"]
    weights = _weights(config)
    for tensor_name, value in _weights(undisturbed).items():
        assert torch.equal(value, weights[tensor_name]), tensor_name
    files = [
        {p.name: p.read_bytes() for p in folder.rglob("*.parquet")}
        for folder in (store, tmp_path / "store")
    ]
    assert files[0] == files[1]
    assert not list(store.rglob("*.tmp"))
    tell_faults("node of a four-node cluster, dead in each part", survived=3)
