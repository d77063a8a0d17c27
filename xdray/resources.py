"""The resource plan: how a run uses the CPUs and GPUs that can be given. Arithmetic, no Ray.

An actor or worker reserves one CPU, or one CPU and one GPU, and computes on as many threads as it
is given: on two cores two reserved CPUs would leave Ray Data none to read with. What could never
run is refused here with the arithmetic, since Ray would wait for it for ever.
"""

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xdray.config import Config
from xdray.config_cluster import ClusterConfig, Count
from xdray.errors import ClusterError

MAX_THREADS = 8  # past this a forward pass on CPUs gains less than another replica does
STREAM_SHARE = 8  # GPUs for one that trains a student, where a teacher feeds it meanwhile
READER_CPUS = 1  # actors hold their CPUs; with none left Ray Data waits for ever
THIS_MACHINE = "this machine"


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a cluster that stands already."""

    cpus: int
    gpus: int
    labels: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Resources:
    """What can be given; `source` says who says so."""

    cpus: int
    gpus: int
    source: str
    grows: bool = False
    """Nodes come when they are asked for."""
    nodes: tuple[Node, ...] = ()
    """Where they are known one by one: what no node of them has room for is refused."""

    @classmethod
    def of_nodes(
        cls, told: Sequence[Mapping[str, Any]], limits: Mapping[str, float], source: str
    ) -> "Resources":
        """Return those of a cluster as `ray.nodes()` tells of it.

        limits: what it can become of a kind; then its nodes of today say nothing.
        """
        nodes = tuple(
            Node(
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
                dict(node.get("Labels") or {}),
            )
            for node in told
            if node["Alive"]
        )
        cpus = limits.get("CPU", sum(node.cpus for node in nodes))
        gpus = limits.get("GPU", sum(node.gpus for node in nodes))
        return cls(int(cpus), int(gpus), source, bool(limits), () if limits else nodes)

    @property
    def logical_cpus(self) -> int:
        """CPUs that Ray is told of: on one core a second one is stated, to read with."""
        return max(self.cpus, 1 + READER_CPUS) if self.source == THIS_MACHINE else self.cpus


@dataclasses.dataclass(frozen=True)
class ResourcePlan:
    """Teacher actors (replicas) and training workers, what each reserves, and its threads."""

    replicas: int
    cpus_per_replica: int
    gpus_per_replica: int
    threads_per_replica: int
    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    threads_per_worker: int
    reader_cpus: int
    available: Resources
    least_replicas: int = 0
    """The pool begins with so many and grows to `replicas`; 0: all of them at once."""
    least_workers: int = 0
    """Training goes on with so many where nodes die; 0: all of them are needed."""
    replica_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    worker_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the report; of nodes, their number."""
        found = dataclasses.asdict(self)
        found["available"]["nodes"] = len(self.available.nodes)
        return found


def machine_resources(config: ClusterConfig) -> Resources:
    """Return what this machine has, or what `num_cpus` and `num_gpus` leave of it; loads no torch.

    Raises ClusterError where `num_gpus` is more than it shows.
    """
    gpus = _visible_gpus(Path("/dev"))
    if config.num_gpus is not None and config.num_gpus > gpus:
        raise ClusterError(
            f"cluster.num_gpus: {config.num_gpus} asked, this machine shows {gpus}; lower it, or "
            "set RAY_ADDRESS to a cluster that has them"
        )
    cpus = config.num_cpus or len(os.sched_getaffinity(0))
    return Resources(cpus, gpus if config.num_gpus is None else config.num_gpus, THIS_MACHINE)


def check_address(address: str) -> None:
    """Raise ClusterError where nothing listens at "host:port"; Ray would try for a quarter hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS: nothing answers at {address} ({error.strerror or error}), expected a "
            "running cluster; start it, or unset RAY_ADDRESS to use this machine"
        ) from error


def selects(selector: str, value: str) -> bool:
    """Whether a label selector of Ray's picks a value: L4, !L4, in(L4,A10G), !in(L4,A10G)."""
    wanted = selector.removeprefix("!")
    if wanted.startswith("in(") and wanted.endswith(")"):
        names = [name.strip() for name in wanted[3:-1].split(",")]
    else:
        names = [wanted]
    return (value in names) != selector.startswith("!")


