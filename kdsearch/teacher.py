"""The teacher: loaded, or fine-tuned once and kept on disk, by the content that it comes from."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from kdsearch.distillation.loop import Progress, Schedule, fit, telling
from kdsearch.distillation.signals import explicit_attention, observe
from kdsearch.errors import UserError
from kdsearch.kept import CACHE_VERSION, digest, one_at_a_time, written_aside
from kdsearch.machine import accelerator, threads, threads_for
from kdsearch.resources import cache_folder, file_sha256, looks_local, resolve
from kdsearch.students.families import classes_of, family_of, teacher_mistakes
from kdsearch.study_file import Teacher
from kdsearch.tasks.batches import Batch, bucket, collate, stream
from kdsearch.tasks.pool import Pool

TRAIN_TOKENS, WARMUP = 1024, 0.1
# As when teachers were first made: another packing makes another teacher (by chance the quickstart's had 0.799 and not 0.816), and a study
# is of one.
MULTIPLE = 8
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
    an_epoch = len(bucket(pool.train, pool.encoded.lengths, TRAIN_TOKENS, MULTIPLE))
    steps = math.ceil(settings.epochs * an_epoch)
    rows = stream(pool.train, nothing, pool.encoded.lengths, TRAIN_TOKENS, 0.0, seed, multiple=MULTIPLE)
    model.to(helper.device).eval()
    batches = (collate(pool.encoded, some, pool.pad_id, helper.device, multiple=MULTIPLE) for _, some in rows)

    def loss_of(batch: Batch, _: int) -> Tensor:
        logits = observe(model, batch, frozenset({"logits"}))["logits"]
        return nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")

    schedule = Schedule(steps, settings.learning_rate, WARMUP)
    with explicit_attention(model), threads(threads_for(model, TRAIN_TOKENS)):
        fit([model], loss_of, batches, schedule, device, telling(progress, "fine-tuning the teacher", steps))
    model.requires_grad_(True).cpu()


def weights_key(model: PreTrainedModel) -> str:
    """Content hash of a model's config and weights."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
