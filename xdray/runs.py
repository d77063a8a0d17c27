"""A run is a folder: opened, refused when it is of another config, found done."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdray.config import Config
from xdray.configfile import changed_fields, dump_config, load_config
from xdray.console import Console
from xdray.errors import ConfigError, XdrayError
from xdray.storage import exists, full_disk, read_json, write_bytes_atomic, write_json

HOW_NOT_WHAT = (
    "cluster.",
    "teacher.replicas",
    "teacher.gpus_per_replica",
    "training.workers",
    "training.checkpoint_seconds",
    "training.max_failures",
    "run.start_from",
    "export.",
    "search",
)
"""Fields that decide how a run is done, not what comes out: they may change between two calls."""

NO_RESULTS = {"config.yaml", "log.txt", "remembered.json"}
"""What lies in the folder of a run that was refused before it made anything."""


class Run:
    """An open run folder."""

    def __init__(self, config: Config, console: Console) -> None:
        """Take a folder that `open_run` has checked."""
        self.config = config
        self.console = console
        self.folder = Path(config.run.folder)

    def __enter__(self) -> "Run":
        """Use as a context, so that a progress bar never outlives an error."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Take the bar away. Raises ClusterError where a library fails on a full disk."""
        self.console.end()
        ours = error is None or isinstance(error, XdrayError)
        if not ours and (full := full_disk(str(self.folder), error)) is not None:
            raise full from error

    def path(self, *names: str) -> Path:
        """Return a path in the folder."""
        return self.folder.joinpath(*names)

    def write_json(self, name: str, value: Any) -> None:
        """Write a file whole or not at all."""
        write_json(str(self.path(name)), value)

    def read_json(self, name: str) -> Any:
        """Read a file, None if it is not there."""
        path = str(self.path(name))
        return read_json(path) if exists(path) else None

    def remembered(self, name: str, work: Callable[[], str]) -> str:
        """Return what `work` returned in the first call of a run, also when it is resumed."""
        known = self.read_json("remembered.json") or {}
        if name not in known:
            known[name] = work()
            self.write_json("remembered.json", known)
        return known[name]


def open_run(config: Config, fresh: bool) -> Run:
    """Make or continue the run folder of a config.

    fresh: delete what an earlier run left there. Raises ConfigError for a folder of another config,
    naming the fields, unless nothing was made there yet, and for a folder with files that is no run
    folder, and for a config that is only to be planned with.
    """
    if config.cluster.fleet is not None:
        raise ConfigError(
            f"cluster.fleet (--cluster): {config.cluster.fleet} is a cluster to plan for, expected "
            "with --plan alone; leave it out, and set RAY_ADDRESS to run on a cluster"
        )
    folder = Path(config.run.folder)
    saved = folder / "config.yaml"
    if saved.is_file():
        old = _config_of_run(saved)
        if fresh:
            shutil.rmtree(folder)
        elif {entry.name for entry in folder.iterdir()} - NO_RESULTS:
            _refuse_changes(old, config, folder)
        else:
            (folder / "remembered.json").unlink(missing_ok=True)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"run.folder: {folder} has files but no config.yaml, so it is no run folder; name "
            "another folder, or empty this one"
        )
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.folder: {folder} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.folder: {folder} cannot be made: {error}") from error
    write_bytes_atomic(str(saved), dump_config(config).encode())
    return Run(config, Console(folder / "log.txt"))


def _config_of_run(saved: Path) -> Config:
    """Read the config of a run folder; a config.yaml of something else makes it no run folder."""
    try:
        return load_config(str(saved))
    except ConfigError as error:
        raise ConfigError(
            f"run.folder: {saved.parent} is no run folder, its config.yaml is of something else "
            f"({error}); name another folder"
        ) from error


def _refuse_changes(old: Config, new: Config, folder: Path) -> None:
    changes = [c for c in changed_fields(old, new) if not c.startswith(HOW_NOT_WHAT)]
    if changes:
        raise ConfigError(
            f"{folder}: a run of another config: {'; '.join(changes)}; name another run.folder, or "
            "give --fresh to delete this run"
        )
