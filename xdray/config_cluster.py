"""Section `cluster` of the config, and numbers of processes that may be a range."""

from typing import Literal

from pydantic import Field

from xdray.config_data import Section

Count = int | Literal["auto"] | list[int]
"""Of processes: a number, auto, or [least, most] where nodes come and go."""


class ClusterConfig(Section):
    """The machines."""

    num_cpus: int | None = Field(default=None, gt=0)
    """CPUs of a local Ray; null: those of the machine. Not used where RAY_ADDRESS is set."""
    num_gpus: int | None = Field(default=None, ge=0)
    """GPUs of a local Ray; null: those of the machine."""
    threads: int | None = Field(default=None, gt=0)
    """Threads of each forward or training process on CPUs; null: the CPUs shared out."""
    object_store_gib: float = Field(default=0.5, gt=0)
    """Ray's shared memory on a local Ray. Receipts travel through it, tensors only of a stream."""
    max_resources: dict[str, float] | None = None
    """What an autoscaling cluster can grow to, e.g. {CPU: 512, GPU: 64}; null: what is there."""
    fleet: str | None = None
    """Nodes of a cluster that is not there, to plan for (`--plan --cluster 4x8xH100+16x32cpu`)."""
    teacher_labels: dict[str, str] = Field(default={})
    """Labels of the nodes for teacher actors, as Ray's label selectors say them:
    {ray.io/accelerator-type: H100, ray.io/market-type: spot}. {}: any node."""
    training_labels: dict[str, str] = Field(default={})
    """The same for training workers: {ray.io/market-type: "!spot"} keeps them on steady nodes."""


def check_count(field: str, value: Count, least: int) -> None:
    """Raise ValueError for less than `least`, and for what is no range."""
    expected = f"expected 'auto', {least} and more, or [least, most]"
    if isinstance(value, list):
        if len(value) != 2 or not 1 <= value[0] <= value[1]:
            raise ValueError(f"{field} is {value}, {expected} with 1 <= least <= most")
    elif value != "auto" and value < least:
        raise ValueError(f"{field} is {value}, {expected}")
