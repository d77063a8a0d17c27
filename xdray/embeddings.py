"""The student's token embeddings from the teacher's."""

import torch
from torch import Tensor

from xdray.errors import ConfigError

SVD_ROWS = 16384  # rows of the teacher's table that are held in float64 at once


def svd_embeddings(table: Tensor, width: int, teacher_ids: Tensor) -> Tensor:
    """Reduce the teacher's embeddings to `width`, for the tokens that the student keeps.

    table: (V_teacher, W_table) of the fine-tuned teacher. teacher_ids: (V_student,) int64, the
    teacher's id of each student id. Returns (V_student, width) float32: the kept rows on their
    leading right singular vectors, that is U * S of their SVD, not centred (P1 table 7: SVD 88.6,
    centred PCA 88.3, random 87.4).

    The singular vectors are those of the eigen-decomposition of rows' * rows in float64; each is
    turned so that its largest entry is positive. Nothing is rescaled here.
    Raises ConfigError where `width` is more than the teacher has.
    """
    if width > table.shape[1]:
        raise ConfigError(
            f"student.embedding: {width}, but the teacher's token embeddings are {table.shape[1]} "
            f"wide and an SVD cannot widen them; set {table.shape[1]} or less, or "
            "student.embedding_init: random"
        )
    table = table.detach()
    chunks = teacher_ids.to(table.device).split(SVD_ROWS)
    gram = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64, device=table.device)
    for ids in chunks:
        rows = table[ids].double()
        gram += rows.T @ rows
    _, vectors = torch.linalg.eigh(gram)  # ascending
    basis = vectors[:, -width:].flip(1)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * largest.sign()
    return torch.cat([(table[ids].double() @ basis).float() for ids in chunks])


def aligned_embeddings(table: Tensor, start: Tensor, teacher_ids: Tensor) -> Tensor:
    """Give the teacher's embeddings in the basis of another encoder's of the same vocabulary.

    table: (V, W_table) of the teacher; start: (V, W). Returns (V_student, W) float32: the SVD of
    the teacher's to width W, or to its own where that is less, times the matrix that brings it
    nearest to `start` in least squares over all V. The student's layers, which come from that
    encoder, then read what they know.
    """
    every = torch.arange(len(table))
    reduced = svd_embeddings(table, min(start.shape[1], table.shape[1]), every).double()
    target = start.detach().double()
    found = torch.linalg.solve(reduced.T @ reduced, reduced.T @ target)
    return (reduced[teacher_ids] @ found).float()
