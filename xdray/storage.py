"""Files at any place that pyarrow.fs reaches: local folders, NFS, s3://, gs://, fsspec+PROTOCOL://.

A path without "scheme://" is local, taken from where the process runs. A file under its final name
is whole: local writes go to a temporary name in the same folder, fsync, rename, fsync of the
folder; object stores, which show an object only once it is whole, get one put. Temporary files are
named ".NAME.N.tmp", never listed, and removed by the next writer of NAME.
"""

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from xdray.errors import ClusterError, XdrayError
from xdray.remote import FULL, RemoteFile, delete, file_info, file_system, folder_infos, put
from xdray.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

LITTLE = 1 << 20
"""Bytes free of a disk that counts as full where a write failed and nobody says why."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_path(uri: str) -> Path | None:
    """Return the local path that `uri` names, None where it is on another file system.

    The options of a file:// URI mean nothing.
    """
    if uri.startswith("file://"):
        return Path(unquote(uri.removeprefix("file://").partition("?")[0]))
    return None if _SCHEME.match(uri) else Path(uri)


def absolute(uri: str) -> str:
    """Return the same place for processes that run elsewhere: a local path made absolute."""
    return uri if _SCHEME.match(uri) else str(Path(uri).absolute())


def join(uri: str, *names: str) -> str:
    """Put names under a folder; the options of a URI ("?region=...") stay at its end."""
    if not _SCHEME.match(uri):
        return str(Path(uri, *names))
    place, mark, options = uri.partition("?")
    return "/".join([place.rstrip("/"), *names]) + mark + options


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    if (path := local_path(uri)) is not None:
        return path.exists()
    info = file_info(uri)
    return info.is_file or info.type.name == "Directory"


def list_folder(uri: str) -> list[str]:
    """Names of the files and folders directly in a folder, sorted; [] where there is none."""
    if (path := local_path(uri)) is not None:
        names = (entry.name for entry in path.iterdir()) if path.is_dir() else ()
        return sorted(name for name in names if not is_temporary(name))
    return sorted(info.base_name for info in folder_infos(uri, recursive=False))


def file_sizes(uri: str) -> dict[str, int]:
    """Bytes of each file below a folder, by its name relative to the folder; {} if there is none.

    Takes one pass; on object stores one request for about a thousand files.
    """
    return {name: size for name, (size, _) in file_facts(uri).items()}


def file_facts(uri: str) -> dict[str, tuple[int, int | None]]:
    """As `file_sizes`: bytes, and ns of the last change where the place tells."""
    if (path := local_path(uri)) is not None:
        files = (entry for entry in path.rglob("*") if entry.is_file())
        stats = {str(file.relative_to(path)): file.stat() for file in files}
        return {
            name: (stats[name].st_size, stats[name].st_mtime_ns)
            for name in sorted(stats)
            if not is_temporary(name)
        }
    start = len(file_system(uri)[1].rstrip("/")) + 1
    infos = folder_infos(uri, recursive=True)
    files = sorted((info for info in infos if info.is_file), key=lambda info: info.path)
    found = {info.path[start:]: (info.size, info.mtime_ns) for info in files}
    for name in found:  # whoever names an object so would have it written elsewhere
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ClusterError(
                f"{uri}: holds an object {name!r:.200}, expected names below the folder; delete it"
            )
    return found


def is_temporary(name: str) -> bool:
    """Whether a file is the unfinished work of a writer, dead or alive."""
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(".tmp")


def read_bytes(uri: str) -> bytes:
    """Return a whole file. Raises OSError, FileNotFoundError where there is none."""
    if (path := local_path(uri)) is not None:
        return path.read_bytes()
    with open_input(uri) as source:
        return source.read()


def open_input(uri: str) -> "pa.NativeFile":
    """Open for random access: a memory map where local. Raises OSError, of remote ClusterError."""
    import pyarrow as pa

    if (path := local_path(uri)) is not None:
        return pa.memory_map(str(path))
    return pa.PythonFile(RemoteFile(uri), mode="r")


def write_bytes_atomic(uri: str, data: "bytes | memoryview | pa.Buffer") -> None:
    """Write a whole file, so that whoever opens `uri` finds the old bytes or all of the new.

    Makes the folders above it. Raises ClusterError where the disk is full or refuses.
    """
    view = memoryview(data).cast("B")
    with _written(uri, view.nbytes):
        if (path := local_path(uri)) is None:
            put(uri, view)
        else:
            _replace(path, lambda file: file.write(view))


def write_atomic(uri: str, write: Callable[[BinaryIO], object], needed: int) -> int:
    """Let `write` fill a whole file, as `write_bytes_atomic` writes one; returns its bytes.

    needed: bytes, about, as the error names them. Only for an object store they are in memory.
    """
    with _written(uri, needed):
        if (path := local_path(uri)) is not None:
            return _replace(path, write)
        sink = io.BytesIO()
        write(sink)
        put(uri, sink.getbuffer())
        return sink.tell()


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_bytes_atomic(uri, json.dumps(value, indent=1, ensure_ascii=False).encode())


def read_json(uri: str) -> Any:
    """Read what `write_json` wrote. Raises FileNotFoundError; XdrayError where it is not JSON."""
    try:
        return parse_json(read_bytes(uri))
    except ValueError as error:
        raise XdrayError(
            f"{uri}: damaged, not JSON ({error}); delete it and run the same command again"
        ) from error


Kind = type | tuple[type, ...]
NUMBER: Kind = (int, float)


def read_object(uri: str, **kinds: Kind) -> dict[str, Any]:
    """Read an object with these keys, their values of these kinds, as `read_json` does.

    Raises XdrayError for another.
    """
    found = read_json(uri)
    its = found if isinstance(found, dict) else {}
    wrong = [name for name, kind in kinds.items() if not _is_of(its.get(name), kind)]
    if wrong or not isinstance(found, dict):
        what = f"an object with {', '.join(kinds)}" if kinds else "an object"
        of_kind = f" ({wrong[0]} is missing or of another kind)" if wrong else ""
        raise XdrayError(
            f"{uri}: damaged, holds {found!r:.60}, expected {what}{of_kind}; delete it and run the "
            "same command again"
        )
    return found


def _is_of(value: Any, kind: Kind) -> bool:
    """Whether a value of JSON is of a kind; true is no number, neither is what is not finite."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, kind)


