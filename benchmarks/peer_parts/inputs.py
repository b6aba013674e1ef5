"""What the contenders get as files: the teacher's folder, token ids, the students' untrained weights; and kdsearch's study of the same."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from kdsearch import check, objective, study_file, teacher, workbench
from kdsearch.candidate import from_dict
from kdsearch.resources import resolve
from kdsearch.tasks import pool
from kdsearch.tasks.batches import bucket, join

EXAMPLES_PER_STEP = 32
STEPS_OF_A_TRIAL = 50
RECIPE = {"temperature": 2.0, "hard_weight": 0.5}
KD = {"hard_weight": RECIPE["hard_weight"], "scale": "raw", "kd": {"temperature": RECIPE["temperature"]}}
RATES = {"2x128": 1e-3, "4x256": 5e-4, "6x384": 2e-4}
SPACE = {
    "architecture": {
        "layers": {"int": [1, 6]},
        "heads": {"choice": [4, 6, 12]},
        "head_size": {"choice": [16, 24, 32]},
        "ffn_ratio": {"choice": [1, 2, 4]},
    },
    "initialization": {"layers": {"choice": ["random", "first", "last", "uniform"]}, "width": "slice"},
    "distillation": {
        "hard_weight": {"float": [0.0, 1.0]},
        "scale": "raw",
        "kd": {"temperature": {"float": [1.0, 10.0], "log": True}},
    },
    "training": {"learning_rate": {"float": [1.0e-4, 1.0e-3], "log": True}},
}


@dataclass(frozen=True)
class Case:
    """A teacher, texts of up to so many tokens, fixed students (layers, heads, head size); ``source``: the rows of the data that are
    used."""

    name: str
    max_length: int
    source: str | None
    students: dict[str, tuple[int, int, int]]
    rows: int | None = None
    big_teacher: bool = False


MINILM = {"2x128": (2, 4, 32), "4x256": (4, 8, 32), "6x384": (6, 12, 32)}
CASES = {
    "loop": Case("loop", 64, None, MINILM),
    "bigger": Case("bigger", 64, None, {"4x256": (4, 4, 64)}, rows=1600, big_teacher=True),
    "long": Case("long", 256, "imdb", {"4x256": (4, 8, 32)}, rows=3000),
}


def candidate_of(shape: tuple[int, int, int], rate: float) -> dict[str, Any]:
    """A fixed student: uniform teacher layers, leading slice, kd beside the labels."""
    layers, heads, head_size = shape
    return {
        "architecture": {"layers": layers, "heads": heads, "head_size": head_size, "ffn_ratio": 4},
        "initialization": {"layers": "uniform", "width": "slice"},
        "distillation": KD,
        "training": {"learning_rate": rate},
    }


def prepare(case: Case, work: Path, study: Path) -> Path:
    """The case's inputs.json, written once; fine-tuning the teacher is part of it, where no earlier run has kept it."""
    folder = work / "inputs" / case.name
    if (folder / "inputs.json").is_file():
        return folder / "inputs.json"
    folder.mkdir(parents=True, exist_ok=True)
    _write_yaml(folder / "space.yaml", SPACE)
    own = study_of(case, study)
    if case.big_teacher:
        own["teacher"] = {"model": _random_teacher(folder, study), "fine_tune": {"epochs": 1e-4, "learning_rate": 1e-6}}
    elif case.name != "loop":
        own["teacher"] = json.loads(prepare(CASES["loop"], work, study).read_text(encoding="utf-8"))["tuned"]
    _write_yaml(folder / "study.yaml", own)
    opened = check.open_files(folder / "study.yaml")
    shapes = {name: candidate_of(shape, RATES[name]) for name, shape in case.students.items()}
    bench = workbench.prepare(opened.spec, opened.space, opened.base, [from_dict(shape) for shape in shapes.values()])
    bench.teacher.save_pretrained(folder / "teacher")
    bench.tokenizer.save_pretrained(folder / "teacher")
    tuned = own["teacher"] if case.big_teacher else {"model": str(folder / "teacher"), "fine_tune": None}
    proxy = {"steps": STEPS_OF_A_TRIAL, "batch_tokens": batch_tokens(bench.rows), "transfer_share": 0.0}
    _write_yaml(folder / "study.yaml", {**own, "teacher": tuned, "proxy": proxy})
    _write_rows(folder / "rows.npz", bench.rows)
    for name, shape in shapes.items():
        objective.started(from_dict(shape), bench, 0).save_pretrained(folder / "students" / name)
    told = {
        "study": str(folder / "study.yaml"),
        "tuned": tuned,
        "teacher": str(folder / "teacher"),
        "rows": str(folder / "rows.npz"),
        "max_length": case.max_length,
        "pad_id": bench.rows.pad_id,
        "majority": bench.rows.majority,
        "students": {name: {"candidate": shape, "folder": str(folder / "students" / name)} for name, shape in shapes.items()},
        "recipe": RECIPE,
        "trial_steps": STEPS_OF_A_TRIAL,
        "facts": facts(bench),
    }
    (folder / "inputs.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return folder / "inputs.json"


def study_of(case: Case, study: Path) -> dict[str, Any]:
    """A study of the same teacher and labelled texts as ``study``, with the benchmark's space and without text that only kdsearch could
    use."""
    spec, base = study_file.load(study), study.parent.resolve()
    task = spec.task.model_dump(mode="json", exclude={"transfer"})
    task |= {"data": str(resolve(spec.task.data, base) or spec.task.data), "max_length": min(case.max_length, spec.task.max_length)}
    if case.source:
        task |= {"where": {"source": case.source}, "max_length": case.max_length}
    if case.rows:
        task["rows"] = min(case.rows, spec.task.rows or case.rows)
    model = str(resolve(spec.teacher.model, base) or spec.teacher.model)
    return {
        "name": case.name,
        "teacher": {**spec.teacher.model_dump(mode="json"), "model": model},
        "task": task,
        "target": {"threads": 1, "batch_size": 1, "sequence_length": 32},
        "space": "space.yaml",
        "search": {"minutes": 60, "baselines": False},
    }


def batch_tokens(rows: pool.Pool) -> int:
    """``batch_tokens`` with which kdsearch's batches hold about as many examples as the others' in the mean over an epoch."""
    lengths = rows.encoded.lengths
    start = max(64, int(lengths[rows.train].mean() * EXAMPLES_PER_STEP))

    def distance(size: int) -> float:
        return abs(len(rows.train) / len(bucket(rows.train, lengths, size)) - EXAMPLES_PER_STEP)

    return min(range(start, 2 * start, 8), key=distance)


def facts(bench: workbench.Bench) -> dict[str, Any]:
    """What the document says of teacher, texts and cache."""
    shape, task = bench.facts["teacher"]["architecture"], bench.facts["task"]
    return {
        "teacher": f"{shape['layers']} x {shape['heads'] * shape['head_size']}",
        "teacher_accuracy": bench.facts["teacher"]["accuracy"],
        "train": task["train"],
        "tokens_per_row": task["tokens_per_row"],
        "cache_megabytes": sum(array.nbytes for array in bench.outputs.arrays.values()) / 1e6,
    }


def products(candidate: dict[str, Any]) -> int:
    """Weights of a student's matrix products N, without embeddings and head: layers (4 d^2 + 2 d f)."""
    shape = from_dict(candidate).architecture
    return shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.ffn)


def _random_teacher(folder: Path, study: Path) -> str:
    """A 12 x 768 BERT of random weights with the study's tokenizer: enough to time."""
    tokenizer = teacher.load_tokenizer(study_file.load(study).teacher, study.parent.resolve())
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    return str(folder / "random")


def _write_rows(path: Path, rows: pool.Pool) -> None:
    """Token ids of all rows; ``measured`` are validation and test, on which accuracies are compared."""
    everything = join([rows.encoded, rows.test])
    tested = np.arange(len(rows.encoded), len(everything))
    np.savez(
        path,
        ids=everything.ids,
        offsets=everything.offsets,
        labels=everything.labels,
        train=rows.train,
        validation=rows.validation,
        measured=np.concatenate([rows.validation, tested]),
    )


def _write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
