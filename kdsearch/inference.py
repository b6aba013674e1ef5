"""What models answer on rows, and the teacher's answers kept on disk: computed once per study."""

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdsearch.distillation.loop import Progress
from kdsearch.distillation.signals import explicit_attention, observe
from kdsearch.errors import UserError
from kdsearch.kept import CACHE_VERSION, digest, one_at_a_time, written_aside
from kdsearch.machine import accelerator, threads, threads_for
from kdsearch.resources import cache_folder
from kdsearch.students.families import classes_of
from kdsearch.tasks.batches import Batch, Encoded, bucket, collate
from kdsearch.tasks.pool import Pool

FORWARD_TOKENS, CHECKSUMS, BLOCK = 2048, "checksums.json", 1 << 24


@dataclass(frozen=True)
class Outputs:
    """A teacher's cached outputs over a pool: per signal one flat memory-mapped array, per row (logits) or per token."""

    arrays: dict[str, np.ndarray]
    offsets: np.ndarray

    def batch(self, signals: frozenset[str], batch: Batch) -> dict[str, Tensor]:
        """The named signals of a batch's rows: logits [batch, classes], others [batch, seq, width], zero in padding."""
        width, device = batch.input_ids.shape[1], batch.input_ids.device
        starts, ends = self.offsets[batch.rows], self.offsets[batch.rows + 1]
        places = np.minimum(starts[:, None] + np.arange(width)[None, :], ends[:, None] - 1)
        found: dict[str, Tensor] = {}
        for signal in signals:
            if signal == "logits":
                found[signal] = torch.from_numpy(self.arrays[signal][batch.rows]).to(device)
                continue
            values = torch.from_numpy(self.arrays[signal][places]).view(torch.bfloat16).to(device)
            found[signal] = values.masked_fill_(batch.attention_mask[:, :, None] == 0, 0)  # read into memory of its own
        return found


