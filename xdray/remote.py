"""Files that are not local, through pyarrow.fs; a storage that fails is asked again for a while.

Every call is tried for a quarter of a minute beyond what the file system itself tries; then it is a
ClusterError. What no waiting mends (a full disk, a refusal by the operating system) is not tried
again.
"""

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from xdray.errors import ClusterError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileInfo, FileSystem

FULL = {errno.ENOSPC, errno.EDQUOT}
_LASTING = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR}
PATIENCE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between tries."""

T = TypeVar("T")


def patiently(work: Callable[[], T]) -> T:
    """Return what `work` returns; it is done again after an OSError that may pass."""
    for pause in PATIENCE:
        try:
            return work()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _LASTING:
                raise
        time.sleep(pause)
    return work()


def _read_patiently(uri: str, work: Callable[[], T]) -> T:
    try:
        return patiently(work)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ClusterError(
            f"{uri}: cannot be read: {error}; run the same command again when the storage answers"
        ) from error


@cache
def _file_system(root: str) -> "tuple[FileSystem, str]":
    """Connect once to a "scheme://authority?options"; with the prefix of paths on it (a bucket)."""
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(root)
    except (OSError, ValueError, ImportError) as error:  # ArrowInvalid is a ValueError
        raise ClusterError(
            f"{root}: no file system to be had there: {error}; expected a local path or a URI that "
            "pyarrow.fs reads (s3://, gs://, abfs://, hdfs://, fsspec+PROTOCOL://)"
        ) from error


def file_system(uri: str) -> "tuple[FileSystem, str]":
    """File system of a URI that is not local, and the path on it."""
    place, mark, options = uri.partition("?")
    scheme, _, rest = place.partition("://")
    authority, _, inner = rest.partition("/")
    system, prefix = _file_system(f"{scheme}://{authority}{mark}{options}")
    return system, f"{prefix.rstrip('/')}/{unquote(inner)}"


def file_info(uri: str) -> "FileInfo":
    """What is there, if anything."""
    system, inner = file_system(uri)
    return _read_patiently(uri, lambda: system.get_file_info(inner))


def folder_infos(uri: str, recursive: bool) -> "list[FileInfo]":
    """All that is in a folder, in no order; [] where there is none.

    Through fsspec+PROTOCOL a folder that cannot be listed counts as none: fsspec hides the error.
    """
    from pyarrow.fs import FileSelector

    system, inner = file_system(uri)
    selector = FileSelector(inner, recursive=recursive, allow_not_found=True)
    return _read_patiently(uri, lambda: system.get_file_info(selector))


def put(uri: str, view: memoryview) -> None:
    """Write a whole object. Raises OSError."""
    system, inner = file_system(uri)

    def once() -> None:
        stream = system.open_output_stream(inner)
        stream.write(view)
        stream.close()  # not by `with`: that would finish a put that broke off

    patiently(once)


def delete(uri: str) -> None:
    """Delete a file or a folder that is there."""
    system, inner = file_system(uri)
    is_file = file_info(uri).is_file
    with contextlib.suppress(FileNotFoundError):  # deleted by a call whose answer was lost
        patiently(lambda: (system.delete_file if is_file else system.delete_dir)(inner))


class RemoteFile(io.RawIOBase):
    """A file to read, opened anew where its storage failed. Raises FileNotFoundError."""

    def __init__(self, uri: str) -> None:
        self._uri, self._at = uri, 0
        self._source: pa.NativeFile | None = None
        self._size = _read_patiently(uri, lambda: self._opened().size())

    def _opened(self) -> "pa.NativeFile":
        if self._source is None:
            system, inner = file_system(self._uri)
            try:
                self._source = system.open_input_file(inner)
            except FileNotFoundError:  # which fsspec makes of any failure
                if system.get_file_info(inner).is_file:
                    raise OSError(errno.EIO, "not there for a moment", self._uri) from None
                raise
        return self._source

    def _read(self, size: int) -> bytes:
        try:
            source = self._opened()
            source.seek(self._at)
            return source.read(size)
        except OSError:
            self._source = None
            raise

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all that follow."""
        rest = self._size - self._at
        wanted = rest if size is None or size < 0 else min(size, rest)
        found = _read_patiently(self._uri, lambda: self._read(wanted))
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go elsewhere."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Bytes before the next to be read."""
        return self._at

    def close(self) -> None:
        """Close what is open."""
        if self._source is not None:
            self._source.close()
        super().close()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True
