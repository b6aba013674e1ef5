"""The teacher's calibration: made once per study from about 1,000 of its texts, and kept on disk by content like the teacher's outputs."""

import zipfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from kdsearch import cost
from kdsearch.candidate import Initialization
from kdsearch.distillation.loop import Progress
from kdsearch.distillation.signals import explicit_attention
from kdsearch.inference import FORWARD_TOKENS
from kdsearch.kept import digest, one_at_a_time, written_aside
from kdsearch.machine import accelerator, threads, threads_for
from kdsearch.resources import cache_folder
from kdsearch.students.families import depth_of, sizes_of, tensors_of
from kdsearch.students.importance import Calibration, calibrate
from kdsearch.students.removal import dropped
from kdsearch.tasks.batches import bucket, collate
from kdsearch.tasks.pool import Pool
from kdsearch.teacher import weights_key

VERSION = 1
ROWS, REMOVAL_ROWS = 1000, 250  # removal takes N (N + 1) / 2 passes
MOMENTS, FILE = ("second", "mean"), "calibration.npz"


def parts_of(starts: Iterable[Initialization]) -> frozenset[str]:
    """Which parts of a calibration some initializations choose by; empty when none is needed."""
    needed: set[str] = set()
    for start in starts:
        needed |= {"scores"} if start.layers == "important" or start.width == "importance" else set()
        needed |= {"scores", "moments"} if start.width == "pca" else set()
        needed |= {"scores", "removal"} if start.layers == "removal" else set()
    return frozenset(needed)


def rows_of(pool: Pool, seed: int) -> np.ndarray:
    """The texts to calibrate on, of those that students are trained on: train and transfer, drawn by the seed."""
    trained = np.concatenate([pool.train, pool.transfer])
    return np.random.default_rng(seed).permutation(trained)[:ROWS]


def work(config: PretrainedConfig, parts: frozenset[str], texts: int, tokens: float) -> float:
    """About how many FLOPs a calibration takes that has this many texts of so many tokens to draw from.

    Scores take a forward pass and half as much again to add up; moments 2 d^2 per token and norm, in float64 at half the rate; removal of N
    layers one by one the passes of students of N - 1 layers, N - 2 .. each as often as layers are left.
    """
    one, depth, width = cost.flops(config, 1, int(tokens)), depth_of(config), sizes_of(config)["width"]
    norms = sum(roles == ("width",) and name.endswith(".weight") for name, roles in tensors_of(config).items())
    found = 0.0
    if "scores" in parts:
        found += 1.5 * min(ROWS, texts) * one
    if "moments" in parts:
        found += 2 * min(ROWS, texts) * tokens * norms * 2 * width**2
    if "removal" in parts:
        found += min(REMOVAL_ROWS, texts) * one * (1 + sum(left * (left - 1) / depth for left in range(2, depth + 1)))
    return found


def load(model: PreTrainedModel, pool: Pool, parts: frozenset[str], seed: int, device: str, progress: Progress) -> Calibration | None:
    """The teacher's calibration with these parts: read from disk when it is there, else made and kept; None when no part is asked for.

    Weights, rows, seed and parts decide which one is taken. A damaged file is made again.
    """
    if not parts:
        return None
    folder = cache_folder() / "calibrations" / digest(weights_key(model), pool.key, str(seed), *sorted(parts), str(VERSION))
    with one_at_a_time(folder):
        found = _read(folder / FILE, depth_of(model.config))
        if found is None:
            with written_aside(folder) as aside:
                _write(aside / FILE, _made(model, pool, parts, seed, device, progress))
            found = _read(folder / FILE, depth_of(model.config))
    assert found is not None
    return found


def _made(model: PreTrainedModel, pool: Pool, parts: frozenset[str], seed: int, device: str, progress: Progress) -> Calibration:
    place, rows, stages = accelerator(device).device, rows_of(pool, seed), 1 + ("removal" in parts)
    model.to(place).eval()

    def batches(some: np.ndarray) -> list:
        return [collate(pool.encoded, few, pool.pad_id, place) for few in bucket(some, pool.encoded.lengths, FORWARD_TOKENS)]

    progress("calibrating on the teacher", 0, stages)
    with explicit_attention(model), threads(threads_for(model, FORWARD_TOKENS // 3)):
        found = calibrate(model, batches(rows), moments="moments" in parts)
        progress("calibrating on the teacher", 1, stages)
        if "removal" in parts:
            found = replace(found, dropped=dropped(model, batches(rows[:REMOVAL_ROWS])))
            progress("calibrating on the teacher", 2, stages)
    return found


def _write(path: Path, made: Calibration) -> None:
    flat = {}
    for name, value in asdict(made).items():
        flat |= {f"{name} {norm}": array for norm, array in value.items()} if isinstance(value, dict) else {name: np.asarray(value)}
    np.savez(path, allow_pickle=False, **flat)


def _read(path: Path, depth: int) -> Calibration | None:
    """The calibration in a file; None where there is none that can be read."""
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            flat = {name: stored[name] for name in stored.files}
        tables = {name: {key.partition(" ")[2]: flat.pop(key) for key in list(flat) if key.startswith(f"{name} ")} for name in MOMENTS}
        found = Calibration(**{**flat, **tables, "dropped": tuple(flat["dropped"].tolist())})
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return found if len(found.blocks) == depth else None
