"""What a training loop knows of the process that runs it: its rank, its device, its checkpoints.

`LocalSession` is the one without Ray; `cluster.fit_on_workers` hands out the other.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xdray.storage import to_disk
from xdray.watching import Meters

if TYPE_CHECKING:  # imported where there are several ranks
    from torch import Tensor

DRAFT = "checkpoint.partial"


class Session(Protocol):
    """What a training loop needs, with and without Ray."""

    @property
    def rank(self) -> int:
        """Of this process among all, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def device(self) -> str:
        """As torch names it: cpu, cuda:0."""
        ...

    @property
    def run_folder(self) -> str:
        """Where the run is kept: a folder or a URI; empty if nowhere."""
        ...

    @property
    def meters(self) -> Meters:
        """Of this process; silent without Ray."""
        ...

    def all_sum(self, values: "Tensor") -> None:
        """Put the sum over all ranks in the place of each rank's values, which wait for it."""
        ...

    def latest_checkpoint(self) -> str | None:
        """Return a local folder that holds what was last saved, whole, or None.

        To be read before the next `save`, which may delete it.
        """
        ...

    def save(self, write: Callable[[Path], object], metrics: dict[str, Any]) -> None:
        """Keep what `write` puts into the folder it is given, all of it or nothing.

        Every rank calls this, and all wait for each other; only rank 0 writes. `metrics` go into
        Ray's records, where there is Ray.
        """
        ...


def rank_0_says(session: Session, yes: bool) -> bool:
    """Whether rank 0 says yes; each rank waits for the others."""
    import torch

    flag = torch.tensor([float(yes and session.rank == 0)], device=session.device)
    session.all_sum(flag)
    return flag.item() > 0


class LocalSession:
    """The only rank of a run in this process; checkpoints are folders beside each other."""

    def __init__(
        self, folder: Path | None, device: str | None = None, meters: Meters | None = None
    ) -> None:
        """Without a folder nothing can be saved; without a device, a GPU where torch sees one."""
        if device is None:
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rank, self.world_size, self.device = 0, 1, device
        self.meters = meters or Meters()
        self.run_folder = "" if folder is None else str(folder)

    def all_sum(self, values: "Tensor") -> None:
        """Leave the values as they are."""

    def latest_checkpoint(self) -> str | None:
        """Return the folder of the last finished checkpoint, or None."""
        if self.run_folder:  # what a killed run was writing
            shutil.rmtree(Path(self.run_folder) / DRAFT, ignore_errors=True)
        finished = self._finished()
        return str(finished[-1]) if finished else None

    def save(self, write: Callable[[Path], object], metrics: dict[str, Any]) -> None:
        """Keep a checkpoint: it gets its name when it is on the disk, then older ones go."""
        del metrics
        assert self.run_folder, "a session without a folder cannot save"
        draft, old = Path(self.run_folder) / DRAFT, self._finished()
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        draft.mkdir(parents=True)
        write(draft)
        for path in (*draft.rglob("*"), draft):
            to_disk(path)
        number = int(old[-1].name.removeprefix("checkpoint-")) + 1 if old else 1
        draft.rename(draft.with_name(f"checkpoint-{number:08}"))
        to_disk(draft.parent)
        for folder in old:
            shutil.rmtree(folder)

    def _finished(self) -> list[Path]:
        """Finished checkpoints, the newest last."""
        return sorted(Path(self.run_folder).glob("checkpoint-*")) if self.run_folder else []


@dataclasses.dataclass(frozen=True)
class RaySession:
    """The session of one Ray Train worker."""

    rank: int
    world_size: int
    device: str
    run_folder: str
    train: Any
    """The module ray.train, handed in."""
    open_folders: contextlib.ExitStack
    """Closed when the worker ends; holds downloaded checkpoints."""
    meters: Meters

    def all_sum(self, values: "Tensor") -> None:
        """Sum over all ranks in the process group that Ray Train made."""
        if self.world_size > 1:
            from torch import distributed

            distributed.all_reduce(values)

    def latest_checkpoint(self) -> str | None:
        """Return the last checkpoint that Ray Train recorded; downloaded where it is remote."""
        if self.rank == 0:  # what a killed worker of this run was writing on this machine
            for draft in Path(tempfile.gettempdir()).glob(f"{draft_name(self.run_folder)}*"):
                shutil.rmtree(draft, ignore_errors=True)
        checkpoint = self.train.get_checkpoint()
        if checkpoint is None:
            return None
        return self.open_folders.enter_context(checkpoint.as_directory())

    def save(self, write: Callable[[Path], object], metrics: dict[str, Any]) -> None:
        """Hand a checkpoint to Ray Train, which copies it to the storage before this returns."""
        if self.rank > 0:
            self.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix=draft_name(self.run_folder)) as folder:
            write(Path(folder))
            self.train.report(metrics, checkpoint=self.train.Checkpoint.from_directory(folder))


def draft_name(run_folder: str) -> str:
    """How the names of the temporary folders begin where a run's checkpoints are written."""
    return f"xdray-checkpoint-{hashlib.blake2b(run_folder.encode(), digest_size=8).hexdigest()}-"
