"""Other models that students start from in the teacher's place: pre-trained ones, and exports of earlier studies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from kdsearch import teacher
from kdsearch.candidate import Architecture, Initialization
from kdsearch.errors import UserError
from kdsearch.resources import resolve
from kdsearch.students.families import axis_size, narrow, sizes_of, tensors_of
from kdsearch.students.families import mistakes as shape_mistakes
from kdsearch.students.reading import Reading
from kdsearch.students.vocabulary import with_vocabulary
from kdsearch.study_file import Teacher

RESULT = "result.json"


def source(start: Initialization, base: Path) -> str:
    """What transformers loads: the local folder, in an export that of its model, or the Hub id."""
    path = resolve(start.model or "", base)
    if path is None:
        return str(start.model)
    return str(path / "model" if (path / RESULT).is_file() else path)


def mistakes(start: Initialization, shapes: list[Architecture], config: PretrainedConfig, tokenizer: Any, base: Path) -> list[str]:
    """Why no student of some shape can start from a model in the place of a teacher with this config and tokenizer; empty when all can."""
    if not start.model:
        return [f"initialization.model is missing: layers {start.layers} start from one; name a model folder, or a Hub id"]
    if start.width != "slice":
        return [
            f"initialization.width: must be slice where layers is {start.layers}, since {start.width} is measured on the teacher; "
            f"the value is {start.width}; correct it"
        ]
    place = source(start, base)
    messages = [message.replace("teacher.model", "initialization.model", 1) for message in teacher.mistakes(Teacher(model=place), base)]
    if start.layers == "distilled" and not messages and not _is_export(Path(place)):
        messages = [
            f"initialization.model: '{start.model}' is no export of a study, which has a {RESULT}; name STUDY/exports/TRIAL, "
            "or write layers: pretrained"
        ]
    if messages:
        return messages
    other = AutoConfig.from_pretrained(place, num_labels=len(config.id2label or {}))
    if other.model_type != config.model_type:
        return [
            f"initialization.model: must be of the teacher's family; '{start.model}' is {other.model_type}, the teacher "
            f"{config.model_type}; name another"
        ]
    messages = [message for shape in shapes for message in _shape_mistakes(start, shape, config, other)]
    return list(dict.fromkeys(messages)) or _word_mistakes(start, shapes, AutoTokenizer.from_pretrained(place), tokenizer)


def _is_export(place: Path) -> bool:
    try:
        return "candidate" in json.loads((place.parent / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _shape_mistakes(start: Initialization, shape: Architecture, config: PretrainedConfig, other: PretrainedConfig) -> list[str]:
    if messages := shape_mistakes(shape, other):
        return [f"initialization.model: '{start.model}' in the teacher's place: {message}" for message in messages]
    wanted, found = (
        {name: [axis_size(role, sizes_of(one)) for role in roles] for name, roles in tensors_of(one).items()}
        for one in (narrow(config, replace(shape, vocabulary=1)), narrow(other, replace(shape, vocabulary=1)))
    )
    different = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
    return [
        f"initialization.model: must give students the tensors that the teacher gives; '{start.model}' has {name} of {found.get(name)}, "
        f"the teacher {wanted.get(name)}; name another"
        for name in sorted(different)[:1]
    ]


def _word_mistakes(start: Initialization, shapes: list[Architecture], known: Any, tokenizer: Any) -> list[str]:
    """A model with the teacher's tokens is cut to any vocabulary; another one must have the student's own, which is compared when built."""
    sizes = {shape.vocabulary for shape in shapes}
    if known.get_vocab() == tokenizer.get_vocab() or sizes == {len(known)}:
        return []
    return [
        f"initialization.model: must have the teacher's tokens, or those of architecture.vocabulary; '{start.model}' has {len(known)} "
        f"others, the teacher {len(tokenizer)}, the students {', '.join(str(size) for size in sorted(sizes, key=str))}; name another"
    ]


def load(start: Initialization, own: Reading, whole: Reading, classes: list[str], base: Path) -> PreTrainedModel:
    """The model in the teacher's place, with the tokens of a student's reading; a head for other classes is replaced by a random one.

    Raises:
        UserError: it has other tokens.
    """
    place = source(start, base)
    model, known = teacher.classifier(place, classes, new_head=True).eval(), AutoTokenizer.from_pretrained(place)
    if known.get_vocab() == own.tokenizer.get_vocab():
        return model
    if known.get_vocab() == whole.tokenizer.get_vocab():
        return with_vocabulary(model, own.tokenizer, whole.tokenizer)
    raise UserError(
        f"initialization.model: must have the tokens of the student; '{start.model}' has {len(known)} others than its "
        f"{len(own.tokenizer)}; name another, or correct architecture.vocabulary"
    )
