"""What every student of a run starts from: its tokenizer, its embeddings, its ids."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from xdray.config import Config
from xdray.corpus import Sentence
from xdray.storage import fingerprint, write_bytes_atomic
from xdray.student import svd_embeddings
from xdray.targets import TargetView
from xdray.tasks.tagging import tokenise, words_and_tags
from xdray.teacher import embedding_table
from xdray.tokens import load_tokenizer
from xdray.vocabulary import prune_tokenizer


def prepare_start(
    config: Config, folder: Path, teacher: str, transfer: TargetView, train: Sequence[Sentence]
) -> Path:
    """Write what every student starts from: tokenizer, embeddings, teacher id to student id.

    The vocabulary is that of the teacher, or cut to the tokens of train and transfer text (P1
    section 2.1); the embeddings are the SVD of the teacher's (P1 section 2.2).
    """
    key = fingerprint(
        [
            transfer.fingerprint,
            [sentence.words for sentence in train],
            config.tokens.model_dump(mode="json"),
            [config.student.embedding, config.student.embedding_init],
        ]
    )
    done = folder / "start.json"  # written last
    if done.is_file() and json.loads(done.read_text(encoding="utf-8"))["key"] == key:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = load_tokenizer(teacher)
    table = embedding_table(teacher)
    teacher_ids = student_ids = np.arange(len(table))
    if config.tokens.vocabulary == "pruned":
        used = seen_tokens(transfer, len(table))
        words, _ = words_and_tags(train, config.tokens.words)
        used[tokenise(tokenizer, words, config.tokens.max_length)[0].ids] = True
        pruned = prune_tokenizer(tokenizer, used)
        tokenizer, teacher_ids, student_ids = (
            pruned.tokenizer,
            pruned.teacher_ids,
            pruned.student_ids,
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if config.student.embedding_init == "svd":
        embeddings = svd_embeddings(table, config.student.embedding, torch.from_numpy(teacher_ids))
        save_file({"embeddings": embeddings}, folder / "embeddings.safetensors")
    np.save(folder / "student_ids.npy", student_ids)
    write_bytes_atomic(str(done), json.dumps({"key": key}).encode())
    return folder


def seen_tokens(view: TargetView, vocab_size: int) -> NDArray[np.bool_]:
    """(V,) True on the teacher's tokens that occur in the transfer text."""
    seen = np.zeros(vocab_size, dtype=bool)
    for shard in range(len(view.shard_ids)):
        seen[view.load_shard(shard, ()).ids] = True
    return seen
