"""Peak memory of a command: python benchmarks/memory.py -- COMMAND [ARG ...].

The sum of PSS over all processes that the command started, shared memory included, looked at four
times a second. Linux.
"""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "XDRAY_MEMORY_RUN"


def main() -> int:
    """Run the command and print its peak."""
    command = sys.argv[sys.argv.index("--") + 1 :]
    token = uuid.uuid4().hex
    started, peak, at_peak = time.monotonic(), 0, dict[str, int]()
    process = subprocess.Popen(command, env={**os.environ, MARK: token})
    while process.poll() is None:
        sizes = {
            f"{name_of(path)} {path.name}": pss_kib(path)
            for path in Path("/proc").glob("[0-9]*")
            if has_mark(path, token)
        }
        if sum(sizes.values()) > peak:
            peak, at_peak = sum(sizes.values()), sizes
        time.sleep(0.25)
    seconds = time.monotonic() - started
    print(f"peak {peak / 1024:.0f} MiB in {len(at_peak)} processes, {seconds:.0f} s")
    for name, size in sorted(at_peak.items(), key=lambda item: -item[1])[:6]:
        print(f"  {size / 1024:.0f} MiB {name}")
    return process.returncode


def has_mark(path: Path, token: str) -> bool:
    """Whether a process inherited the token."""
    try:
        return f"{MARK}={token}".encode() in (path / "environ").read_bytes()
    except OSError:
        return False


def name_of(path: Path) -> str:
    """Return what a process calls itself."""
    try:
        return (path / "comm").read_text().strip()
    except OSError:
        return "ended"


def pss_kib(path: Path) -> int:
    """Proportional share of memory of a process in KiB."""
    try:
        lines = (path / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    raise SystemExit(main())
