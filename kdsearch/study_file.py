"""studies/*.yaml --> StudySpec: every key has a default that is right for most; all mistakes are reported together, by key path."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kdsearch import yaml_file
from kdsearch.errors import UserError, unknown

Positive = Annotated[float, Field(gt=0)]
# YAML reads 10.0e+6 as a float.
Count = Annotated[int, BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value), Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, lt=1)]
SAMPLERS = ["auto", "tpe", "gp", "nsga2", "qmc", "random"]


def _rising(shares: tuple[float, ...]) -> tuple[float, ...]:
    if list(shares) != sorted(set(shares)):
        raise ValueError("should rise from rung to rung")
    return shares


def _sampler(name: str) -> str:
    if name not in SAMPLERS and ":" not in name:
        raise ValueError(f"{unknown('sampler', name, SAMPLERS)}, or module:Class")
    return name


class Section(BaseModel):
    """A mapping of the study file: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FineTune(Section):
    """How the teacher is fine-tuned on the task, once."""

    epochs: Positive = 3
    learning_rate: Positive = 5e-5
    freeze_embeddings: bool = True


class Teacher(Section):
    """The model to distil: a Hub id, a local folder or package://PACKAGE/FOLDER."""

    model: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    fine_tune: FineTune | None = FineTune()


class Transfer(Section):
    """Texts without labels that students are distilled on beside the labelled ones; a held-out part measures the divergence."""

    data: str
    where: dict[str, str | int | bool] = {}
    text: str = "text"
    sentences: bool = False
    train: Count = 10_000
    held_out: Count = 4_000


class Split(Section):
    """Shares of the labelled rows, stratified by label."""

    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.125
    test: Annotated[float, Field(gt=0, lt=0.5)] = 0.125
    seed: Seed = 0


class Task(Section):
    """The labelled data: a Hub name or a csv, json, jsonl or parquet file; ``where`` keeps the rows with these column values.

    ``corpus``: a text file, one text a line, whose tokens count beside the task's own where a student has a smaller vocabulary.
    """

    type: Literal["text-classification"] = "text-classification"
    data: str
    where: dict[str, str | int | bool] = {}
    text: str = "text"
    label: str = "label"
    max_length: Annotated[int, Field(ge=8)] = 128
    rows: Count | None = None
    split: Split = Split()
    transfer: Transfer | None = None
    corpus: str | None = None


class Target(Section):
    """Where the student will run; latency is measured there, on one batch of full-length sequences."""

    runtime: Literal["torch"] = "torch"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Count = 1
    batch_size: Count = 1
    sequence_length: Annotated[int, Field(ge=2)] = 32


class Limits(Section):
    """What a student must not exceed, checked on the untrained student; and the least share of the teacher's accuracy, after training.

    Where no other limit of size or speed is given, one that is no faster than its teacher is not looked for: ``latency_relative`` is 1.
    ``megabytes``: the saved weights. ``memory_megabytes``: the weights and what one forward pass on the target's batch holds at its peak,
    measured only where it is limited.
    """

    latency_ms: Positive | None = None
    latency_relative: Positive | None = None
    parameters: Count | None = None
    megabytes: Positive | None = None
    memory_megabytes: Positive | None = None
    accuracy_relative: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _faster_than_the_teacher(cls, given: Any) -> Any:
        named = isinstance(given, dict) and any(key in given for key in cls.model_fields if key != "accuracy_relative")
        return given if named or not isinstance(given, dict) else {**given, "latency_relative": 1.0}


class Training(Section):
    """How long and on what a student is distilled. One batch holds about ``batch_tokens`` tokens.

    ``schedule``: ``linear`` lets the learning rate fall to 0 and takes the last weights; ``averaged`` keeps it and takes the mean of the
    weights so far (of a staged recipe: of the stage), the later ones heavier, which can be judged at every rung (benchmarks/proxy.md).
    """

    steps: Count = 300
    batch_tokens: Annotated[int, Field(ge=64)] = 1024
    transfer_share: Share = 0.5
    warmup: Share = 0.1
    schedule: Literal["averaged", "linear"] = "averaged"
    train_embeddings: bool = False


class FullTraining(Training):
    """The full distillation of a pick by ``kdsearch train``."""

    steps: Count = 3000
    schedule: Literal["averaged", "linear"] = "linear"


