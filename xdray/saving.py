"""A student's folder on disk: written whole, read again, and compared with what is in memory."""

import copy
import shutil
import uuid
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xdray.errors import ExportError
from xdray.learner import logits_of, quiet_transformers
from xdray.storage import to_disk
from xdray.student import Student
from xdray.weights import loading


def save_student(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    card: str | None = None,
) -> None:
    """Write a Hugging Face folder: weights (safetensors), config, tokenizer, card as README.md.

    The folder appears whole or not at all, in place of one that is there. The tokenizer pads at the
    end and cuts to the student's max_length. A BiLSTM's folder holds its modelling file, for
    `trust_remote_code`.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stray in folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 32}*"):  # of a killed run
        shutil.rmtree(stray, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = student.max_length
    try:
        with quiet_transformers():
            student.model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if card is not None:
            (unfinished / "README.md").write_text(card, encoding="utf-8")
        for path in unfinished.iterdir():
            to_disk(path)
        _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    if not folder.exists():
        unfinished.rename(folder)
        return
    old = unfinished.with_name(f"{unfinished.name}.old")
    folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old)


def load_student(folder: str | Path, model_class: str) -> PreTrainedModel:
    """Load the model that `save_student` wrote, in eval mode.

    Raises ExportError when there is none, or when weights are missing.
    """
    try:
        with quiet_transformers():
            model, found = getattr(transformers, model_class).from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **loading()
            )
    except Exception as error:  # over a damaged config.json transformers raises a dozen kinds
        reason = " ".join(str(error).split())
        raise ExportError(f"{folder}: no student can be loaded from it: {reason}") from error
    if found["missing_keys"]:
        raise ExportError(
            f"{folder}: weights are missing: {sorted(found['missing_keys'])}; export it again"
        )
    return model


def check_saved(student: Student, reloaded: PreTrainedModel, folder: Path) -> None:
    """Raise ExportError unless the saved student repeats the logits of the one in memory."""
    student = student.to("cpu").eval()
    ids = torch.arange(min(64, reloaded.config.vocab_size) // 2 * 2).reshape(2, -1)
    mask = torch.ones_like(ids)
    mask[1, ids.shape[1] // 2 :] = 0
    with torch.inference_mode():
        ours, theirs = (
            model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            for model in (student.model, reloaded)
        )
        pairs = [(logits_of(ours), logits_of(theirs))]
        pairs += [(ours.hidden_states[-1], theirs.hidden_states[-1])]
        difference = max(float((a - b).abs().amax()) for a, b in pairs if a.numel())
    if not difference <= 1e-5:
        raise ExportError(
            f"{folder}: the reloaded student's logits differ by {difference:.2g}, expected none; "
            "delete the folder and run again"
        )
