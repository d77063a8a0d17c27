"""storage: atomic writes, URIs, fingerprints. The object store is fsspec's, in memory."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from safetensors import SafetensorError

from xdray import storage
from xdray.errors import ClusterError, XdrayError


@pytest.fixture(params=["folder", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path)
    return f"fsspec+memory://{uuid.uuid4().hex}/some/folder"


def test_what_is_written_is_read_back_listed_and_sized(place: str) -> None:
    storage.write_bytes_atomic(storage.join(place, "b", "two.bin"), b"12345")
    storage.write_bytes_atomic(storage.join(place, "one.bin"), memoryview(b"123"))
    storage.write_json(storage.join(place, "b", "c", "x.json"), {"ü": [1, 2]})
    assert storage.read_bytes(storage.join(place, "b", "two.bin")) == b"12345"
    assert storage.read_json(storage.join(place, "b", "c", "x.json")) == {"ü": [1, 2]}
    assert storage.list_folder(place) == ["b", "one.bin"]
    assert list(storage.file_sizes(place)) == ["b/c/x.json", "b/two.bin", "one.bin"]
    assert storage.file_sizes(place)["b/two.bin"] == 5
    assert storage.size(storage.join(place, "b", "two.bin")) == 5
    assert storage.size(place) == 8 + storage.size(storage.join(place, "b", "c", "x.json"))
    with storage.open_input(storage.join(place, "b", "two.bin")) as source:
        source.seek(3)
        assert source.read() == b"45"


def test_a_shorter_file_replaces_a_longer_one_whole(place: str) -> None:
    uri = storage.join(place, "x")
    storage.write_bytes_atomic(uri, b"a long one")
    storage.write_bytes_atomic(uri, b"short")
    assert storage.read_bytes(uri) == b"short"


def test_deleting_removes_files_and_folders_and_forgives_what_is_not_there(place: str) -> None:
    for name in ("a/x", "a/y", "b"):
        storage.write_bytes_atomic(storage.join(place, *name.split("/")), b"1")
    assert storage.exists(storage.join(place, "a"))
    storage.delete_tree(storage.join(place, "a"))
    storage.delete_tree(storage.join(place, "b"))
    storage.delete_tree(storage.join(place, "never"))
    assert not storage.exists(storage.join(place, "a"))
    assert not storage.exists(storage.join(place, "b"))
    assert storage.list_folder(storage.join(place, "a")) == []
    assert storage.size(storage.join(place, "a")) == 0


def test_a_file_that_is_not_there_is_a_file_not_found_error(place: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(place, "none"))
    with pytest.raises(FileNotFoundError):
        storage.read_json(storage.join(place, "none"))


def test_json_that_broke_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1,')
    with pytest.raises(XdrayError, match=r"x\.json: damaged, not JSON .*; delete it"):
        storage.read_json(str(tmp_path / "x.json"))


def test_a_full_disk_names_the_file_and_the_bytes_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"old")
    (tmp_path / ".part.0.tmp").symlink_to("/dev/full")  # the kernel's own disk that is always full
    with pytest.raises(
        ClusterError, match=r"/part: the disk is full: 5,000 bytes to write, [\d,]+ f"
    ):
        storage.write_bytes_atomic(str(tmp_path / "part"), bytes(5000))
    assert [entry.name for entry in tmp_path.iterdir()] == ["part"]
    assert (tmp_path / "part").read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_a_cluster_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"file/x: cannot be written"):
        storage.write_bytes_atomic(str(tmp_path / "file" / "x"), b"1")
    with pytest.raises(ClusterError, match=r"nosuch://place: no file system"):
        storage.exists("nosuch://place/x")


_DYING_WRITER = """
import os, sys
from pathlib import Path
from xdray import storage
descriptor = storage._claim(Path(sys.argv[1]))
os.write(descriptor, b"half of a long text")
print("claimed", flush=True)
input()
"""


def test_what_a_killed_writer_left_is_neither_listed_nor_kept(tmp_path: Path) -> None:
    stray = tmp_path / ".x.0.tmp"
    command = [sys.executable, "-c", _DYING_WRITER, str(stray)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"claimed\n"
        storage.write_bytes_atomic(str(tmp_path / "x"), b"mine")  # beside a living writer
        assert (tmp_path / "x").read_bytes() == b"mine"
        assert stray.exists()
        assert storage.list_folder(str(tmp_path)) == ["x"]
        assert storage.file_sizes(str(tmp_path)) == {"x": 4}
        writer.send_signal(signal.SIGKILL)
    (tmp_path / ".x.1.tmp").write_bytes(b"stray of another dead writer")
    storage.write_bytes_atomic(str(tmp_path / "x"), b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def _write_often(uri: str, letter: bytes) -> None:
    for _ in range(200):
        storage.write_bytes_atomic(uri, letter * 50_000)


def test_writers_of_one_name_never_mix_their_bytes(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(uri, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        time.sleep(0.001)
        if os.path.exists(uri):  # noqa: PTH110
            assert storage.read_bytes(uri) in {b"a" * 50_000, b"b" * 50_000}
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_options_of_a_uri_stay_at_its_end() -> None:
    assert storage.join("s3://bucket/a/?region=x", "b", "c") == "s3://bucket/a/b/c?region=x"
    assert storage.join("/", "a") == "/a"
    assert storage.join("a/", "b") == "a/b"


def test_a_file_uri_is_a_local_path(tmp_path: Path) -> None:
    storage.write_bytes_atomic(f"file://{tmp_path}/a%20b", b"1")
    assert (tmp_path / "a b").read_bytes() == b"1"


def test_fingerprint_depends_on_values_and_not_on_key_order() -> None:
    assert storage.fingerprint({"a": 1, "b": [1, 2]}) == storage.fingerprint({"b": (1, 2), "a": 1})
    assert storage.fingerprint({"a": 1}) != storage.fingerprint({"a": "1"})
    assert len(storage.fingerprint("x")) == 32


def test_fingerprint_of_files_follows_their_bytes_and_names(tmp_path: Path) -> None:
    for name, text in (("x", b"1"), ("y", b"2"), ("z", b"1")):
        (tmp_path / name).write_bytes(text)
    first = storage.fingerprint_files(str(tmp_path), ["x", "y"])
    assert first == storage.fingerprint_files(str(tmp_path), ["y", "x"])
    assert first != storage.fingerprint_files(str(tmp_path), ["z", "y"])
    (tmp_path / "x").write_bytes(b"2")
    assert first != storage.fingerprint_files(str(tmp_path), ["x", "y"])


def test_free_space_is_that_of_the_nearest_folder_and_unknown_on_an_object_store(
    tmp_path: Path,
) -> None:
    free = storage.free_space(str(tmp_path / "not" / "yet"))
    stats = os.statvfs(tmp_path)
    assert free == pytest.approx(stats.f_bavail * stats.f_frsize, rel=0.05)
    assert storage.free_space("fsspec+memory://x/y") is None


def test_a_full_disk_is_told_from_what_libraries_say_of_it(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as failure:
        (tmp_path / "full").write_bytes(bytes(100_000))
    of_safetensors = SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")
    for error in (failure.value, of_safetensors):
        told = storage.full_disk(str(tmp_path), error)
        assert str(told).startswith(f"{tmp_path}: the disk is full: ")
    for other in (OSError(5, "Input/output error"), RuntimeError("shapes differ"), KeyError("x")):
        assert storage.full_disk(str(tmp_path), other) is None
