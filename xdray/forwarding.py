"""A model over tokens, without gradients: logits of all sentences in length-sorted batches."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdray.padding import pad, padded, token_budget_batches
from xdray.tokenised import Tokens, token_types

Forward = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input_ids (B, T), attention_mask (B, T), token_types (B, T) or None) -> logits (B, T, C) or
(B, C), on its own device."""


def predict_logits(
    forward: Forward, tokens: Tokens, batch_tokens: int, pad_id: int, num_labels: int
) -> NDArray[np.float32]:
    """(N, C) logits of every token, or (S, C) of every sentence as `tokens` say."""
    rows_out = len(tokens.lengths) if tokens.sentence_logits else len(tokens.ids)
    result = np.zeros((rows_out, num_labels), dtype=np.float32)
    types = token_types(tokens.word_ids, tokens.offsets)
    with torch.inference_mode():
        for rows in token_budget_batches(tokens.lengths, batch_tokens):
            input_ids, mask, index = pad(tokens.ids, tokens.offsets, rows, pad_id)
            real = mask.bool()
            its_types = None if types is None else padded(types[index], real.numpy())
            logits = forward(input_ids, mask, its_types).float().cpu()
            if tokens.sentence_logits:
                result[rows] = logits.numpy()
            else:
                result[index] = logits[real].numpy()
    return result
