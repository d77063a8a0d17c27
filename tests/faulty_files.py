"""A file system that fails as it is told to: faulty:///FOLDER, over local files; for fsspec.

It behaves as an object store: a file is seen whole, under its name, once it is closed. The nearest
folder above a path that holds PLAN says what is to happen there, as a list of faults:
  at     "put", "open" (to read), "read", "info" or "list"
  name   a regular expression that the path must hold
  nth    the how manieth such call is hit, from 1, over all processes
  times  how many calls in a row are hit (1)
  do     "fail" (an input/output error), "full" (no space left), and of the calling process:
         "kill-before", "kill-after", "kill-half" (half of the data under the final name)
STATE beside it counts the calls that matched and those that were hit.

Processes find it by the entry point that `install` writes into a folder of PYTHONPATH.
"""

import errno
import fcntl
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

PLAN, STATE = ".faults.json", ".faults.state"
ENTRY_POINTS = "[fsspec.specs]\nfaulty = faulty_files.FaultyFiles\n"


def install(folder: Path) -> None:
    """Make every Python that starts with `folder` on its PYTHONPATH know the file system."""
    facts = folder / "faulty-1.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    link = folder / "faulty_files.py"
    if not link.exists():
        link.symlink_to(Path(__file__).resolve())


def plan(folder: Path, faults: list[dict[str, Any]]) -> None:
    """Let these faults happen below `folder`, from now on."""
    (folder / STATE).unlink(missing_ok=True)
    (folder / PLAN).write_text(json.dumps(faults))


def hits(folder: Path) -> list[int]:
    """How often each fault of the plan has happened."""
    faults = json.loads((folder / PLAN).read_text())
    state = folder / STATE
    told = json.loads(state.read_text()) if state.exists() else []
    return [its["hit"] for its in told] or [0] * len(faults)


class FaultyFiles(AbstractFileSystem):
    """Local files, and what the plan says."""

    protocol = "faulty"
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(its) for its in path]
        return "/" + str(path).removeprefix("faulty://").strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder = Path(self._strip_protocol(path))
        _meet("list", folder)
        if not folder.exists():
            raise FileNotFoundError(path)
        entries = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        entries = [entry for entry in entries if entry.name not in (PLAN, STATE)]
        return [_info(its) for its in entries] if detail else [str(its) for its in entries]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file = Path(self._strip_protocol(path))
        _meet("info", file)
        return _info(file)

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        file = Path(self._strip_protocol(path))
        if mode == "wb":
            return _Put(file)
        _meet("open", file)
        return _Read(file)

    def rm_file(self, path: str) -> None:
        Path(self._strip_protocol(path)).unlink()

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        import shutil

        shutil.rmtree(self._strip_protocol(path))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        Path(self._strip_protocol(path)).mkdir(parents=True, exist_ok=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.mkdir(path)


class _Read(io.BytesIO):
    def __init__(self, path: Path) -> None:
        super().__init__(path.read_bytes())
        self.path = path

    def read(self, size: int | None = -1, /) -> bytes:
        _meet("read", self.path)
        return super().read(-1 if size is None else size)


class _Put(io.BytesIO):
    """Bytes that become a file when it is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def close(self) -> None:
        if self.closed:
            return
        data = self.getvalue()
        super().close()
        do = _meet("put", self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if do == "kill-half":
            self.path.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.put")
        draft.write_bytes(data)
        draft.rename(self.path)
        if do == "kill-after":
            os.kill(os.getpid(), signal.SIGKILL)


def _info(path: Path) -> dict[str, Any]:
    stat = path.stat()
    kind = "directory" if path.is_dir() else "file"
    return {"name": str(path), "size": stat.st_size, "type": kind, "mtime": stat.st_mtime}


def _meet(at: str, path: Path) -> str | None:
    """Do what the plan has for this call; what is left to the caller is returned."""
    folder = next((up for up in path.parents if (up / PLAN).exists()), None)
    if folder is None:
        return None
    do = _next(folder, at, str(path))
    if do == "fail":
        raise OSError(errno.EIO, "the storage does not answer", str(path))
    if do == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if do == "kill-before":
        os.kill(os.getpid(), signal.SIGKILL)
    return do


def _next(folder: Path, at: str, path: str) -> str | None:
    """Count this call in the state that all processes share; what happens to it."""
    faults = json.loads((folder / PLAN).read_text())
    descriptor = os.open(folder / STATE, os.O_RDWR | os.O_CREAT)
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        state = json.loads(text) if text else [{"seen": 0, "hit": 0} for _ in faults]
        do = None
        for fault, its in zip(faults, state, strict=True):
            if fault["at"] != at or not re.search(fault.get("name", ""), path):
                continue
            its["seen"] += 1
            nth = fault["nth"]
            if do is None and nth <= its["seen"] < nth + fault.get("times", 1):
                its["hit"] += 1
                do = fault["do"]
        file.seek(0)
        file.write(json.dumps(state))
        file.truncate()
        file.flush()
    return do
