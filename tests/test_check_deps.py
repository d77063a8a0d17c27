"""jobs/check_deps.py: what of a report of pip-audit (2.10) counts as audited, and as found."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent.parent / "jobs" / "check_deps.py"


def _job() -> Any:
    spec = importlib.util.spec_from_file_location("check_deps", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packages_that_no_source_knows_are_not_audited():
    skipped = [
        {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    ]
    assert _job().judge(skipped) == (0, [])


def test_what_no_source_looked_at_is_named(monkeypatch, capsys):
    job = _job()
    told = [{"name": "a", "version": "1", "vulns": []}, {"name": "torch", "skip_reason": "+cpu"}]
    answers = iter(["", "{}", json.dumps({"dependencies": told})])

    def run(*module):
        return subprocess.CompletedProcess(module, 0, next(answers), "")

    monkeypatch.setattr(job, "run", run)
    assert job.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "check-deps: torch was not looked at"
    assert json.loads(printed[-1])["audited"] == 1


def test_each_advisory_is_a_finding_with_the_release_that_mends_it():
    dependencies = [
        {"name": "b", "version": "2.0", "vulns": []},
        {
            "name": "a",
            "version": "1.0",
            "vulns": [
                {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": ""},
                {"id": "CVE-2", "fix_versions": [], "aliases": [], "description": ""},
            ],
        },
    ]
    assert _job().judge(dependencies) == (
        2,
        ["a 1.0: PYSEC-1, fixed in 1.1, 2.0", "a 1.0: CVE-2, fixed in no release yet"],
    )