class Search(Section):
    """How candidates are proposed, and when the search ends: by minutes of search, trials or ``flops``, whichever comes first.

    ``flops``: floating-point operations of training, the teacher's answers charged once; ``finalists``: how many students of
    the front are distilled in full at the end, inside the minutes, each with ``finalist_seeds`` seeds; 0 leaves that to ``confirm``.

    ``sampler``: auto, tpe, gp, nsga2, qmc, random, or an Optuna sampler of your own as module:Class; ``random_share``: share of the trials
    that are drawn at random whatever the sampler, so that the guideline can compare.
    ``rungs``: shares of the proxy's steps after which a trial is stopped unless it is on the front or in the best 1/``eta`` there.
    ``workers``: processes that evaluate side by side; null is one for each core that computes, up to 8, and one on a GPU.
    ``trial_gigabytes``: memory that a process which evaluates may hold, teacher and all; a student that needs more fails alone. Null is
    each process's share of nine tenths of what is available when the search starts, in the container where there is one.
    """

    sampler: Annotated[str, AfterValidator(_sampler)] = "auto"
    random_share: Share = 0.2
    # YAML and JSON have lists.
    rungs: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False), AfterValidator(_rising)] = (0.125, 0.375)
    eta: Annotated[float, Field(gt=1)] = 3.0
    minutes: Positive = 30
    trials: Count | None = None
    flops: Positive | None = None
    finalists: Annotated[int, Field(ge=0)] = 0
    finalist_seeds: Count = 2
    startup_trials: Count = 10
    seed: Seed = 0
    workers: Count | None = None
    trial_gigabytes: Positive | None = None
    baselines: bool = True
    max_failures_in_a_row: Count = 5


class StudySpec(Section):
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    teacher: Teacher
    task: Task
    target: Target = Target()
    limits: Limits = Limits.model_validate({})
    space: str
    proxy: Training = Training()
    train: FullTraining = FullTraining()
    search: Search = Search()


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The sections of a study file that are right, and a message for every mistake in the others.

    Sections are validated one by one, so that a typo in one does not hide a mistake in the next.

    Raises:
        UserError: the file cannot be read as YAML at all.
    """
    raw = yaml_file.load(path)
    raw.setdefault("name", path.stem)
    fields = StudySpec.model_fields
    messages = [f"{path}: {unknown('key', key, list(fields))}" for key in raw if key not in fields]
    messages += [f"{path}: '{key}' is missing; add it" for key, info in fields.items() if info.is_required() and key not in raw]
    right: dict[str, Any] = {}
    for key in fields:
        if key not in raw:
            continue
        stub = {"name": "x", "teacher": {"model": "x"}, "task": {"data": "x"}, "space": "x", key: raw[key]}
        try:
            right[key] = getattr(StudySpec.model_validate(stub), key)
        except ValidationError as error:
            messages += [f"{path}: {_explain(item)}" for item in error.errors()]
    return right, messages


def load(path: Path) -> StudySpec:
    """The study that a file describes.

    Raises:
        UserError: all mistakes of the file, each with its key path, the rule, the value and the fix.
    """
    right, messages = read(path)
    if messages:
        raise UserError(messages)
    return StudySpec(**right)


def changed(spec: StudySpec, options: dict[str, Any]) -> StudySpec:
    """The study with other settings of its search, those that are not None: options of the command line.

    Raises:
        UserError: all that are wrong.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        search = Search.model_validate({**spec.search.model_dump(), **given})
    except ValidationError as error:
        raise UserError([f"{'--' if item['loc'] else ''}{_explain(item)}" for item in error.errors()]) from None
    return spec.model_copy(update={"search": search})


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        parent, _, key = where.rpartition(".")
        return f"{parent}: {unknown('key', key, _keys_at(item['loc'][:-1]))}"
    if item["type"] == "missing":
        return f"{where} is missing; add it"
    value = item["input"]
    rule = item["msg"][0].lower() + item["msg"][1:]
    return f"{where}: {rule.removeprefix('input ')}; the value is {value!r} ({type(value).__name__}); change it"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    section: Any = StudySpec
    for part in location:
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(section.model_fields)