def outputs(
    model: PreTrainedModel, key: str, pool: Pool, signals: frozenset[str], device: str, progress: Progress, trusted: bool = False
) -> Outputs:
    """The teacher's outputs over the pool: read from disk when they are there, else computed in one pass and kept.

    Logits are float32 and stand for every row; everything else is bfloat16 and stands for the rows that students are trained on, which
    come first in a pool. A folder is written aside and renamed, so it is whole or absent. One that is damaged is made again: its sizes
    and, unless another process just has (``trusted``), its checksums are looked at.

    Raises:
        UserError: the disk has no room for them.
    """
    folder = cache_folder() / "outputs" / digest(key, pool.key, *sorted(signals), str(CACHE_VERSION))
    shapes = {signal: len(pool.encoded) if signal == "logits" else _trained_tokens(pool) for signal in signals}
    with one_at_a_time(folder):
        arrays = _read(folder, shapes, trusted)
        if arrays is None:
            _refuse_too_large(model, pool, signals, folder, device)
            with written_aside(folder) as aside:
                _compute(model, pool, signals, aside, device, progress)
                sums = {path.name: checksum(path) for path in aside.iterdir()}
                (aside / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            arrays = _read(folder, shapes, trusted=True)
    assert arrays is not None
    return Outputs(arrays, pool.encoded.offsets)


def checksum(path: Path) -> int:
    """CRC-32 of a file: some seconds for gigabytes, so that bytes that changed on the disk are noticed."""
    found = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            found = zlib.crc32(block, found)
    return found


def _read(folder: Path, shapes: dict[str, int], trusted: bool) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where one is missing, cut off, changed, or of another length."""
    try:
        if not trusted:
            sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
            if any(sums.get(f"{signal}.npy") != checksum(folder / f"{signal}.npy") for signal in shapes):
                return None
        arrays = {signal: np.load(folder / f"{signal}.npy", mmap_mode=None if signal == "logits" else "r") for signal in shapes}
    except (OSError, ValueError, EOFError):
        return None
    return arrays if all(len(arrays[signal]) == length for signal, length in shapes.items()) else None


def _refuse_too_large(model: PreTrainedModel, pool: Pool, signals: frozenset[str], folder: Path, device: str) -> None:
    """Compare what the outputs need, from those of one row, with what the disk has."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _, one = next(forward(model, pool.encoded, np.arange(1), pool.pad_id, signals - {"logits"}, device))
    # [batch, seq, width] or [batch, heads, seq, head size]
    channels = {signal: values.shape[-1] * (values.shape[1] if values.ndim == 4 else 1) for signal, values in one.items()}
    tokens, free = _trained_tokens(pool), shutil.disk_usage(folder.parent).free
    needed = 2 * tokens * sum(channels.values()) + 4 * len(pool.encoded) * classes_of(model.config)
    if needed > free:
        raise UserError(
            f"cache folder: the teacher's outputs need {needed / 1e9:.1f} GB ({len(channels)} signals of {tokens:,} tokens), and the disk "
            f"of {cache_folder()} has {free / 1e9:.1f} GB free; set KDSEARCH_CACHE to another, lower task.transfer.train, or leave "
            "knowledge types out of the space"
        )


def _trained_tokens(pool: Pool) -> int:
    """Tokens of the rows that students are trained on; train and transfer stand first in a pool."""
    return int(pool.encoded.offsets[len(pool.train) + len(pool.transfer)])


def predict(model: PreTrainedModel, encoded: Encoded, rows: np.ndarray, pad_id: int, device: str) -> np.ndarray:
    """Logits [rows, classes] of a model over some rows, in the order of ``rows``."""
    position = {int(row): place for place, row in enumerate(rows)}
    found = np.zeros((len(rows), classes_of(model.config)), dtype=np.float32)
    for batch, answer in forward(model, encoded, rows, pad_id, frozenset({"logits"}), device):
        found[[position[int(row)] for row in batch.rows]] = answer["logits"].float().cpu().numpy()
    return found


def forward(
    model: PreTrainedModel, encoded: Encoded, rows: np.ndarray, pad_id: int, signals: frozenset[str], device: str
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Inference over rows in length buckets."""
    helper = accelerator(device)
    model.to(helper.device).eval()
    with explicit_attention(model), threads(threads_for(model, FORWARD_TOKENS // 3)):  # a step is three forward passes
        for some in bucket(rows, encoded.lengths, FORWARD_TOKENS):
            batch = collate(encoded, some, pad_id, helper.device)
            with torch.inference_mode(), helper.autocast():
                answer = observe(model, batch, signals)
            yield batch, answer


def _compute(model: PreTrainedModel, pool: Pool, signals: frozenset[str], folder: Path, device: str, progress: Progress) -> None:
    encoded, done = pool.encoded, 0
    trained = len(pool.train) + len(pool.transfer)
    logits, sizes = np.zeros((len(encoded), classes_of(model.config)), dtype=np.float32), _trained_tokens(pool)
    files: dict[str, np.ndarray] = {}
    for rows, wanted in ((np.arange(trained), signals), (np.arange(trained, len(encoded)), frozenset({"logits"}))):
        for batch, answer in forward(model, encoded, rows, pool.pad_id, wanted, device):
            tokens = batch.attention_mask.bool()
            places = np.concatenate([np.arange(*encoded.offsets[[row, row + 1]].tolist()) for row in batch.rows])
            logits[batch.rows] = answer.pop("logits").float().cpu().numpy() if "logits" in answer else 0
            for signal, values in answer.items():
                merged = values.transpose(1, 2).flatten(2) if values.ndim == 4 else values
                flat = merged[tokens].to(torch.bfloat16).cpu().view(torch.int16).numpy()
                if signal not in files:
                    files[signal] = np.lib.format.open_memmap(
                        folder / f"{signal}.npy", mode="w+", dtype=flat.dtype, shape=(sizes, flat.shape[1])
                    )
                files[signal][places] = flat
            done += len(places)
            progress("caching the teacher's outputs", done, int(encoded.offsets[-1]))
    for file in files.values():
        file.flush()  # pyright: ignore[reportAttributeAccessIssue] - a memmap
    np.save(folder / "logits.npy", logits)
