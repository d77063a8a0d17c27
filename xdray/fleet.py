"""Nodes of a cluster that is planned for, and where actors and workers would sit. No Ray."""

import dataclasses
import re
from collections.abc import Sequence

from xdray.errors import ClusterError
from xdray.resources import ResourcePlan, Resources, selects

CPUS_PER_GPU = 8  # of a node with GPUs, where nothing is said
TYPE_LABEL = "ray.io/accelerator-type"
_TERM = re.compile(r"(\d+)x(?:(\d+)x?([A-Za-z][\w-]*?))(?:x(\d+)cpu)?")


@dataclasses.dataclass(frozen=True)
class Nodes:
    """Like nodes."""

    count: int
    cpus: int
    gpus: int
    type: str
    """Of the GPUs, as Ray names accelerators: H100, A100, L4; empty without."""

    def shown(self) -> str:
        """As a person reads it."""
        gpus = f"{self.gpus} {self.type}, " if self.gpus else ""
        return f"{self.count} x ({gpus}{self.cpus} CPUs)"


def read_fleet(text: str) -> list[Nodes]:
    """Read "4x8xH100+16x32cpu": 4 nodes of 8 H100, 16 nodes of 32 CPUs.

    "4x8xH100x96cpu" says the CPUs of a node with GPUs, else 8 a GPU. Raises ClusterError.
    """
    found = []
    for term in text.replace(" ", "").split("+"):
        match = _TERM.fullmatch(term)
        if match is None or "0" in match.groups()[:2]:
            raise ClusterError(
                f"--cluster: {term!r} in {text!r}, expected NODESxGPUSxTYPE[xCPUScpu] or "
                "NODESxCPUScpu, joined by +, such as 4x8xH100+16x32cpu"
            )
        count, number, kind, cpus = match.groups()
        if kind.lower() == "cpu":
            found.append(Nodes(int(count), int(number), 0, ""))
        else:
            found.append(
                Nodes(int(count), int(cpus or CPUS_PER_GPU * int(number)), int(number), kind)
            )
    return found


def resources_of(fleet: Sequence[Nodes]) -> Resources:
    """All that the nodes have together."""
    cpus, gpus = (sum(n.count * getattr(n, name) for n in fleet) for name in ("cpus", "gpus"))
    return Resources(cpus, gpus, "--cluster", grows=True)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Like processes of a plan, of one CPU each, and the nodes that they may use."""

    process: str
    most: int
    least: int
    gpus: int
    selector: str | None
    """Of the accelerator type; None: any node."""


def seats(fleet: Sequence[Nodes], plan: ResourcePlan, at_once: bool) -> list[dict[str, str]]:
    """For each kind of node how many teacher actors and training workers sit on it.

    at_once: actors and workers side by side, as a stream has them; else one after the other. Of a
    range as many are seated as find room. Raises ClusterError where the nodes that the accelerator
    type's labels leave have no room for the least; other labels are taken as met.
    """
    worker = _Asked(
        "worker",
        plan.workers,
        plan.least_workers or plan.workers,
        plan.gpus_per_worker,
        plan.worker_labels.get(TYPE_LABEL),
    )
    actor = _Asked(
        "actor",
        plan.replicas,
        plan.least_replicas or plan.replicas,
        plan.gpus_per_replica,
        plan.replica_labels.get(TYPE_LABEL),
    )
    free = [[(nodes.cpus, nodes.gpus)] * nodes.count for nodes in fleet]
    workers = _sit(fleet, free, worker)
    if not at_once:
        free = [[(nodes.cpus, nodes.gpus)] * nodes.count for nodes in fleet]
    actors = _sit(fleet, free, actor)
    return [
        {"nodes": n.shown(), "teacher actors": str(a), "training workers": str(w)}
        for n, a, w in zip(fleet, actors, workers, strict=True)
    ]


def unseen_labels(plan: ResourcePlan) -> list[str]:
    """Names of labels that are asked for, and of which --cluster says nothing."""
    return sorted({*plan.replica_labels, *plan.worker_labels} - {TYPE_LABEL})


def _sit(fleet: Sequence[Nodes], free: list[list[tuple[int, int]]], asked: _Asked) -> list[int]:
    """Seat processes node after node, taking from what is free; how many on each kind."""
    seated, count = [0] * len(fleet), asked.most
    # nodes without GPUs first for those that need none: the others stay free
    for kind in sorted(range(len(fleet)), key=lambda k: fleet[k].gpus if not asked.gpus else 0):
        if asked.selector is not None and not selects(asked.selector, fleet[kind].type):
            continue
        for node, (cpus_left, gpus_left) in enumerate(free[kind]):
            room = gpus_left // asked.gpus if asked.gpus else cpus_left
            here = min(count, cpus_left, room)
            free[kind][node] = (cpus_left - here, gpus_left - here * asked.gpus)
            seated[kind] += here
            count -= here
    if sum(seated) < asked.least:
        where = f"nodes with {TYPE_LABEL} {asked.selector}" if asked.selector else "the nodes"
        raise ClusterError(
            f"--cluster: {count} {asked.process}(s) of 1 CPU and {asked.gpus} GPU(s) find no room "
            f"on {where}; lower their number or teacher.gpus_per_replica, or add nodes"
        )
    return seated
