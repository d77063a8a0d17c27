"""A run is a folder: opened, refused when it is of another config, found done."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xdray.config import Config
from xdray.configfile import changed_fields, dump_config, load_config
from xdray.console import Console
from xdray.errors import ConfigError, XdrayError
from xdray.mirror import CONFIG, LAST, STATE, Mirror, take_alone, working_folder
from xdray.redaction import redacted
from xdray.storage import (
    Kind,
    delete_tree,
    full_disk,
    join,
    list_folder,
    read_object,
    write_bytes_atomic,
    write_json,
)

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

LOCK = ".lock"
"""In every run folder, held by the process that works on it."""
NO_RESULTS = {"config.yaml", "log.txt", "remembered.json", STATE, LOCK}
"""What lies in the folder of a run that was refused before it made anything."""


class Run:
    """An open run folder; one at a URI is worked on in a local copy."""

    def __init__(
        self, config: Config, console: Console, folder: Path, mirror: Mirror | None
    ) -> None:
        """Take a folder that `open_run` has checked."""
        self.place = config.run.folder
        """As the user wrote it."""
        own = config.run.model_copy(update={"folder": str(folder)})
        self.config = config.model_copy(update={"run": own})
        """With the local folder."""
        self.console = console
        self.folder = folder
        self.mirror = mirror

    def named(self, *names: str) -> str:
        """Return a place in the folder as the user knows it."""
        return join(self.place, *names)

    def send(self) -> None:
        """Send what is new to the URI, where the folder is at one."""
        if self.mirror is not None:
            self.mirror.send()

    def path(self, *names: str) -> Path:
        """Return a path in the folder."""
        return self.folder.joinpath(*names)

    def write_json(self, name: str, value: Any) -> None:
        """Write a file whole or not at all, without the secrets of URIs, and send what is new."""
        write_json(str(self.path(name)), redacted(value))
        self.send()

    def read_json(self, name: str, **kinds: Kind) -> dict[str, Any] | None:
        """Read a file as `read_object` does, None if it is not there. Raises XdrayError."""
        path = self.path(name)
        return read_object(str(path), **kinds) if path.is_file() else None

    def remembered(self, name: str, work: Callable[[], str]) -> str:
        """Return what `work` returned in the first call of a run, also when it is resumed."""
        known = self.read_json("remembered.json") or {}
        if name not in known:
            known[name] = work()
            self.write_json("remembered.json", known)
        if not isinstance(known[name], str):
            raise XdrayError(
                f"{self.path('remembered.json')}: {name} is {known[name]!r:.60}, expected text; "
                "correct it, or give --fresh"
            )
        return known[name]


@contextlib.contextmanager
def open_run(config: Config, fresh: bool) -> Iterator[Run]:
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
    with contextlib.ExitStack() as stack:
        folder, mirror = stack.enter_context(working_folder(config.run.folder))
        claimed = _is_claimed(config, folder, fresh)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / LOCK).open("w"))
        except OSError as error:
            raise ConfigError(f"run.folder: {folder} cannot be made: {error}") from error
        take_alone(lock, config.run.folder)
        if claimed:
            _delete(folder, mirror)
        write_bytes_atomic(str(folder / CONFIG), dump_config(config).encode())
        try:
            with Console(folder / "log.txt") as console:
                yield Run(config, console, folder, mirror)
        except XdrayError:
            raise
        except Exception as error:  # of a library that met a full disk
            if (full := full_disk(str(folder), error)) is not None:
                raise full from error
            raise


def _delete(folder: Path, mirror: Mirror | None) -> None:
    """Delete a run: what says that it is done first, its config last.

    What a kill leaves is still known as a run, and not as one that is done.
    """
    here = [entry.name for entry in folder.iterdir() if entry.name != LOCK]  # and unfinished files
    there = {mirror.uri: list_folder(mirror.uri)} if mirror is not None else {}
    for place, names in (there | {str(folder): here}).items():
        for name in sorted(names, key=lambda its: (its not in LAST, its == CONFIG)):
            delete_tree(join(place, name))


def _is_claimed(config: Config, folder: Path, fresh: bool) -> bool:
    """Whether an earlier run is to be deleted; refuses what is no run folder, or of another run."""
    saved = folder / CONFIG
    if saved.is_file():
        old = _config_of_run(saved)
        if fresh:
            return True
        changes = _changes(old, config)
        if changes and set(list_folder(str(folder))) - NO_RESULTS:
            raise ConfigError(
                f"{config.run.folder}: a run of another config: {'; '.join(changes)}; name another "
                "run.folder, or give --fresh to delete this run"
            )
        if changes:
            (folder / "remembered.json").unlink(missing_ok=True)
    elif set(list_folder(str(folder))) - {STATE, LOCK}:
        raise ConfigError(
            f"run.folder: {config.run.folder} has files but no config.yaml, so it is no run "
            "folder; name another folder, or empty this one"
        )
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.folder: {folder} is a file, expected a folder")
    return False


def _config_of_run(saved: Path) -> Config:
    """Read the config of a run folder; a config.yaml of something else makes it no run folder."""
    try:
        return load_config(str(saved))
    except ConfigError as error:
        raise ConfigError(
            f"run.folder: {saved.parent} is no run folder, its config.yaml is of something else "
            f"({error}); name another folder"
        ) from error


def _changes(old: Config, new: Config) -> list[str]:
    return [c for c in changed_fields(old, new) if not c.startswith(HOW_NOT_WHAT)]
