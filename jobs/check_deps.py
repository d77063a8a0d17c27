"""Audit the installed packages: python jobs/check_deps.py. Exit status 0 clean, 1 findings.

`pip check`, then pip-audit against PyPI's advisories, else OSV's. Status 2: neither knows any.
"""

import json
import subprocess
import sys
from typing import Any


def run(*module: str) -> "subprocess.CompletedProcess[str]":
    """Run a module of this environment."""
    command = [sys.executable, "-m", *module]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def judge(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Number of packages that were audited, and a line for each advisory. Of pip-audit's JSON."""
    audited = [its for its in dependencies if "skip_reason" not in its]
    found = [
        f"{its['name']} {its['version']}: {advisory['id']}, fixed in "
        f"{', '.join(advisory['fix_versions']) or 'no release yet'}"
        for its in audited
        for advisory in its["vulns"]
    ]
    return len(audited), found


def main() -> int:
    """Print what is wrong, a line each; returns the exit status."""
    conflicts = run("pip", "check")
    found = conflicts.stdout.splitlines() if conflicts.returncode else []
    audited, packages, tried, skipped = 0, 0, [], []
    for source in ("pypi", "osv"):
        options = f"--vulnerability-service {source} --format json --progress-spinner off"
        answer = run("pip_audit", "--skip-editable", *options.split())
        try:
            dependencies = json.loads(answer.stdout)["dependencies"]
            packages, (audited, advisories) = len(dependencies), judge(dependencies)
        except (ValueError, LookupError, TypeError):
            last = (answer.stderr.strip() or "no answer").splitlines()[-1]
            tried.append(f"{source}: {last:.200}")
            continue
        if audited:
            found, skipped = found + advisories, [d for d in dependencies if "skip_reason" in d]
            break
        tried.append(f"{source}: knows none of {packages} packages")
    print(*found, sep="\n", end="\n" if found else "")
    if not audited:
        print(f"check-deps: NOT audited, no advisory source answered ({'; '.join(tried)})")
    print(*(f"check-deps: {its['name']} was not looked at\n" for its in skipped), sep="", end="")
    line = {"job": "check_deps", "audited": audited, "packages": packages, "findings": found}
    print(json.dumps({**line, "status": "done" if audited and not found else "failed"}))
    return 1 if found else 0 if audited else 2


if __name__ == "__main__":
    raise SystemExit(main())
