"""A run folder at a URI: worked on in a copy on this machine's disk, which is sent there.

At the URI is what a later call on any machine goes on from. The process that runs a job holds the
copy alone, and takes at its start what is there in place of what was left on this machine. Workers
on other machines fetch the copy under the same path, and send what they made. What Ray Train keeps
lies at the URI itself (`RAY_FOLDER`) and is never copied.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from xdray.errors import ClusterError, ConfigError
from xdray.storage import (
    delete_tree,
    exists,
    file_facts,
    file_sizes,
    fingerprint,
    join,
    local_path,
    open_input,
    write_bytes_atomic,
)

RAY_FOLDER = "ray"
"""Name of folders that Ray Train reads and writes at the URI."""
CONFIG = "config.yaml"
"""In every run folder."""
STATE = ".mirror.json"
"""Which files are equal on both sides: name to [bytes, ns of the local file's last change]."""
LAST = ("stage.json", "trial.json", "teacher.json", "report.json", "search.json")
"""Files that say that others are whole: sent after them, in this order."""


@dataclass(frozen=True)
class Mirror:
    """A folder at a URI and its copy on this machine. Picklable."""

    uri: str
    folder: str
    """Of the copy: the same path on all machines."""
    token: str
    """Of this call of a job: copies that were made for another one are stale."""

    def __str__(self) -> str:
        """As people know it."""
        return self.uri

    def send(self, *names: str) -> None:
        """Send what has changed in the copy, or below one of its folders, and delete what is gone.

        Raises ClusterError where it cannot be written.
        """
        below = _below(names)
        here = self._here(*names)
        state = self._state()
        for name in sorted(here, key=_sending_order):
            if state.get(name) != here[name]:
                _copy_out(Path(self.folder, name), join(self.uri, name))
                self._keep({**self._state(), name: here[name]})
        gone = [name for name in state if name.startswith(below) and name not in here]
        for name in sorted(gone, key=_sending_order, reverse=True):
            delete_tree(join(self.uri, name))
            self._keep({k: v for k, v in self._state().items() if k != name})

    def fetch(self, *names: str) -> None:
        """Make the copy, or one of its folders, what is at the URI."""
        folder, root = Path(self.folder, *names), Path(self.folder)
        if root.is_dir():  # first: what is emptied here is not to be deleted there
            others = {k: v for k, v in self._state().items() if not k.startswith(_below(names))}
            self._keep(others)
        for entry in list(folder.iterdir()) if folder.is_dir() else ():
            if entry.name != STATE:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for name in file_sizes(join(self.uri, *names)):
            if not _stays(name):
                _copy_in(join(self.uri, *names, name), folder / name)
        self._keep(self._state() | self._here(*names))

    def enter(self) -> None:
        """Have the copy on this machine too, for a worker; on the job's own it is there already."""
        copy = Path(self.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{copy}.fetching").open("w") as lock:  # one worker of a machine fetches
            fcntl.flock(lock, fcntl.LOCK_EX)
            token = Path(f"{copy}.token")
            if not token.is_file() or token.read_text() != self.token:
                self.fetch()
                token.write_text(self.token)
            else:  # stages that rank 0 has finished elsewhere before all ranks started again
                for name in file_sizes(self.uri):
                    if not _stays(name) and not (copy / name).exists():
                        _copy_in(join(self.uri, name), copy / name)

    def renew(self) -> "Mirror":
        """Send all, and return the mirror for workers that start now: older copies are stale."""
        self.send()
        renewed = replace(self, token=uuid.uuid4().hex)
        Path(f"{self.folder}.token").write_text(renewed.token)
        return renewed

    def _here(self, *names: str) -> dict[str, list[int]]:
        root, found = Path(self.folder), {}
        for path in root.joinpath(*names).rglob("*"):
            name = str(path.relative_to(root))
            with contextlib.suppress(FileNotFoundError):  # another trial's, renamed meanwhile
                if path.is_file() and not _stays(name):
                    facts = path.stat()
                    found[name] = [facts.st_size, facts.st_mtime_ns]
        return found

    def _state(self) -> dict[str, list[int]]:
        path = Path(self.folder, STATE)
        try:
            found = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError:  # cut off by a loss of power: all is fetched, or sent, again
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self, state: dict[str, Any]) -> None:
        path = Path(self.folder, STATE)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # several trials send at once
        partial.write_text(json.dumps(state))
        partial.replace(path)


@contextlib.contextmanager
def working_folder(folder: str) -> Iterator[tuple[Path, Mirror | None]]:
    """The local folder to work in, and its mirror where `folder` is at a URI, sent on leaving.

    Raises ConfigError where another process of this machine works on the same URI, and where there
    are files of no run; ClusterError where a storage hides what it holds.
    """
    if (path := local_path(folder)) is not None:
        yield path, None
        return
    copy = _copies() / fingerprint(folder.rstrip("/"))
    copy.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{copy}.lock").open("w") as lock:
        take_alone(lock, folder)
        _check_listing(folder)
        mirror = Mirror(folder, str(copy), uuid.uuid4().hex)
        mirror.fetch()
        try:
            yield copy, mirror
        finally:
            mirror.send()


def fetched(uri: str) -> Path:
    """Local copy of a folder at a URI, such as a model: fetched once a machine, read only.

    Raises ConfigError where there is none.
    """
    there = file_facts(uri)
    if not there:
        raise ConfigError(f"{uri}: no such folder, expected a model's")
    copy = _copies() / "fetched" / fingerprint([uri, there])
    copy.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{copy}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.is_dir():
            partial = copy.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            for name in there:
                _copy_in(join(uri, name), partial / name)
            partial.rename(copy)
    return copy


def _copies() -> Path:
    """Folder of this user's copies, which nobody else may have made or may write to."""
    folder = Path(tempfile.gettempdir(), f"xdray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o022:
        raise ClusterError(
            f"{folder}: not a folder that only this user writes to, expected one for copies of "
            "what lies at URIs; remove it, or set TMPDIR"
        )
    return folder


def _check_listing(uri: str) -> None:
    """Before all of it is fetched: is it a run's, and does its listing show what is there?"""
    listed, there = file_sizes(uri), exists(join(uri, CONFIG))
    if listed and not there:
        raise ConfigError(
            f"run.folder: {uri} has files but no {CONFIG}, so it is no run folder; name another "
            "folder, or empty this one"
        )
    if there and CONFIG not in listed:  # fsspec hides a listing that failed
        raise ClusterError(
            f"run.folder: {uri} lists no files though {CONFIG} is there; run the same command "
            "again when the storage answers"
        )


def take_alone(lock: IO[str], folder: str) -> None:
    """Hold a run folder's lock as long as the file is open. Raises ConfigError where another does.

    A file system without locks goes unlocked.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"run.folder: {folder} is being worked on by another process; wait for it, or name "
            "another folder"
        ) from error
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
            raise


def _copy_out(path: Path, uri: str) -> None:
    """Write a local file's bytes to `uri`, atomically. Raises ClusterError as that does."""
    import pyarrow as pa

    if not path.stat().st_size:  # which cannot be mapped
        return write_bytes_atomic(uri, b"")
    with pa.memory_map(str(path)) as source:
        return write_bytes_atomic(uri, source.read_buffer())


def _copy_in(uri: str, path: Path) -> None:
    """Write the bytes at `uri` into a local file, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open_input(uri) as source, partial.open("wb") as sink:
            for block in iter(functools.partial(source.read, 1 << 20), b""):
                sink.write(block)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _below(names: tuple[str, ...]) -> str:
    return "".join(f"{name}/" for name in names)


def _stays(name: str) -> bool:
    """Whether a file is of one side only: Ray's, unfinished, or the mirror's own."""
    names = name.split("/")
    unfinished = any(its.startswith(".") or its.endswith(".partial") for its in names)
    return unfinished or RAY_FOLDER in names


def _sending_order(name: str) -> tuple[int, str]:
    base = name.rpartition("/")[2]
    return (LAST.index(base) + 1 if base in LAST else 0), name
