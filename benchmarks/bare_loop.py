"""A bare PyTorch loop that does what configs/wikiann_en.yaml does, to hold xdray's time against.

No Ray, no files, no resume, no evaluation but the last: the teacher's outputs lie in RAM, sentences
are sorted by length once, batches of 64 of them shuffled. It imports nothing of xdray.

    python benchmarks/bare_loop.py models/wikiann-en-minilm ../shared/data/wikiann_en
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from seqeval.metrics import f1_score
from tokenizers import Encoding
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModelForTokenClassification, AutoTokenizer

BATCH = 64
Sentences = list[tuple[list[str], list[str]]]


class Student(nn.Module):
    """Embeddings, one BiLSTM layer, projection, GELU, head."""

    def __init__(self, table: Tensor, hidden: int, width: int, labels: int) -> None:
        """Start from `table`, (V, E)."""
        super().__init__()
        self.embeddings = nn.Embedding.from_pretrained(table, freeze=False)
        self.lstm = nn.LSTM(table.shape[1], hidden, bidirectional=True, batch_first=True)
        self.projection = nn.Linear(2 * hidden, width)
        self.head = nn.Linear(width, labels)
        self.dropout = nn.Dropout(0.2)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Projected states and logits of (B, T) ids."""
        rows = self.dropout(self.embeddings(ids))
        packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        projected = self.projection(self.dropout(states))
        return projected, self.head(nn.functional.gelu(projected))


def read_conll(path: Path) -> Sentences:
    """Words and tags of each sentence."""
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    pairs = [[line.split() for line in block.splitlines()] for block in blocks]
    return [([w for w, _ in block], [t for _, t in block]) for block in pairs]


def first_pieces(encoding: Encoding) -> list[tuple[int, int]]:
    """Position of the first piece of each word, and the word."""
    words = encoding.word_ids
    return [(k, w) for k, w in enumerate(words) if w is not None and w not in words[:k]]


def batches_of(ids: list[list[int]]) -> list[list[int]]:
    """Indices of sentences of like length, BATCH at a time."""
    order = sorted(range(len(ids)), key=lambda k: len(ids[k]))
    return [order[k : k + BATCH] for k in range(0, len(order), BATCH)]


def padded(rows: list[list[int]], fill: int = 0) -> Tensor:
    """(B, T) of lists of unequal length."""
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


@torch.inference_mode()
def annotate(teacher: Any, ids: list[list[int]], layer: int) -> list[tuple[Tensor, Tensor]]:
    """Hidden states (float16) and logits of each sentence."""
    outputs: list[Any] = [None] * len(ids)
    for batch in batches_of(ids):
        inputs = padded([ids[k] for k in batch])
        found = teacher(inputs, attention_mask=inputs != 0, output_hidden_states=True)
        for row, k in enumerate(batch):
            hidden = found.hidden_states[layer][row, : len(ids[k])]
            outputs[k] = (hidden.half().clone(), found.logits[row, : len(ids[k])].float().clone())
    return outputs


def start(table: Tensor, args: argparse.Namespace, labels: int) -> Student:
    """Return a student on the reduced table, entries of size one."""
    left, sizes, _ = torch.linalg.svd(table.double(), full_matrices=False)
    reduced = (left * sizes)[:, : args.embedding].float()
    reduced = reduced / reduced.square().mean().sqrt()
    return Student(reduced, args.hidden, table.shape[1], labels)


def train(
    student: Student,
    ids: list[list[int]],
    loss_of: Callable[[list[int], Tensor, Tensor, Tensor], Tensor],
    epochs: int,
    rate: float,
    autocast: Callable[[], torch.autocast],
) -> float:
    """Return the sentences a second of `epochs` epochs, the rate falling as a cosine."""
    batches = batches_of(ids)
    optimiser = torch.optim.Adam(student.parameters(), rate, fused=True)
    total, step, begun = epochs * len(batches), 0, time.monotonic()
    for _ in range(epochs):
        random.shuffle(batches)
        for batch in batches:
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / total))
            step += 1
            lengths = torch.tensor([len(ids[k]) for k in batch])
            with autocast():
                projected, logits = student(padded([ids[k] for k in batch]), lengths)
            real = torch.arange(int(lengths.max())) < lengths[:, None]
            loss_of(batch, projected.float(), logits.float(), real).backward()
            optimiser.step()
            optimiser.zero_grad()
    return epochs * len(ids) / (time.monotonic() - begun)