def _seats(there: Resources, gpus: int, labels: Mapping[str, str]) -> int:
    """How many processes of one CPU and so many GPUs nodes with these labels hold."""
    if not there.nodes:
        return there.gpus // gpus if gpus else there.logical_cpus
    return sum(
        min(node.cpus, node.gpus // gpus) if gpus else node.cpus
        for node in there.nodes
        if all(selects(wanted, node.labels.get(name, "")) for name, wanted in labels.items())
    )


def _check_seats(
    field: str, process: str, count: int, gpus: int, labels: Mapping[str, str], there: Resources
) -> None:
    """Refuse what no node has room for, or no node with these labels: Ray would wait for it."""
    seats = _seats(there, gpus, labels)
    if not there.nodes or count <= seats:
        return
    on = f" on nodes with {', '.join(f'{k}: {v}' for k, v in labels.items())}" if labels else ""
    raise ClusterError(
        f"{field}: {count} {process}(s), each of 1 CPU and {gpus} GPU(s) of one node{on}: the "
        f"nodes of {there.source} hold {seats}; lower their number or teacher.gpus_per_replica, "
        "correct the labels, or add nodes"
    )


def _visible_gpus(devices: Path) -> int:
    """Count NVIDIA's device files, at most as many as CUDA_VISIBLE_DEVICES names."""
    count = sum(path.name[6:].isdigit() for path in devices.glob("nvidia*"))
    named = 0
    for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0," * count).split(","):
        if not name.strip() or name.strip() == "-1":
            break
        named += 1
    return min(count, named)


def fit_plan(config: Config, shards: int | None, there: Resources) -> ResourcePlan:
    """Fit teacher actors and training workers to what is there; `shards` to forward, where known.

    Raises ClusterError, with the arithmetic, for what could never run.
    """
    at_once = config.targets.delivery == "streamed"
    spans = config.teacher.gpus_per_replica if there.gpus else 0
    teachers, trainers = config.cluster.teacher_labels, config.cluster.training_labels
    training_seats = min(there.gpus or there.cpus, _seats(there, min(1, there.gpus), trainers))
    least_workers, workers = _range(config.training.workers, training_seats)
    if config.training.workers == "auto":
        workers = max(training_seats, int(bool(trainers))) if there.gpus > 1 else 0
        if at_once and workers:
            workers = max(1, there.gpus // STREAM_SHARE)
        least_workers = workers
    beside = workers if at_once else 0
    threads = config.cluster.threads or MAX_THREADS
    room = (there.gpus - beside) // spans if spans else there.logical_cpus - READER_CPUS - beside
    room = min(room, _seats(there, spans, teachers))
    least, replicas = _range(config.teacher.replicas, room)
    if config.teacher.replicas == "auto":
        wanted = room if spans else there.cpus // threads - beside
        replicas = max(1, beside, min(wanted, there.logical_cpus - READER_CPUS - beside))
        least = 1 if there.grows else replicas  # the first actors need not wait for the last node
    if at_once:
        _check_stream(replicas, spans, workers, there)
        least = replicas
    else:
        _check("teacher.replicas", "actor", least, spans, READER_CPUS, there)
        _check("training.workers", "worker", least_workers, min(1, there.gpus), 0, there)
        replicas = max(1, min(replicas, replicas if shards is None else shards))

    _check_seats("teacher.replicas", "actor", max(1, least), spans, teachers, there)
    gpus = min(1, there.gpus)
    _check_seats("training.workers", "worker", least_workers, gpus, trainers, there)

    def threads_of(processes: int) -> int:
        shared_out = max(1, there.cpus // max(1, processes))
        return config.cluster.threads or min(MAX_THREADS, shared_out)

    together = replicas + max(1, workers)  # at work at once, where they are
    return ResourcePlan(
        replicas=replicas,
        cpus_per_replica=1,
        gpus_per_replica=spans,
        threads_per_replica=threads_of(together if at_once else replicas),
        workers=workers,
        cpus_per_worker=1,
        gpus_per_worker=min(1, there.gpus),
        threads_per_worker=threads_of(together if at_once else workers),
        reader_cpus=READER_CPUS,
        available=there,
        least_replicas=min(least, replicas),
        least_workers=least_workers,
        replica_labels=teachers,
        worker_labels=trainers,
    )


def _range(count: Count, room: int) -> tuple[int, int]:
    """Least and most processes; the most of a range is what there is room for."""
    if isinstance(count, list):
        return count[0], max(count[0], min(count[1], room))
    return (0, 0) if count == "auto" else (count, count)


def pool_plan(there: Resources, replicas: int, shards: int) -> ResourcePlan:
    """Fit a pool of predicting actors, nothing else. Raises ClusterError with the arithmetic."""
    _check("--replicas", "actor", replicas, min(1, there.gpus), READER_CPUS, there)
    replicas = max(1, min(replicas, shards))
    return ResourcePlan(
        replicas=replicas,
        cpus_per_replica=1,
        gpus_per_replica=min(1, there.gpus),
        threads_per_replica=min(MAX_THREADS, max(1, there.cpus // replicas)),
        workers=0,
        cpus_per_worker=0,
        gpus_per_worker=0,
        threads_per_worker=0,
        reader_cpus=READER_CPUS,
        available=there,
    )


def _check_stream(replicas: int, spans: int, workers: int, there: Resources) -> None:
    """Refuse actors and workers that do not fit side by side, and a worker without an actor."""
    way_out = f"({there.source}); lower one, or set targets.delivery: stored"
    both = f"targets.delivery: streamed: {replicas} actors + {workers} workers at once"
    if replicas < workers:
        raise ClusterError(
            f"{both}: each worker needs a teacher actor of its own; raise teacher.replicas or "
            "lower training.workers"
        )
    if workers and 0 < there.gpus < (gpus := replicas * spans + workers):
        raise ClusterError(f"{both} = {gpus} GPUs, there are {there.gpus} {way_out}")
    if max(replicas + workers, replicas + READER_CPUS) > there.logical_cpus:
        raise ClusterError(
            f"{both} = {replicas + max(workers, READER_CPUS)} CPUs, there are "
            f"{there.logical_cpus} {way_out}"
        )


def _check(
    field: str, process: str, count: int, gpus: int, reader_cpus: int, there: Resources
) -> None:
    """Refuse more processes than there are GPUs, where there are any, or CPUs."""
    way_out = f"({there.source}); lower {field} or raise what can be given (section `cluster`)"
    if there.gpus < count * gpus:
        of_each = f"{gpus} GPU{'s' * (gpus > 1)}"
        raise ClusterError(
            f"{field}: {count} {process}s x {of_each} = {count * gpus} GPUs, there are "
            f"{there.gpus} {way_out}"
        )
    if count and count + reader_cpus > there.logical_cpus:
        reading = f" + {reader_cpus} to read = {count + reader_cpus}" if reader_cpus else ""
        raise ClusterError(
            f"{field}: {count} {process}s x 1 CPU = {count}{reading} CPUs, "
            f"there are {there.logical_cpus} {way_out}"
        )
