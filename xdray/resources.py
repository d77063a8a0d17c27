"""The resource plan: how a run uses the CPUs and GPUs that can be given. Arithmetic, no Ray.

An actor or worker reserves one CPU, or one CPU and one GPU, and computes on as many threads as it
is given: on two cores two reserved CPUs would leave Ray Data none to read with. What could never
run is refused here with the arithmetic, since Ray would wait for it for ever.
"""

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

from xdray.config import ClusterConfig, Config
from xdray.errors import ClusterError

MAX_THREADS = 8  # past this a forward pass on CPUs gains less than another replica does
STREAM_SHARE = 8  # GPUs for one that trains a student, where a teacher feeds it meanwhile
READER_CPUS = 1  # actors hold their CPUs; with none left Ray Data waits for ever
THIS_MACHINE = "this machine"


@dataclasses.dataclass(frozen=True)
class Resources:
    """What can be given; `source` says who says so."""

    cpus: int
    gpus: int
    source: str

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

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the report."""
        return dataclasses.asdict(self)


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
    replicas, workers = config.teacher.replicas, config.training.workers
    at_once = config.targets.delivery == "streamed"
    if workers == "auto":
        workers = there.gpus if there.gpus > 1 else 0
        if at_once and workers:
            workers = max(1, there.gpus // STREAM_SHARE)
    beside = workers if at_once else 0
    if replicas == "auto":
        threads = config.cluster.threads or MAX_THREADS
        wanted = there.gpus - beside if there.gpus else there.cpus // threads - beside
        replicas = max(1, beside, min(wanted, there.logical_cpus - READER_CPUS - beside))
    if at_once:
        _check_stream(replicas, workers, there)
    else:
        _check("teacher.replicas", "actor", replicas, READER_CPUS, there)
        _check("training.workers", "worker", workers, 0, there)
        replicas = max(1, min(replicas, replicas if shards is None else shards))

    def threads_of(processes: int) -> int:
        shared_out = max(1, there.cpus // max(1, processes))
        return config.cluster.threads or min(MAX_THREADS, shared_out)

    together = replicas + max(1, workers)  # at work at once, where they are
    return ResourcePlan(
        replicas=replicas,
        cpus_per_replica=1,
        gpus_per_replica=min(1, there.gpus),
        threads_per_replica=threads_of(together if at_once else replicas),
        workers=workers,
        cpus_per_worker=1,
        gpus_per_worker=min(1, there.gpus),
        threads_per_worker=threads_of(together if at_once else workers),
        reader_cpus=READER_CPUS,
        available=there,
    )


def pool_plan(there: Resources, replicas: int, shards: int) -> ResourcePlan:
    """Fit a pool of predicting actors, nothing else. Raises ClusterError with the arithmetic."""
    _check("--replicas", "actor", replicas, READER_CPUS, there)
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


def _check_stream(replicas: int, workers: int, there: Resources) -> None:
    """Refuse actors and workers that do not fit side by side, and a worker without an actor."""
    way_out = f"({there.source}); lower one, or set targets.delivery: stored"
    both = f"targets.delivery: streamed: {replicas} actors + {workers} workers at once"
    if replicas < workers:
        raise ClusterError(
            f"{both}: each worker needs a teacher actor of its own; raise teacher.replicas or "
            "lower training.workers"
        )
    if workers and 0 < there.gpus < replicas + workers:
        raise ClusterError(f"{both} = {replicas + workers} GPUs, there are {there.gpus} {way_out}")
    if max(replicas + workers, replicas + READER_CPUS) > there.logical_cpus:
        raise ClusterError(
            f"{both} = {replicas + max(workers, READER_CPUS)} CPUs, there are "
            f"{there.logical_cpus} {way_out}"
        )


def _check(field: str, process: str, count: int, reader_cpus: int, there: Resources) -> None:
    """Refuse more processes than there are GPUs, where there are any, or CPUs."""
    way_out = f"({there.source}); lower {field} or raise what can be given (section `cluster`)"
    if 0 < there.gpus < count:
        raise ClusterError(
            f"{field}: {count} {process}s x 1 GPU = {count} GPUs, there are {there.gpus} {way_out}"
        )
    if count and count + reader_cpus > there.logical_cpus:
        reading = f" + {reader_cpus} to read = {count + reader_cpus}" if reader_cpus else ""
        raise ClusterError(
            f"{field}: {count} {process}s x 1 CPU = {count}{reading} CPUs, "
            f"there are {there.logical_cpus} {way_out}"
        )
