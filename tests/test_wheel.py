"""The built wheel is whole: what it needs beside the code is in it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import sys
sys.path.insert(0, {wheel!r})
import xdray
assert xdray.__file__.startswith({wheel!r}), xdray.__file__
from xdray.cli import main
raise SystemExit(main({arguments!r}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the unpacked wheel and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _run(wheel: Path, cwd: Path, *arguments: str) -> dict:
    code = RUN.format(wheel=str(wheel), arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_wheel_generates_text_and_plans_a_run_outside_the_repository(
    wheel: Path, tmp_path: Path, tiny_teacher: Path
):
    assert _run(wheel, tmp_path, "sample", "tiny", "text")["status"] == "done"
    (tmp_path / "mine.yaml").write_text(
        f"""
run: {{folder: run}}
data:
  train: {{path: "text/train/*.conll", language: "{{stem}}"}}
  dev: {{path: "text/dev/*.conll", language: "{{stem}}"}}
  test: {{path: "text/test/*.conll", language: "{{stem}}"}}
  transfer: {{path: "text/transfer/*.txt", language: "{{stem}}"}}
teacher: {{model: {tiny_teacher}}}
student: {{embedding: 8}}
"""
    )
    plan = _run(wheel, tmp_path, "distill", "mine.yaml", "--plan")["plan"]
    assert plan["transfer"]["sentences~"] > 0


def test_the_wheel_names_the_console_command(wheel: Path):
    (entry_points,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "xdray = xdray.cli:main" in entry_points.read_text()
