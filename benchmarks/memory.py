"""Peak memory of a command: python benchmarks/memory.py -- COMMAND [ARG ...].

The sum of PSS over all processes that the command started, shared memory included; taken every two
seconds, and whenever their own memory, looked at four times a second, is higher than ever. Linux.
"""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "XDRAY_MEMORY_RUN"
SECONDS = 2.0


def main() -> int:
    """Run the command and print its peak."""
    command = sys.argv[sys.argv.index("--") + 1 :]
    token = uuid.uuid4().hex
    started, peak, at_peak = time.monotonic(), 0, dict[str, int]()
    highest, looked = 0, started
    process = subprocess.Popen(command, env={**os.environ, MARK: token})
    while process.poll() is None:
        time.sleep(0.25)
        paths = [path for path in Path("/proc").glob("[0-9]*") if has_mark(path, token)]
        # the kernel walks all pages for a PSS, half a core where it is asked each time
        rough = sum(own_kib(path) for path in paths)
        if rough <= highest and time.monotonic() - looked < SECONDS:
            continue
        highest, looked = max(highest, rough), time.monotonic()
        sizes = {f"{name_of(path)} {path.name}": pss_kib(path) for path in paths}
        if sum(sizes.values()) > peak:
            peak, at_peak = sum(sizes.values()), sizes
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


def own_kib(path: Path) -> int:
    """Anonymous and shared memory that a process has mapped, in KiB; files apart."""
    try:
        lines = (path / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def pss_kib(path: Path) -> int:
    """Proportional share of memory of a process in KiB."""
    try:
        lines = (path / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    raise SystemExit(main())
