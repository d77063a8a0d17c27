"""Run folders, targets and models on a real S3 server, started here on loopback."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig
from safetensors.torch import load_file

from xdray.config import Config
from xdray.configfile import make_config
from xdray.distillation import annotate_only, distill
from xdray.errors import ConfigError
from xdray.mirror import Mirror, fetched, working_folder
from xdray.prediction import predict_files
from xdray.scoring import evaluate_model
from xdray.search import tune
from xdray.storage import exists, file_sizes, join, read_bytes, read_json, write_bytes_atomic

Place = Callable[[str], str]


@pytest.fixture(scope="module")
def s3() -> Iterator[Place]:
    """Return a maker of URIs in a bucket of a server of the S3 protocol."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    S3FileSystem(
        access_key="key",
        secret_key="secret",
        scheme="http",
        endpoint_override=f"{host}:{port}",
        region="us-east-1",
        allow_bucket_creation=True,
    ).create_dir("bucket")
    yield lambda path: f"s3://key:secret@bucket/{path}?{options}"
    server.stop()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for this machine's copies: emptied, it is another machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def at(config: Config, run: str, store: str, **sections: Any) -> Config:
    values: Any = config.model_dump(mode="json")
    values["run"]["folder"], values["targets"]["store"] = run, store
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return make_config(values, "test")


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_what_is_new_is_sent_and_what_is_gone_is_deleted(s3: Place):
    uri = s3("sent")
    with working_folder(uri) as (folder, mirror):
        assert mirror is not None
        (folder / "config.yaml").write_text("c")
        (folder / "a").mkdir()
        (folder / "a" / "stage.json").write_text("1")
        (folder / "gone").write_text("x")
        (folder / "ray").mkdir()
        (folder / "ray" / "state").write_text("its own")
        mirror.send()
        assert file_sizes(uri) == {"a/stage.json": 1, "config.yaml": 1, "gone": 1}
        (folder / "gone").unlink()
        (folder / "a" / "stage.json").write_text("22")
        mirror.send("b")
        assert file_sizes(uri) == {"a/stage.json": 1, "config.yaml": 1, "gone": 1}
        mirror.send("a")
        assert file_sizes(uri) == {"a/stage.json": 2, "config.yaml": 1, "gone": 1}
    assert file_sizes(uri) == {"a/stage.json": 2, "config.yaml": 1}


def test_a_folder_is_found_as_it_was_left_wherever_it_is_opened(s3: Place, machine: Path):
    uri = s3("found")
    with working_folder(uri) as (folder, _):
        (folder / "config.yaml").write_text("c")
        (folder / "stages" / "01-x").mkdir(parents=True)
        (folder / "stages" / "01-x" / "stage.json").write_text("done")
    shutil.rmtree(folder)
    with working_folder(uri) as (folder, _):
        assert (folder / "stages" / "01-x" / "stage.json").read_text() == "done"
        with pytest.raises(ConfigError, match="another process"), working_folder(uri):
            pass
    (folder / "stages" / "01-x" / "stage.json").write_text("stale")
    write_bytes_atomic(join(uri, "stages", "01-x", "stage.json"), b"anew")
    with working_folder(uri) as (folder, _):
        assert (folder / "stages" / "01-x" / "stage.json").read_text() == "anew"


