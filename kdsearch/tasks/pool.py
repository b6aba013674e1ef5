"""Every text that a search sees, tokenised once, as one set of rows: train, transfer, validation, held-out. Test rows stand apart."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdsearch.tasks.batches import Encoded, encode, join
from kdsearch.tasks.data import TaskData


@dataclass(frozen=True)
class Pool:
    """Row indices of each part in ``encoded``; ``test`` is encoded apart and only looked at by the final report."""

    encoded: Encoded
    train: np.ndarray
    transfer: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray
    test: Encoded
    classes: list[str]
    majority: float
    pad_id: int

    @property
    def key(self) -> str:
        """Content hash of the tokenised rows and of which part each belongs to."""
        sizes = [len(part) for part in (self.train, self.transfer, self.validation)]
        return _digest(f"{self.classes} {sizes}", self.encoded.ids, self.encoded.offsets, self.encoded.labels)

    @property
    def train_key(self) -> str:
        """Content hash of the labelled train rows alone: all that a fine-tuned teacher depends on."""
        rows = len(self.train)
        offsets = self.encoded.offsets[: rows + 1]
        return _digest(str(self.classes), self.encoded.ids[: offsets[-1]], offsets, self.encoded.labels[:rows])

    @property
    def measuring(self) -> np.ndarray:
        """Rows on which the divergence to the teacher is measured: validation and the held-out transfer text; labels are not needed."""
        return np.concatenate([self.validation, self.held_out])


def _digest(head: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(head.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def build(data: TaskData, tokenizer: Any, max_length: int) -> Pool:
    """Tokenise a task's texts."""
    order = [data.train, data.transfer, data.validation, data.held_out]
    parts = [encode(tokenizer, rows.texts, rows.labels, max_length) for rows in order]
    ends = np.cumsum([len(part) for part in parts])
    train, transfer, validation, held_out = (np.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True))
    test = encode(tokenizer, data.test.texts, data.test.labels, max_length)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Pool(join(parts), train, transfer, validation, held_out, test, data.classes, data.majority, pad_id)
