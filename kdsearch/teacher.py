"""The teacher: loaded or fine-tuned once, its outputs computed once per study; both on disk, keyed by the content they come from."""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from kdsearch.distillation.loop import Progress, Schedule, fit
from kdsearch.distillation.signals import explicit_attention, observe
from kdsearch.errors import UserError
from kdsearch.machine import accelerator, threads, threads_for
from kdsearch.resources import cache_folder, file_sha256, looks_local, resolve
from kdsearch.students.families import classes_of, family_of, teacher_mistakes
from kdsearch.study_file import Teacher
from kdsearch.tasks.batches import Batch, Encoded, bucket, collate, stream
from kdsearch.tasks.pool import Pool

CACHE_VERSION = 2
FORWARD_TOKENS, TRAIN_TOKENS, WARMUP = 2048, 1024, 0.1
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def mistakes(spec: Teacher, base: Path) -> list[str]:
    """Why a teacher cannot be used: no such folder, not a model folder, an unknown model type, other weights than the pinned ones."""
    try:
        path = resolve(spec.model, base)
    except UserError as error:
        return [f"teacher.model: {message}" for message in error.messages]
    if path is None:
        if looks_local(spec.model):
            return [f"teacher.model: '{spec.model}' does not exist (looked in {base} and {Path.cwd()}); correct the path"]
        unpinned = [] if spec.sha256 is None else ["teacher.sha256: can be checked for a local or packaged model only; remove it"]
        return [*unpinned, *_config_mistakes(spec.model, spec.model)]
    needed = {"config.json": ("config.json",), WEIGHTS[0]: WEIGHTS, TOKENIZERS[0]: TOKENIZERS}
    missing = [name for name, any_of in needed.items() if not any((path / one).is_file() for one in any_of)]
    if missing:
        lacks = ", ".join(missing)
        return [
            f"teacher.model: '{spec.model}' is not a Hugging Face model folder: it lacks {lacks}; name a folder made by save_pretrained"
        ]
    messages = _config_mistakes(spec.model, str(path))
    weights = next(path / name for name in WEIGHTS if (path / name).is_file())
    if spec.sha256 and (found := file_sha256(weights)) != spec.sha256:
        messages.append(f"teacher.sha256: {weights.name} has {found}, the study pins {spec.sha256}; use that model, or change the pin")
    return messages


def _config_mistakes(name: str, place: str) -> list[str]:
    try:
        return teacher_mistakes(AutoConfig.from_pretrained(place))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        return [f"teacher.model: '{name}' has no config.json that transformers can read: {reason}; check the name"]


def source(spec: Teacher, base: Path) -> str:
    """What transformers loads: the local folder, or the Hub id."""
    return str(resolve(spec.model, base) or spec.model)


def load_tokenizer(spec: Teacher, base: Path) -> Any:
    """The teacher's tokenizer."""
    return AutoTokenizer.from_pretrained(source(spec, base))


def head_mistakes(spec: Teacher, base: Path, classes: list[str]) -> list[str]:
    """Why a model that is used as it is does not answer in the task's classes. Fine-tuning makes a new head where none fits."""
    config = AutoConfig.from_pretrained(source(spec, base))
    has_head = any("ForSequenceClassification" in name for name in config.architectures or [])
    if not has_head and spec.fine_tune is None:
        return [f"teacher.fine_tune: '{spec.model}' is no classifier yet; give {{epochs: 3}} to make it one, or name a classifier"]
    if spec.fine_tune is None and classes_of(config) != len(classes):
        sizes = f"{classes_of(config)} classes, the task {len(classes)} ({', '.join(classes[:5])})"
        return [f"teacher.model: '{spec.model}' has a head of {sizes}; name a model for this task, or fine-tune it: {{epochs: 3}}"]
    names = labels(spec, base)
    if names and set(names) != set(classes):
        return [
            f"teacher.model: its classes are {', '.join(names)}, the task's are {', '.join(classes)}; rename the labels of the data, "
            "or the id2label of the model"
        ]
    return []


