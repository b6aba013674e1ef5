"""What models answer on rows, and the teacher's answers kept on disk: computed once per study."""

import hashlib
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
    """A teacher's cached outputs over a pool: per signal one flat memory-mapped array, per row (logits) or per token.

    ``starts`` [rows]: where each row's tokens start, -1 for a row that students are not trained on.
    """

    arrays: dict[str, np.ndarray]
    starts: np.ndarray
    lengths: np.ndarray

    def holds(self, rows: np.ndarray) -> bool:
        """Whether all of these rows can be told."""
        return bool((self.starts[rows] >= 0).all())

    def batch(self, signals: frozenset[str], batch: Batch) -> dict[str, Tensor]:
        """The named signals of a batch's rows: logits [batch, classes], others [batch, seq, width], zero in padding."""
        width, device = batch.input_ids.shape[1], batch.input_ids.device
        starts, lengths = self.starts[batch.rows], self.lengths[batch.rows]
        places = starts[:, None] + np.minimum(np.arange(width)[None, :], lengths[:, None] - 1)
        found: dict[str, Tensor] = {}
        for signal in signals:
            if signal == "logits":
                found[signal] = torch.from_numpy(self.arrays[signal][batch.rows]).to(device)
                continue
            values = torch.from_numpy(self.arrays[signal][places]).view(torch.bfloat16).to(device)
            found[signal] = values.masked_fill_(batch.attention_mask[:, :, None] == 0, 0)  # read into memory of its own
        return found


def told_now(model: PreTrainedModel, signals: frozenset[str], batch: Batch) -> dict[str, Tensor]:
    """What :meth:`Outputs.batch` tells, by a forward pass of the model on this batch: for rows that are not kept."""
    model.to(batch.input_ids.device)  # pyright: ignore[reportArgumentType] - transformers' own annotation
    with explicit_attention(model), torch.no_grad():
        found = observe(model, batch, signals)
    padding = batch.attention_mask[:, :, None] == 0
    return {
        signal: values.float() if signal == "logits" else _by_token(values).to(torch.bfloat16).masked_fill(padding, 0)
        for signal, values in found.items()
    }


def _by_token(values: Tensor) -> Tensor:
    """[batch, seq, channels], of heads side by side where values are [batch, heads, seq, head size]."""
    return values.transpose(1, 2).flatten(2) if values.ndim == 4 else values


def outputs(
    model: PreTrainedModel,
    key: str,
    pool: Pool,
    signals: frozenset[str],
    device: str,
    progress: Progress,
    trusted: bool = False,
    rows: np.ndarray | None = None,
) -> Outputs:
    """The teacher's outputs over the pool: read from disk when they are there, else computed in one pass and kept.

    Logits are float32 and stand for every row that is told or measured; everything else is bfloat16 and stands for the rows that students
    are trained on: ``rows``, or all of train and transfer. A folder is written aside and renamed, so it is whole or absent. One that is
    damaged is made again: its sizes and, unless another process just has (``trusted``), its checksums are looked at.

    Raises:
        UserError: the disk has no room for them.
    """
    some = [] if rows is None else [hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()]
    folder = cache_folder() / "outputs" / digest(key, pool.key, *sorted(signals), str(CACHE_VERSION), *some)
    trained = np.arange(len(pool.train) + len(pool.transfer)) if rows is None else rows  # train and transfer stand first in a pool
    lengths, starts = pool.encoded.lengths, np.full(len(pool.encoded), -1, dtype=np.int64)
    starts[trained] = np.cumsum(lengths[trained]) - lengths[trained]
    shapes = {signal: len(pool.encoded) if signal == "logits" else int(lengths[trained].sum()) for signal in signals}
    with one_at_a_time(folder):
        arrays = _read(folder, shapes, trusted)
        if arrays is None:
            _refuse_too_large(model, pool, signals, folder, device, int(lengths[trained].sum()))
            with written_aside(folder) as aside:
                _compute(model, pool, signals, aside, device, progress, starts)
                sums = {path.name: checksum(path) for path in aside.iterdir()}
                (aside / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            arrays = _read(folder, shapes, trusted=True)
    assert arrays is not None
    return Outputs(arrays, starts, lengths)


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


def _refuse_too_large(model: PreTrainedModel, pool: Pool, signals: frozenset[str], folder: Path, device: str, tokens: int) -> None:
    """Compare what the outputs need, from those of one row, with what the disk has."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _, one = next(forward(model, pool.encoded, np.arange(1), pool.pad_id, signals - {"logits"}, device))
    # [batch, seq, width] or [batch, heads, seq, head size]
    channels = {signal: values.shape[-1] * (values.shape[1] if values.ndim == 4 else 1) for signal, values in one.items()}
    free = shutil.disk_usage(folder.parent).free
    needed = 2 * tokens * sum(channels.values()) + 4 * len(pool.encoded) * classes_of(model.config)
    if needed > free:
        raise UserError(
            f"cache folder: the teacher's outputs need {needed / 1e9:.1f} GB ({len(channels)} signals of {tokens:,} tokens), and the disk "
            f"of {cache_folder()} has {free / 1e9:.1f} GB free; set KDSEARCH_CACHE to another, lower task.transfer.train, or leave "
            "knowledge types out of the space"
        )


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
    with explicit_attention(model), threads(threads_for(model, FORWARD_TOKENS)):
        for some in bucket(rows, encoded.lengths, FORWARD_TOKENS):
            batch = collate(encoded, some, pad_id, helper.device)
            with torch.inference_mode(), helper.autocast():
                answer = observe(model, batch, signals)
            yield batch, answer


def _compute(
    model: PreTrainedModel, pool: Pool, signals: frozenset[str], folder: Path, device: str, progress: Progress, starts: np.ndarray
) -> None:
    encoded, done, lengths = pool.encoded, 0, pool.encoded.lengths
    trained = np.flatnonzero(starts >= 0)
    logits = np.full((len(encoded), classes_of(model.config)), np.nan, dtype=np.float32)
    total, files = int(lengths[trained].sum() + lengths[pool.measuring].sum()), dict[str, np.ndarray]()
    for rows, wanted in ((trained, signals), (pool.measuring, frozenset({"logits"}))):
        for batch, answer in forward(model, encoded, rows, pool.pad_id, wanted, device):
            places = np.concatenate([int(starts[row]) + np.arange(int(lengths[row])) for row in batch.rows])
            if "logits" in answer:
                logits[batch.rows] = answer.pop("logits").float().cpu().numpy()
            for signal, values in answer.items():
                flat = _by_token(values)[batch.attention_mask.bool()].to(torch.bfloat16).cpu().view(torch.int16).numpy()
                if signal not in files:
                    files[signal] = np.lib.format.open_memmap(
                        folder / f"{signal}.npy", mode="w+", dtype=flat.dtype, shape=(int(lengths[trained].sum()), flat.shape[1])
                    )
                files[signal][places] = flat
            done += len(places)
            progress("caching the teacher's outputs", done, total)
    for file in files.values():
        file.flush()  # pyright: ignore[reportAttributeAccessIssue] - a memmap
    np.save(folder / "logits.npy", logits)
