"""Data sets that `datasets` loads: of the Hub, or local folders. Raises CorpusError."""

import functools
from pathlib import Path
from typing import Any

from xdray.places import Place, reading

JSON_ENDINGS = {".json", ".jsonl"}


@functools.lru_cache(maxsize=8)
def hub_dataset(place: Place) -> Any:
    """Load a data set as `datasets` keeps it: mapped from disk, built at its first use."""
    from datasets import load_dataset_builder

    with reading(place):
        try:
            builder = load_dataset_builder(place.path, place.subset)
            if not Path(builder.cache_dir).is_dir():
                _check_json(Path(place.path))
            builder.download_and_prepare()
            return builder.as_dataset(split=place.split)
        except Exception as error:  # it raises a dozen kinds over a damaged folder
            raise ValueError(f"`datasets` says: {type(error).__name__}: {error}") from error


def _check_json(folder: Path) -> None:
    """Refuse local files with a line that is null: pyarrow 26 crashes where a block begins so."""
    for path in sorted(its for its in folder.rglob("*") if its.suffix in JSON_ENDINGS):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                start = line.lstrip()
                if number == 1 and start.startswith(b"["):
                    break  # a list over many lines, which it is never given
                if start.startswith(b"null"):
                    found = f"{path.name}:{number}: null"
                    raise ValueError(f"{found}, expected an object on each line")