def labels(spec: Teacher, base: Path) -> list[str] | None:
    """The classes of a teacher that is used as it is, in the order of its logits; None where it names none, or is fine-tuned first."""
    if spec.fine_tune is not None:
        return None
    names = [str(name) for _, name in sorted((AutoConfig.from_pretrained(source(spec, base)).id2label or {}).items())]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def load(spec: Teacher, base: Path, pool: Pool, seed: int, device: str, progress: Progress) -> tuple[PreTrainedModel, str]:
    """The teacher on the task, float32, in evaluation mode, and the content hash of its weights.

    It is fine-tuned when the study asks for that and no earlier run has kept it; model, rows and settings decide which one is taken.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = classifier(source(spec, base), pool.classes, new_head=spec.fine_tune is not None)
    if spec.fine_tune is None:
        return model.eval(), weights_key(model)
    settings = json.dumps(spec.fine_tune.model_dump(), sort_keys=True)
    folder = cache_folder() / "teachers" / digest(weights_key(model), pool.train_key, settings, str(seed), str(CACHE_VERSION))
    with one_at_a_time(folder):
        tuned = _kept(folder)
        if tuned is None:
            _fine_tune(model, spec, pool, seed, device, progress)
            with written_aside(folder) as aside:
                model.save_pretrained(aside)
                load_tokenizer(spec, base).save_pretrained(aside)
            tuned = _kept(folder)
    assert tuned is not None
    return tuned, weights_key(tuned)


def _kept(folder: Path) -> PreTrainedModel | None:
    """The teacher that an earlier run has kept, or None where there is none that can be read."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return None


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the processes that need this folder one makes it, and the others wait and read it."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{folder.name}.lock"):
        yield


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


def outputs(model: PreTrainedModel, key: str, pool: Pool, signals: frozenset[str], device: str, progress: Progress) -> Outputs:
    """The teacher's outputs over the pool: read from disk when they are there, else computed in one pass and kept.

    Logits are float32 and stand for every row; everything else is bfloat16 and stands for the rows that students are trained on, which
    come first in a pool. A folder is written aside and renamed, so it is whole or absent; one that is damaged is made again.
    """
    folder = cache_folder() / "outputs" / digest(key, pool.key, *sorted(signals), str(CACHE_VERSION))
    shapes = {signal: len(pool.encoded) if signal == "logits" else _trained_tokens(pool) for signal in signals}
    with one_at_a_time(folder):
        arrays = _read(folder, shapes)
        if arrays is None:
            with written_aside(folder) as aside:
                _compute(model, pool, signals, aside, device, progress)
            arrays = _read(folder, shapes)
    assert arrays is not None
    return Outputs(arrays, pool.encoded.offsets)


def _read(folder: Path, shapes: dict[str, int]) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where one is missing, cut off, or of another length."""
    try:
        arrays = {signal: np.load(folder / f"{signal}.npy", mmap_mode=None if signal == "logits" else "r") for signal in shapes}
    except (OSError, ValueError, EOFError):
        return None
    return arrays if all(len(arrays[signal]) == length for signal, length in shapes.items()) else None


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


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when all is written; a kill leaves no half of it under that name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def classifier(name: str, classes: list[str], new_head: bool) -> PreTrainedModel:
    """A model with a head for these classes; ``new_head`` replaces one that does not fit.

    Raises:
        UserError: it cannot be loaded.
    """
    labels = {"num_labels": len(classes), "id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, ignore_mismatched_sizes=new_head, **labels
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"teacher.model: '{name}' cannot be loaded as a classifier of {len(classes)} classes: {str(error)[:300]}") from None
    family_of(model.config)
    return model


def _fine_tune(model: PreTrainedModel, spec: Teacher, pool: Pool, seed: int, device: str, progress: Progress) -> None:
    """Cross-entropy on the task's train rows, in place; dropout off, word embeddings frozen unless the study wants otherwise."""
    settings, helper = spec.fine_tune, accelerator(device)
    assert settings is not None
    family = family_of(model.config)
    model.get_submodule(family.embedding_path).requires_grad_(not settings.freeze_embeddings)
    nothing = np.zeros(0, dtype=np.int64)
    an_epoch = len(bucket(pool.train, pool.encoded.lengths, TRAIN_TOKENS))
    steps = math.ceil(settings.epochs * an_epoch)
    rows = stream(pool.train, nothing, pool.encoded.lengths, TRAIN_TOKENS, 0.0, seed)
    model.to(helper.device).eval()
    batches = (collate(pool.encoded, some, pool.pad_id, helper.device) for _, some in rows)

    def loss_of(batch: Batch, _: int) -> Tensor:
        logits = observe(model, batch, frozenset({"logits"}))["logits"]
        return nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")

    schedule = Schedule(steps, settings.learning_rate, WARMUP)
    with explicit_attention(model), threads(threads_for(model, TRAIN_TOKENS)):
        fit([model], loss_of, batches, schedule, device, lambda step: progress("fine-tuning the teacher", step, steps))
    model.requires_grad_(True).cpu()


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


def weights_key(model: PreTrainedModel) -> str:
    """Content hash of a model's config and weights."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest(*parts: str) -> str:
    """Content hash of some texts: the name of a folder that is kept for them."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:24]
