"""What every student of a run starts from: its tokenizer, its embeddings, its ids."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from xdray.config import Config, StudentConfig
from xdray.corpus import Sentence
from xdray.embeddings import aligned_embeddings, svd_embeddings
from xdray.encoders import cut_encoder, set_embeddings, spaced_layers, token_table
from xdray.header import read_header
from xdray.learner import quiet_transformers
from xdray.reading import own_tokenizer
from xdray.storage import file_sizes, fingerprint, read_object, write_json
from xdray.targets import TargetView
from xdray.task import Task
from xdray.teacher import embedding_table
from xdray.tokens import load_tokenizer
from xdray.vocabulary import prune_tokenizer
from xdray.weights import model_folder


def prepare_start(
    config: Config,
    folder: Path,
    teacher: str,
    task: Task,
    transfer: TargetView,
    train: Sequence[Sentence],
) -> Path:
    """Write what every student starts from: tokenizer, embeddings, teacher id to student id.

    The vocabulary is that of the teacher, or cut to the tokens of train and transfer text (P1
    section 2.1); the embeddings are the SVD of the teacher's (P1 section 2.2).
    """
    key = fingerprint(
        [
            transfer.fingerprint,
            transfer.text,
            [str(sentence.content) for sentence in train],
            config.tokens.model_dump(mode="json"),
            start_fields(config.student),
        ]
    )
    done = folder / "start.json"  # written last
    if done.is_file() and read_object(str(done)) == {"key": key, "files": _sizes(folder)}:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    own = own_tokenizer(config, teacher)
    tokenizer = load_tokenizer(own or teacher)
    table = embedding_table(teacher, task)
    teacher_ids = student_ids = np.arange(len(tokenizer))  # a table may be rounded up to more
    if config.tokens.vocabulary == "pruned":
        used = seen_tokens(transfer, len(table) if own is None else len(tokenizer))
        used[task.tokens(tokenizer, train)[0].ids] = True
        pruned = prune_tokenizer(tokenizer, used)
        tokenizer, teacher_ids, student_ids = (
            pruned.tokenizer,
            pruned.teacher_ids,
            pruned.student_ids,
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if config.student.kind == "encoder":
        _save_encoder(config.student, teacher, table, torch.from_numpy(teacher_ids), folder)
        tokenizer.save_pretrained(folder / "encoder")  # a whole model: what is not distilled
    elif config.student.embedding_init == "svd":
        embeddings = svd_embeddings(table, config.student.embedding, torch.from_numpy(teacher_ids))
        save_file({"embeddings": embeddings}, folder / "embeddings.safetensors")
    np.save(folder / "student_ids.npy", student_ids)
    write_json(str(done), {"key": key, "files": _sizes(folder)})
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a start: one that was cut off since makes it anew."""
    return {k: size for k, size in file_sizes(str(folder)).items() if k != "start.json"}


def start_fields(student: StudentConfig) -> list[Any]:
    """Fields of a student that decide what its start holds."""
    if student.kind == "encoder":
        its = ["encoder", student.start, student.layers, student.start_layers]
        its += [student.intermediate] if student.intermediate is not None else []
        return [*its, "aligned"] if student.embedding_init == "aligned" else its
    return [student.embedding_init, student.embedding]


def _save_encoder(
    student: StudentConfig, teacher: str, table: Tensor, teacher_ids: Tensor, folder: Path
) -> None:
    """Write the layers and embeddings that a student of kind encoder starts from."""
    origin = str(model_folder(teacher if student.start == "teacher" else student.start))
    layers = student.start_layers or spaced_layers(student.layers, read_header(origin).num_layers)
    with quiet_transformers():
        model = cut_encoder(origin, layers, teacher_ids, student.intermediate)
        if student.embedding_init == "aligned":
            rows = torch.arange(int(teacher_ids.max()) + 1)
            start = token_table(cut_encoder(origin, [1], rows))
            set_embeddings(model, aligned_embeddings(table[rows], start, teacher_ids))
        model.save_pretrained(folder / "encoder")


def seen_tokens(view: TargetView, vocab_size: int) -> NDArray[np.bool_]:
    """(V,) True on the tokens that occur in the transfer text."""
    seen = np.zeros(vocab_size, dtype=bool)
    if view.seen is not None:
        seen[list(view.seen)] = True
        return seen
    for shard in range(len(view.shard_ids)):
        seen[view.load_text(shard).ids] = True
    return seen
