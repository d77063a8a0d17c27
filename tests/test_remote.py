"""remote: a storage that fails for a while is waited for, one that stays away is a clear error."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_files import FaultyFiles, hits, plan

from xdray import remote, storage
from xdray.errors import ClusterError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    fsspec.register_implementation("faulty", FaultyFiles, clobber=True)
    monkeypatch.setattr(remote, "PATIENCE", (0.01, 0.02, 0.03))
    return f"fsspec+faulty://{tmp_path}/store"


def _fault(at: str, times: int = 1, nth: int = 1, do: str = "fail") -> dict[str, Any]:
    return {"at": at, "times": times, "nth": nth, "do": do}


@pytest.mark.parametrize("times", [1, 3])
def test_what_a_failing_storage_was_asked_is_asked_again(place: str, tmp_path: Path, times: int):
    table = pa.table({"n": list(range(5000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=500)
    plan(tmp_path, [_fault(at, times) for at in ("put", "open", "info")])
    uri = storage.join(place, "x", "table")
    storage.write_bytes_atomic(uri, sink.getvalue())
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == sink.getvalue().to_pybytes()
    assert hits(tmp_path) == [times] * 3
    for nth in (1, 2, 7):  # the footer, the first row group, one that comes later
        plan(tmp_path, [_fault("read", times, nth)])
        file = pq.ParquetFile(storage.open_input(uri))
        groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
        assert pa.concat_tables(groups).equals(table)
        assert hits(tmp_path) == [times]
    plan(tmp_path, [_fault("info", times)])
    assert storage.read_bytes(uri) == sink.getvalue().to_pybytes()
    plan(tmp_path, [_fault("info", times)])
    storage.delete_tree(storage.join(place, "x"))
    assert not storage.exists(uri)


def test_a_storage_that_stays_away_is_a_clear_error_and_no_damaged_file(place: str, tmp_path: Path):
    uri = storage.join(place, "x")
    storage.write_bytes_atomic(uri, b"0123456789")
    for at, call in (
        ("info", storage.exists),
        ("open", storage.read_bytes),
        ("read", storage.read_bytes),
        ("read", lambda uri: pq.ParquetFile(storage.open_input(uri))),
    ):
        plan(tmp_path, [_fault(at, times=99)])
        with pytest.raises(ClusterError, match=r"store/x: cannot be read: .*does not answer.*;"):
            call(uri)
        assert hits(tmp_path) == [4]
    plan(tmp_path, [_fault("put", times=99)])
    with pytest.raises(ClusterError, match=r"store/x: cannot be written: .*does not answer"):
        storage.write_bytes_atomic(uri, b"67890")
    assert hits(tmp_path) == [4]
    assert storage.read_bytes(uri) == b"0123456789"


def test_a_file_goes_to_remote_storage_without_a_copy(place: str, monkeypatch: Any):
    data, put = bytes(1000), []
    monkeypatch.setattr(storage, "put", lambda _, view: put.append(view.obj))
    storage.write_bytes_atomic(storage.join(place, "x"), data)
    assert put[0] is data


def test_what_no_waiting_mends_is_told_at_once(place: str, tmp_path: Path):
    plan(tmp_path, [_fault("put", times=99, do="full")])
    with pytest.raises(ClusterError, match=r"store/x: the disk is full: 10 bytes to write"):
        storage.write_bytes_atomic(storage.join(place, "x"), b"0123456789")
    assert hits(tmp_path) == [1]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(place, "x"))


def test_a_remote_file_is_read_from_anywhere(place: str):
    uri = storage.join(place, "x")
    storage.write_bytes_atomic(uri, b"0123456789")
    with storage.open_input(uri) as source:
        assert source.size() == 10
        source.seek(-3, 2)
        assert (source.read(2), source.tell(), source.read(), source.read(4)) == (
            b"78",
            9,
            b"9",
            b"",
        )
        source.seek(4)
        source.seek(1, 1)
        assert source.read(1) == b"5"
    assert storage.read_bytes(uri) == b"0123456789"
