import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from xdray.corpus import inline_shards
from xdray.errors import ClusterError, CorpusError, TrainingError
from xdray.sentences import Sentence
from xdray.targets import AnnotateTask
from xdray.workers import Ledger, PoolWorker, as_xdray_error, last_line


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PoolWorker changes the folder of its process


def pool_worker(worker_class: Any, ledger: Ledger, folder: Path | str = ".") -> PoolWorker:
    told = (ledger.tries, ledger.begin, ledger.end)
    return PoolWorker(worker_class, {}, *told, str(folder), "/logs")


def call(worker: PoolWorker, index: int, item: Any) -> Any:
    batch = pa.table({"item": [pickle.dumps((index, item))]})
    return pickle.loads(worker(batch)["receipt"][0].as_py())


class Half:
    def __call__(self, item: int) -> dict[str, Any]:
        return {"value": 10 / item}


class Unloadable:
    def __init__(self) -> None:
        raise CorpusError("no such model")


def test_an_item_that_gives_a_result_may_be_tried_any_number_of_times():
    worker = pool_worker(Half, Ledger())
    assert [call(worker, 0, 4) for _ in range(9)] == [{"value": 2.5, "index": 0, "tries": 1}] * 9


def test_the_fourth_try_of_an_item_whose_workers_died_is_an_error_that_names_it():
    ledger = Ledger()
    assert [ledger.begin(5) for _ in range(3)] == [1, 2, 3]  # as three dead actors leave it
    shard = inline_shards([Sentence("dev-1", "en", "A b")], 16)[0]
    for item in (shard, AnnotateTask(shard)):
        error = call(pool_worker(Half, ledger), 5, item)
        assert isinstance(error, ClusterError)
        name = f"shard {shard.shard_id} (dev or test, 1 sentences): killed its Half 3 times"
        assert str(error).startswith(name)
    assert call(pool_worker(Half, ledger), 6, 5) == {"value": 2.0, "index": 6, "tries": 1}


def test_an_error_of_the_worker_is_a_row_that_says_where_and_what(capfd):
    error = call(pool_worker(Half, Ledger()), 3, 0)
    assert str(error).startswith("Half, shard 0: ZeroDivisionError: ")
    assert str(error).endswith("the traceback is under /logs")
    assert "Traceback (most recent call last)" in capfd.readouterr().err  # the actor's log


def test_an_error_at_the_start_is_a_row_as_it_was_raised():
    error = call(pool_worker(Unloadable, Ledger()), 0, 1)
    assert isinstance(error, CorpusError)
    assert str(error) == "no such model"


def test_a_worker_is_built_once_and_within_the_first_try():
    built = []

    class Counted:
        def __init__(self) -> None:
            built.append(Path.cwd())

        def __call__(self, item: int) -> dict[str, int]:
            return {"value": item}

    folder = Path("sub")
    folder.mkdir()
    worker = pool_worker(Counted, Ledger(), folder)
    assert built == []
    assert [call(worker, n, n)["value"] for n in (7, 8)] == [7, 8]
    assert [path.name for path in built] == ["sub"]


def test_an_item_that_is_tried_again_works_alone():
    ledger, at_work, seen = Ledger(), threading.Semaphore(0), list[set[str]]()
    there: set[str] = set()

    class Noting:
        def __call__(self, item: str) -> dict[str, Any]:
            there.add(item)
            at_work.release()
            time.sleep(0.1)
            seen.append(set(there))
            there.discard(item)
            return {}

    ledger.begin(0)  # by an actor that died
    worker = pool_worker(Noting, ledger)
    threads = []
    for index, item in ((1, "first"), (0, "again"), (2, "new"), (3, "other")):
        threads.append(threading.Thread(target=call, args=(worker, index, item)))
        threads[-1].start()
        if item == "first":
            at_work.acquire()
        time.sleep(0.02)  # so that they come in this order
    for thread in threads:
        thread.join()
    assert [its for its in seen if "again" in its] == [{"again"}]
    assert seen[0] == {"first"}  # who comes later waits for the one that asks to be alone
    assert {"new", "other"} in seen


def test_a_folder_that_is_not_there_leaves_the_process_where_it_is():
    before = Path.cwd()
    pool_worker(Half, Ledger(), "/no/such/folder")
    assert Path.cwd() == before
    assert os.getcwd() == str(before)  # noqa: PTH109


def test_the_first_error_in_the_ledger_stays():
    ledger = Ledger()
    assert ledger.error() is None
    first = TrainingError("first")
    ledger.fail(first)
    ledger.fail(TrainingError("second"))
    assert ledger.error() is first


def wrapped(inside: Exception, attribute: str) -> Exception:
    outer = RuntimeError("a worker failed\nsee above")
    if attribute == "__cause__":
        outer.__cause__ = inside
    else:
        setattr(outer, attribute, {0: inside} if attribute == "worker_failures" else inside)
    return outer


@pytest.mark.parametrize("way", ["__cause__", "cause", "controller_failure", "worker_failures"])
def test_our_error_is_found_under_whatever_ray_wraps_around_it(way):
    ours = TrainingError("stage logits, step 7: nan")
    assert as_xdray_error(wrapped(wrapped(ours, way), "cause"), "run", "/logs") is ours
    other = as_xdray_error(wrapped(ValueError("why\nlast"), way), "run x", "/logs")
    assert type(other) is ClusterError
    assert str(other) == "run x: ValueError: last; the traceback is under /logs"


def test_an_error_without_words_is_named():
    assert last_line(MemoryError()) == "MemoryError"
    assert last_line(ValueError("a\n b \n")) == "ValueError: b"
