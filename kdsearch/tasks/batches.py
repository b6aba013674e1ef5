"""Tokenised rows as flat arrays, and seeded batches of about equally long rows: nearly no padding, the same stream for every candidate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

UNLABELLED = -100
# Lengths are padded to multiples of this: of 8 a step takes 1.03 to 1.12 times as long, odd ones make matrix products slow.
LENGTH_STEP = 4


@dataclass(frozen=True)
class Encoded:
    """Token ids of n rows, one behind the other: row i is ``ids[offsets[i]:offsets[i + 1]]``; label -100 means none."""

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row."""
        return np.diff(self.offsets)

    def span(self, row: int) -> tuple[int, int]:
        """Where a row's ids start and end."""
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """Padded rows on a device: ids and mask [batch, seq], labels [batch]; each row's index in its :class:`Encoded`; the stream's epoch."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    rows: np.ndarray
    epoch: int = 0


def encode(tokenizer: Any, texts: list[str], labels: list[int] | None, max_length: int) -> Encoded:
    """Tokenise once, cut at ``max_length`` tokens (special tokens included)."""
    ids = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"] if texts else []
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    flat = np.concatenate([np.asarray(row, dtype=np.int32) for row in ids]) if ids else np.zeros(0, dtype=np.int32)
    known = np.asarray(labels, dtype=np.int64) if labels is not None else np.full(len(texts), UNLABELLED, dtype=np.int64)
    return Encoded(flat, offsets, known)


def join(parts: list[Encoded]) -> Encoded:
    """The rows of several sets as one."""
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]).astype(np.int64)
    return Encoded(np.concatenate([part.ids for part in parts]), offsets, np.concatenate([part.labels for part in parts]))


def bucket(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int, multiple: int = LENGTH_STEP) -> list[np.ndarray]:
    """Rows sorted by length (ties keep their order), cut so that a batch padded to a ``multiple`` holds at most ``batch_tokens`` tokens,
    or one row."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    batches, start = [], 0
    padded = _round_up(lengths[ordered], multiple)
    while start < len(ordered):
        size = max(1, batch_tokens // int(padded[start]))
        while size > 1 and int(padded[min(start + size, len(ordered)) - 1]) * size > batch_tokens:
            size -= 1
        batches.append(ordered[start : start + size])
        start += size
    return batches


def stream(  # noqa: PLR0913
    labelled: np.ndarray,
    transfer: np.ndarray,
    lengths: np.ndarray,
    batch_tokens: int,
    share: float,
    seed: int,
    *,
    multiple: int = LENGTH_STEP,
) -> Iterator[tuple[int, np.ndarray]]:
    """Endless batches as (epoch, row indices); an epoch holds all labelled rows and, of the transfer rows, what makes up ``share`` of all.

    The transfer rows go on from epoch to epoch until each was seen, then start again in a new order.
    """
    wanted = round(len(labelled) * share / (1 - share)) if len(transfer) else 0
    waiting = np.zeros(0, dtype=np.int64)
    epoch = 0
    while True:
        random = np.random.default_rng([seed, epoch])
        while len(waiting) < wanted:
            waiting = np.concatenate([waiting, random.permutation(transfer)])
        drawn, waiting = waiting[:wanted], waiting[wanted:]
        batches = bucket(random.permutation(np.concatenate([labelled, drawn])), lengths, batch_tokens, multiple)
        for position in random.permutation(len(batches)):
            yield epoch, batches[position]
        epoch += 1


def collate(encoded: Encoded, rows: np.ndarray, pad_id: int, device: torch.device, epoch: int = 0, multiple: int = LENGTH_STEP) -> Batch:
    """Pad the rows to the longest of them, rounded up to a multiple."""
    lengths = encoded.lengths[rows]
    width = int(_round_up(lengths, multiple).max())
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.arange(width)[None, :] < lengths[:, None]
    ids[mask] = np.concatenate([encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]] for row in rows])
    tensors = [torch.from_numpy(array).to(device) for array in (ids, mask.astype(np.int64), encoded.labels[rows])]
    return Batch(*tensors, rows=rows, epoch=epoch)


def _round_up(lengths: np.ndarray, multiple: int) -> np.ndarray:
    return -(-lengths // multiple) * multiple