def test_a_fetch_that_breaks_off_deletes_nothing_at_the_uri(
    s3: Place, monkeypatch: pytest.MonkeyPatch
):
    uri = s3("broken")
    with working_folder(uri) as (folder, mirror):
        assert mirror is not None
        (folder / "config.yaml").write_text("c")
        (folder / "trials" / "a").mkdir(parents=True)
        (folder / "trials" / "a" / "trial.json").write_text("t")
        mirror.send()
        whole = file_sizes(uri)
        with monkeypatch.context() as patch:
            patch.setattr("xdray.mirror.open_input", lambda uri: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                mirror.fetch("trials", "a")
        mirror.send()
        assert file_sizes(uri) == whole
    assert file_sizes(uri) == whole


def test_what_is_no_run_is_refused_before_it_is_fetched(s3: Place):
    write_bytes_atomic(join(s3("other"), "big"), b"x")
    with (
        pytest.raises(ConfigError, match=r"has files but no config\.yaml"),
        working_folder(s3("other")),
    ):
        pass


def test_a_worker_elsewhere_has_the_copy_of_this_call_and_not_an_older_one(s3: Place):
    uri = s3("worker")
    with working_folder(uri) as (folder, mirror):
        assert mirror is not None
        (folder / "start").write_text("first")
        first = mirror.renew()
        elsewhere = Mirror(uri, str(folder.with_name("elsewhere")), first.token)
        elsewhere.enter()
        assert Path(elsewhere.folder, "start").read_text() == "first"
        (folder / "start").write_text("second")
        renewed = mirror.renew()
        elsewhere = Mirror(uri, elsewhere.folder, renewed.token)
        elsewhere.enter()
        assert Path(elsewhere.folder, "start").read_text() == "second"
        Path(elsewhere.folder, "made").write_text("there")
        elsewhere.send()
        mirror.fetch()
        assert (folder / "made").read_text() == "there"
        write_bytes_atomic(join(uri, "stages", "stage.json"), b"of rank 0")
        elsewhere.enter()  # all ranks start again
        assert Path(elsewhere.folder, "stages", "stage.json").read_text() == "of rank 0"
        (folder / "unsent").write_text("x")
        renewed.enter()  # on the job's own machine the copy stays as it is
        assert (folder / "unsent").exists()


def test_a_model_at_a_uri_is_fetched_anew_when_it_has_changed(s3: Place):
    uri = s3("model")
    write_bytes_atomic(join(uri, "config.json"), b"{}")
    first = fetched(uri)
    assert fetched(uri) == first
    write_bytes_atomic(join(uri, "config.json"), b"{ }")
    assert (fetched(uri) / "config.json").read_bytes() == b"{ }"
    with pytest.raises(ConfigError, match="no such folder"):
        fetched(s3("nothing"))


@pytest.mark.cluster
def test_a_run_on_s3_is_the_local_run_bit_for_bit(
    tiny: MakeConfig, ray_session: None, s3: Place, machine: Path
):
    here = tiny("here", targets={"store": str(machine / "targets")})
    local = distill(here)
    config = at(here, s3("run"), s3("targets"))
    annotate_only(config)
    for left in machine.glob("xdray-*"):
        shutil.rmtree(left)  # another machine goes on
    remote = distill(config)
    assert remote["run_dir"] == s3("run")
    assert remote["targets"]["teacher_forward_rows"] == 0
    files = file_sizes(str(machine / "targets"))
    assert file_sizes(s3("targets")) == files
    for name in files:
        assert read_bytes(join(s3("targets"), name)) == read_bytes(f"{machine}/targets/{name}")
    for system in ("teacher", "student", "baseline"):
        assert remote[system]["test"] == local[system]["test"]
    student = join(s3("run"), "student")
    found, expected = weights(fetched(student)), weights(machine / "here" / "student")
    assert all(found[name].equal(expected[name]) for name in expected)
    assert evaluate_model(config, None, "test")["test"] == local["student"]["test"]
    again = distill(config)
    assert again["created"] == remote["created"]  # found done
    text = str(machine / "x.txt")
    Path(text).write_text("Anna lives in Bonn .\n", encoding="utf-8")
    assert predict_files(student, [text], str(machine / "x.jsonl"))["sentences"] == 1


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_on_s3_with_a_worker_keeps_its_checkpoints_there(
    tiny: MakeConfig, ray_session: None, s3: Place, machine: Path
):
    training = {"workers": 1, "checkpoint_seconds": 0.001}
    evaluation = {"baseline": False}
    store = {"store": str(machine / "targets")}
    here = tiny("here", evaluation=evaluation, training=training, targets=store)
    distill(here)
    config = at(here, s3("workers"), s3("targets"))
    report = distill(config)
    found = weights(fetched(join(s3("workers"), "student")))
    expected = weights(machine / "here" / "student")
    assert all(found[name].equal(expected[name]) for name in expected)
    assert read_json(join(s3("workers"), "report.json"))["status"] == "done"
    names = file_sizes(s3("workers"))
    assert any(name.startswith("stages/ray/") for name in names)
    assert sum(name.endswith("/stage.json") for name in names) == len(report["stages"])


@pytest.mark.cluster
@pytest.mark.slow
def test_a_search_on_s3_goes_on_elsewhere(
    tiny: MakeConfig, ray_session: None, s3: Place, machine: Path
):
    search = {
        "space": {"student.hidden": [4, 8]},
        "algorithm": "grid",
        "early_stopping": "none",
        "objectives": ["score", "parameters"],
    }
    config = at(tiny("unused", search=search), s3("search"), s3("targets"))
    first = tune(config)
    for left in machine.glob("xdray-*"):
        shutil.rmtree(left)
    more = {**search, "space": {"student.hidden": [4, 8, 12]}}
    second = tune(at(tiny("unused", search=more), s3("search"), s3("targets")))
    assert first["trials"]["finished"] == 2
    assert second["trials"]["finished"] == 3
    assert second["targets"]["teacher_forward_rows"] == 0
    assert exists(join(s3("search"), "best", "report.json"))
