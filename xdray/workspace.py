"""Where relative paths are taken from; Ray runs a submitted job in a copy of its --working-dir.

Each node unpacks one, and throws it away after the job: what a run makes must lie elsewhere.
`--workspace FOLDER` names a place for all relative paths but those of config files.
"""

import contextlib
import os
from pathlib import Path

from xdray.errors import ConfigError

WAY_OUT = "name a folder that all nodes see: --workspace FOLDER, or absolute paths"


def working_dir_copy() -> Path | None:
    """Return the copy from which a submitted job runs; None where there is none."""
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if Path(entry).parent.name == "working_dir_files":  # Ray's name; it puts the copy there
            return Path(entry).resolve()
    return None


def workspace(folder: str | None) -> contextlib.AbstractContextManager[None]:
    """Take relative paths from a folder in a block. Raises ConfigError where there is none."""
    if folder is None:
        return contextlib.nullcontext()
    if not Path(folder).is_dir():
        raise ConfigError(f"--workspace: {folder} is no folder; make it, where all nodes see it")
    return contextlib.chdir(folder)


def paths_from() -> str:
    """Say where relative paths are taken from, for messages."""
    copy = working_dir_copy()
    if copy is None or not Path.cwd().is_relative_to(copy):
        return f"relative paths are taken from {Path.cwd()}"
    return f"the job's copy of --working-dir lacks what .gitignore names; {WAY_OUT}"


def check_kept(name: str, place: str) -> None:
    """Refuse to write into the copy. name: the field or option that says the place."""
    copy, path = working_dir_copy(), place.removeprefix("file://")
    if copy is not None and "://" not in path and Path(path).resolve().is_relative_to(copy):
        raise ConfigError(
            f"{name}: {place} would lie in the job's copy of --working-dir, which Ray deletes; "
            f"{WAY_OUT}"
        )