def delete_tree(uri: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing there is no error."""
    path = local_path(uri)
    if path is None:
        if exists(uri):
            delete(uri)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(uri: str) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is nothing."""
    if (path := local_path(uri)) is not None:
        return path.stat().st_size if path.is_file() else sum(file_sizes(uri).values())
    info = file_info(uri)
    return int(info.size) if info.is_file else sum(file_sizes(uri).values())


def free_space(uri: str) -> int | None:
    """Bytes free where `uri` is or would be written; None on object stores, which have no bound."""
    path = local_path(uri)
    if path is None:
        return None
    path = path.absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def fingerprint(value: Any) -> str:
    """32 hex characters that name a JSON value: the hash of its canonical form, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint_files(folder: str, names: Iterable[str]) -> str:
    """32 hex characters that name the contents of some files of a folder, whatever their order."""
    contents = {}
    for name in names:
        with open_input(join(folder, name)) as source:
            digest = hashlib.blake2b(digest_size=16)
            for block in iter(_reader(source), b""):
                digest.update(block)
            contents[name] = digest.hexdigest()
    return fingerprint(contents)


def _reader(source: "pa.NativeFile") -> Callable[[], bytes]:
    return lambda: source.read(1 << 20)


def system_of(uri: str) -> "tuple[FileSystem, str]":
    """File system of a place, local or not, and the path on it."""
    if (path := local_path(uri)) is None:
        return file_system(uri)
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), str(path.resolve())


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> int:
    """Write beside `path`, then rename onto it; returns the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = (path.with_name(f".{path.name}.{slot}.tmp") for slot in itertools.count())
    temporary, descriptor = _first_free(names)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            write(file)
            written = file.tell()
        os.ftruncate(descriptor, written)  # a dead writer may have left more
        os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    for stray in itertools.takewhile(Path.exists, names):
        if (other := _claim(stray)) is not None:
            stray.unlink()
            os.close(other)
    to_disk(path.parent)
    return written


def _first_free(names: Iterator[Path]) -> tuple[Path, int]:
    for name in names:
        if (descriptor := _claim(name)) is not None:
            return name, descriptor
    raise AssertionError  # names do not end


def _claim(temporary: Path) -> int | None:
    """Open a temporary file that no living writer has, else None: the kernel frees dead locks."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a mount without locks; writers of one name write the same bytes there
            return descriptor
        try:  # its last writer may have renamed it between our two calls
            if os.path.samestat(os.fstat(descriptor), temporary.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def full_disk(uri: str, error: BaseException) -> ClusterError | None:
    """What to say where writing below a local folder failed because its disk is full, else None.

    Libraries tell it in ways of their own; torch only says that a write failed.
    """
    free = free_space(uri) or 0
    told = getattr(error, "errno", None) in FULL or "No space left on device" in str(error)
    if not told and not (isinstance(error, RuntimeError) and free < LITTLE):
        return None
    return ClusterError(
        f"{uri}: the disk is full: {free:,} bytes free; make room and run the same command again, "
        "what was finished stays"
    )


@contextlib.contextmanager
def _written(uri: str, needed: int) -> Iterator[None]:
    """Make a ClusterError of the OSError that ends writing so many bytes."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written: {error}; name a place that can be"
        if error.errno in FULL:
            reason = (
                f"the disk is full: {needed:,} bytes to write, {free_space(uri) or 0:,} free; "
                "make room and run the same command again, what was finished stays"
            )
        raise ClusterError(f"{uri}: {reason}") from error


def to_disk(path: Path) -> None:
    """Make a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
