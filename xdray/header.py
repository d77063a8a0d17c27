"""What a model's folder says of itself, without its weights and without torch."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdray.errors import ConfigError
from xdray.mirror import fetched
from xdray.storage import local_path
from xdray.strict_json import parse_json

MOST = 1 << 40
"""More than any model has of anything."""
MOST_LAYERS = 1_000
POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer"}


@dataclass(frozen=True)
class ModelHeader:
    """The shape of an encoder, from its config.json."""

    model: str
    """As the config names it."""
    model_type: str
    width: int
    """Of the hidden states."""
    num_layers: int
    num_heads: int
    """Of attention; 0: it has none."""
    intermediate: int
    """Feed-forward units of a layer; 0: it has none."""
    embedding_width: int
    """Of the token embeddings: less than `width` where they are factorised (ELECTRA, ALBERT)."""
    vocab_size: int
    max_positions: int | None
    tags: tuple[str, ...]
    """Labels in the order of their ids."""


def resolve_model(name: str) -> str:
    """Turn "package:NAME/FOLDER" into the folder inside that installed Python package.

    The package is found, not imported. A URI becomes this machine's copy of it. Any other name
    comes back as it is, but for one that can only be a folder and is not there. Raises ConfigError.
    """
    if (path := local_path(name)) is None:
        return str(fetched(name))
    name = str(path) if name.startswith("file://") else name
    scheme, _, rest = name.partition(":")
    if scheme != "package":
        if name.startswith((".", "/", "~")) and not Path(name).is_dir():
            raise ConfigError(f"{name}: no such folder, expected a model's folder or a Hub name")
        return name
    package, _, folder = rest.partition("/")
    if not package.isidentifier() or not folder:
        raise ConfigError(
            f"'{name}': expected package:NAME/FOLDER, with a top-level package's name"
        )
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ConfigError(f"'{name}': no Python package '{package}' is installed; install it first")
    places = [Path(place) / folder for place in spec.submodule_search_locations or ()]
    for place in places:
        if place.is_dir():
            return str(place)
    looked = f"looked for {', '.join(map(str, places))}" if places else "it is a single file"
    raise ConfigError(f"'{name}': no such folder in the package '{package}' ({looked})")


def absolute_model(name: str) -> str:
    """Return the same model for processes that run elsewhere: a local folder made absolute."""
    path = local_path(name)
    return str(path.resolve()) if path is not None and path.is_dir() else name


def read_header(name: str) -> ModelHeader:
    """Read the config.json of a model. Raises ConfigError for a folder that is no model."""
    path = _config_file(name)
    values = config_values(path)
    width = _first(values, path, "hidden_size", "dim", "d_model")
    return ModelHeader(
        model=name,
        model_type=values["model_type"],
        width=width,
        num_layers=_first(
            values, path, "num_hidden_layers", "n_layers", "num_layers", most=MOST_LAYERS
        ),
        num_heads=_first(values, path, "num_attention_heads", "n_heads", default=0),
        intermediate=_first(values, path, "intermediate_size", "hidden_dim", default=0),
        embedding_width=_first(values, path, "embedding_size", default=width),
        vocab_size=_first(values, path, "vocab_size"),
        max_positions=_positions(values, path),
        tags=_tags(values.get("id2label") or {}, path),
    )


def check_length(header: ModelHeader, max_length: int) -> None:
    """Raise ConfigError where sentences may be longer than a model reads."""
    if header.max_positions is not None and max_length > header.max_positions:
        raise ConfigError(
            f"tokens.max_length = {max_length}: {header.model} reads at most "
            f"{header.max_positions} tokens"
        )


def config_values(path: Path) -> dict[str, Any]:
    """Values of a model's config.json. Raises ConfigError."""
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a model's config.json: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigError(f"{path}: has no model_type, expected a transformers model")
    return values


def _tags(labels: Any, path: Path) -> tuple[str, ...]:
    """Labels in the order of their ids."""
    known = isinstance(labels, dict) and all(isinstance(tag, str) for tag in labels.values())
    ids = [key for key in labels if key.isdecimal() and len(key) < 10] if known else []
    if not known or len(ids) < len(labels) or {*map(int, ids)} != {*range(len(ids))}:
        raise ConfigError(f"{path}: id2label is {labels!r:.60}, expected a text for each id from 0")
    return tuple(labels[key] for key in sorted(ids, key=int))


def _positions(values: dict[str, Any], path: Path) -> int | None:
    """Tokens that it can read; RoBERTa's family counts positions from after the padding id."""
    if values.get("max_position_embeddings") is None:
        return None
    found = _first(values, path, "max_position_embeddings")
    if values["model_type"] not in POSITIONS_AFTER_PADDING:
        return found
    return found - _first(values, path, "pad_token_id", default=1) - 1


def _config_file(name: str) -> Path:
    folder = resolve_model(name)
    if Path(folder).is_dir():
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ConfigError(f"{name}: the folder holds no config.json, so it is no model")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(folder, "config.json"))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise ConfigError(
            f"{name}: no such folder, and the Hub gave no config.json for that name "
            f"({type(error).__name__}); check the name, the network, or HF_HUB_OFFLINE"
        ) from error


def _first(
    values: dict[str, Any], path: Path, *names: str, default: int | None = None, most: int = MOST
) -> int:
    """Return the number under the first name that is there, not null and not 0."""
    name = next((name for name in names if values.get(name)), None)
    if name is None and default is not None:
        return default
    found = values.get(name or names[0])
    if type(found) is not int or not 0 < found <= most:
        there = f"{name} is {found!r:.60}" if name else f"none of {', '.join(names)} is there"
        raise ConfigError(f"{path}: {there}, expected a number, as an encoder's config has")
    return found