def gold_ids(sentences: Sentences, encodings: list[Encoding], ids: Any) -> list[list[int]]:
    """Tag of each first piece, -100 elsewhere."""
    rows = [[-100] * len(e.ids) for e in encodings]
    for row, (_, tags), encoding in zip(rows, sentences, encodings, strict=True):
        for position, word in first_pieces(encoding):
            row[position] = ids[tags[word]]
    return rows


@torch.inference_mode()
def score(student: Student, sentences: Sentences, encodings: list[Encoding], tags: Any) -> float:
    """Entity F1."""
    student.eval()
    answers: list[list[str]] = []
    for (words, _), encoding in zip(sentences, encodings, strict=True):
        row = torch.tensor([encoding.ids])
        best = student(row, torch.tensor([row.shape[1]]))[1][0].argmax(-1)
        answers.append(["O"] * len(words))
        for position, word in first_pieces(encoding):
            answers[-1][word] = tags[int(best[position])]
    found: Any = f1_score([gold for _, gold in sentences], answers)
    return found


def main() -> None:
    """Annotate, train through three stages, score test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path)
    parser.add_argument("--embedding", type=int, default=80)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--epochs", type=int, nargs=3, default=(4, 12, 3))
    parser.add_argument("--float32", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    teacher = AutoModelForTokenClassification.from_pretrained(args.teacher).eval()
    tags = teacher.config.id2label
    table = teacher.get_input_embeddings().weight.detach()

    def encode(sentences: list[list[str]]) -> list[Encoding]:
        return tokenizer(
            sentences, is_split_into_words=True, truncation=True, max_length=128
        ).encodings

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=not args.float32)

    lines = (args.data / "transfer.txt").read_text(encoding="utf-8").splitlines()
    ids = [e.ids for e in encode([line.split() for line in lines])]
    outputs = annotate(teacher if args.float32 else teacher.bfloat16(), ids, args.layer)
    print(f"teacher: {len(ids) / (time.monotonic() - started):.0f} sentences a second")

    labelled = read_conll(args.data / "train.txt")
    encodings = encode([words for words, _ in labelled])
    gold = gold_ids(labelled, encodings, teacher.config.label2id)

    def hidden_loss(batch: list[int], projected: Tensor, _: Tensor, real: Tensor) -> Tensor:
        wanted = torch.cat([outputs[k][0] for k in batch]).float()
        return nn.functional.mse_loss(projected[real], wanted)

    def logit_loss(batch: list[int], _: Tensor, logits: Tensor, real: Tensor) -> Tensor:
        wanted = torch.cat([outputs[k][1] for k in batch]).softmax(-1)
        found = logits[real].log_softmax(-1)
        return nn.functional.kl_div(found, wanted, reduction="batchmean")

    def label_loss(batch: list[int], _: Tensor, logits: Tensor, real: Tensor) -> Tensor:
        wanted = padded([gold[k] for k in batch], -100)[real]
        return nn.functional.cross_entropy(logits[real], wanted)

    student = start(table, args, len(tags))
    for epochs, its_ids, loss, rate in (
        (args.epochs[0], ids, hidden_loss, 2e-3),
        (args.epochs[1], ids, logit_loss, 2e-3),
        (args.epochs[2], [e.ids for e in encodings], label_loss, 5e-4),
    ):
        speed = train(student, its_ids, loss, epochs, rate, autocast) if epochs else 0
        print(f"{loss.__name__}: {epochs} epochs, {speed:.0f} sentences a second")
    trained = time.monotonic() - started
    test = read_conll(args.data / "test.txt")
    found = score(student, test, encode([words for words, _ in test]), tags)
    print(f"test entity F1 {found:.4f}; {trained:.0f} s to the end of training")


if __name__ == "__main__":
    main()
