"""What of a model's folder is loaded: weights in safetensors, and no code of its own.

A pickle, or a Python file beside the weights, may run anything. Who trusts a model's author says so
for one command: XDRAY_TRUST=pickle,remote_code, which --trust-pickle and --trust-remote-code set.
No config can say it, since a config may come from a stranger too.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xdray.errors import ConfigError
from xdray.header import config_values, resolve_model
from xdray.storage import fingerprint_files
from xdray.strict_json import parse_json

TRUST = "XDRAY_TRUST"
TRUSTS = ("pickle", "remote_code")
SAFE, PICKLES, CODE = "*.safetensors", "pytorch_model*.bin", "*.py"
INDEX = "*.index.json"
"""Says which of several files of weights holds which tensor."""
OURS = "xdray_bilstm"
"""Its code is modeling_bilstm of this package, never the copy in a folder."""


def trust_models(what: Sequence[str]) -> None:
    """Trust these of TRUSTS in this process and its workers; none: leave it to the environment."""
    if what:
        os.environ[TRUST] = ",".join(what)


def trusted(what: str) -> bool:
    """Whether the user trusts this one of TRUSTS."""
    return what in os.environ.get(TRUST, "").split(",")


def passed_on() -> dict[str, str]:
    """Environment by which workers know the same."""
    return {TRUST: os.environ[TRUST]} if TRUST in os.environ else {}


def loading() -> dict[str, Any]:
    """Arguments of each `from_pretrained` of a model; None: safetensors first, then a pickle.

    Without trust_remote_code transformers would ask on the terminal.
    """
    pickles = trusted("pickle")
    return {
        "use_safetensors": None if pickles else True,
        "trust_remote_code": trusted("remote_code"),
    }


def model_folder(model: str, weights: bool = True) -> Path:
    """Local folder of a model, fetched where it is on the Hub. Raises ConfigError.

    weights: whether it must hold some; else config.json and a tokenizer are enough.
    """
    folder = Path(resolve_model(model))
    if not folder.is_dir():
        folder = _fetched(model, [SAFE])
        if trusted("pickle") and not any(folder.glob(SAFE)):
            folder = _fetched(model, [PICKLES])
    _check_folder(model, folder, weights)
    return folder


def check_model(model: str, weights: bool = True) -> None:
    """Raise ConfigError for a local folder that may not be loaded; `model_folder` sees to others.

    weights: as there.
    """
    folder = Path(resolve_model(model))
    if folder.is_dir():
        _check_folder(model, folder, weights)


def teacher_fingerprint(model: str) -> str:
    """32 hex characters that change with a model's config.json, its weights, its trusted code."""
    folder = model_folder(model)
    names = [path.name for path in (*_weight_files(folder), *folder.glob(INDEX))]
    if trusted("remote_code"):
        names += [path.name for path in folder.glob(CODE)]
    return fingerprint_files(str(folder), ["config.json", *sorted(names)])


def _fetched(model: str, weights: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", *weights, "*.txt", "*.model"]
    patterns += [CODE] if trusted("remote_code") else []
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the Hub's client raises a dozen kinds
        raise ConfigError(
            f"{model}: no such folder, and the Hub did not give it ({type(error).__name__}: "
            f"{error}); check the name, the network, or HF_HUB_OFFLINE"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    safe = list(folder.glob(SAFE))
    return safe or list(folder.glob(PICKLES) if trusted("pickle") else [])


def _check_folder(model: str, folder: Path, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{model}: a folder that is no model: it holds no config.json")
    _check_code(model, folder)
    for index in folder.glob(INDEX):
        _check_index(model, index)
    if not weights or _weight_files(folder):
        return
    pickles = sorted(path.name for path in folder.glob(PICKLES))
    if pickles:
        raise ConfigError(
            f"{model}: its weights are {pickles[0]}, a pickle, expected model.safetensors; save it "
            "once with save_pretrained of transformers, or give --trust-pickle if you trust its "
            "author"
        )
    raise ConfigError(
        f"{model}: it holds no weights, expected model.safetensors (a pickle is fetched from the "
        "Hub with --trust-pickle only); save it once with save_pretrained of transformers"
    )


def _check_index(model: str, index: Path) -> None:
    """Refuse an index that names what is not a file of weights in the folder itself."""
    try:
        values = parse_json(index.read_bytes())
        names = set(values["weight_map"].values())
        files = {path.name for path in _weight_files(index.parent)}
        wrong = sorted(names - files, key=repr)
        if wrong or not names:
            found = f"{wrong[0]!r:.60}" if wrong else "no file"
            raise ValueError(f"names {found}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{model}: {index.name} {error}; expected a weight_map of files in safetensors that "
            "lie beside it (pickles with --trust-pickle only); save the model once more"
        ) from error


def _check_code(model: str, folder: Path) -> None:
    """Refuse a model that transformers can only load by running the model's own files."""
    values = config_values(folder / "config.json")
    kind = values.get("model_type")
    if "auto_map" not in values or kind == OURS or trusted("remote_code"):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if kind not in CONFIG_MAPPING_NAMES:
        raise ConfigError(
            f"{model}: model_type '{kind}' is none that transformers has, its code comes with the "
            "model and is not run; read that code and give --trust-remote-code, or name another "
            "model"
        )
