"""`ray job submit` as the README shows it, to a real Ray with dashboard."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from xdray.sample import tiny_corpus

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_ENV = ROOT / "deploy" / "runtime-env.yaml"
SHORT = (
    "data.transfer.sentences=100",
    "teacher.finetune.epochs=1",
    "recipe.overrides.representation.epochs=40",
    "training.patience=40",
    "evaluation={baseline: false, latency: false, bootstrap: 0}",
)


def _runtime_env() -> dict[str, Any]:
    return YAML(typ="safe").load(RUNTIME_ENV.read_text())


def test_the_runtime_environment_is_one_that_ray_takes():
    from ray.runtime_env import RuntimeEnv

    found = RuntimeEnv(working_dir="gcs://job.zip", **_runtime_env())
    assert found["uv"]["uv_pip_install_options"][0].endswith("/constraints.txt")
    assert (ROOT / "constraints.txt").is_file()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [its.getsockname()[1] for its in sockets]
    for its in sockets:
        its.close()
    return ports


class Head:
    """A Ray that was started elsewhere, and jobs submitted to it from yet another folder."""

    def __init__(self, folder: Path, temporary: str) -> None:
        port, dashboard, agent, client = _free_ports(4)
        ray = Path(sys.executable).with_name("ray")
        self.folder, self.ray = folder, ray
        self.address = f"http://127.0.0.1:{dashboard}"
        path = f"{ray.parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find their `python`
        self._head = subprocess.Popen(
            [
                *(ray, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
                *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
                *(f"--port={port}", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *("--object-store-memory=200000000", f"--temp-dir={temporary}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=temporary,
            env={**os.environ, "PATH": path, "RAY_JOB_STOP_WAIT_TIME_S": "3"},
            start_new_session=True,
        )

    def client(self) -> Any:
        """Return a client, once the dashboard answers."""
        from ray.job_submission import JobSubmissionClient

        deadline = time.monotonic() + 90
        while True:
            try:
                found = JobSubmissionClient(self.address)
                found.list_jobs()
                return found
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.5)

    def submit(self, name: str, *words: str, wait: bool = True) -> int:
        """Submit a job as users do; returns the status of `ray job submit`."""
        runtime_env = self.folder / "runtime-env.yaml"
        values = {k: v for k, v in _runtime_env().items() if k != "uv"}  # this Ray has it all
        YAML().dump(values, runtime_env)
        command = [self.ray, "job", "submit", "--address", self.address, "--submission-id", name]
        command += ["--working-dir", ROOT, "--runtime-env", runtime_env]
        command += [] if wait else ["--no-wait"]
        command += ["--", "python", "jobs/distill.py", "configs/tiny.yaml", *words]
        command += ["--workspace", self.folder]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=150)
        return done.returncode

    def end(self) -> None:
        """End what was started here, and nothing else."""
        self._head.send_signal(signal.SIGTERM)
        try:
            self._head.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self._head.pid, signal.SIGKILL)
            self._head.wait()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("elsewhere")
    tiny_corpus(str(folder / "sample" / "tiny"))
    temporary = tempfile.mkdtemp(prefix="xdray-ray-", dir="/tmp")  # names of sockets are short
    found = Head(folder, temporary)
    yield found
    found.end()
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_submitted_job_ends_as_its_log_says_and_a_stopped_one_continues(head: Head):
    client = head.client()

    def ended(name: str) -> tuple[str, list[str], dict[str, Any]]:
        log = client.get_job_logs(name).splitlines()
        return client.get_job_status(name), log, json.loads(log[-1])

    assert head.submit("wrong", "student.hiden=3") == 1
    status, log, line = ended("wrong")
    assert (status, line["status"]) == ("FAILED", "failed")
    assert log[-2] == f"xdray distill: {line['error']['message']}"
    assert "did you mean 'hidden'" in log[-2]

    assert head.submit("stopped", *SHORT, wait=False) == 0
    deadline = time.monotonic() + 90
    while "stage representation: epoch 2/" not in client.get_job_logs("stopped"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.stop_job("stopped")
    while not client.get_job_status("stopped").is_terminal():
        time.sleep(0.1)
    status, _, line = ended("stopped")
    assert (status, line["error"]["kind"]) == ("STOPPED", "Interrupted")

    assert head.submit("again", *SHORT) == 0
    status, log, line = ended("again")
    assert (status, line["status"], line["run_dir"]) == ("SUCCEEDED", "done", "runs/tiny")
    assert any("stage representation: continued at epoch" in text for text in log)
    assert not any("stage representation: epoch 1/" in text for text in log)
    assert not any("\r" in text or "\x1b" in text for text in log)  # no bars, no colours
    assert (head.folder / "runs" / "tiny" / "report.html").is_file()

    assert head.submit("done", *SHORT) == 0
    status, log, line = ended("done")
    assert (status, line["status"]) == ("SUCCEEDED", "done")
    assert any("this run is done" in text for text in log)
