"""A teacher loaded in a test, and what it was seen to do."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kdsearch import space_file, teacher, workbench
from kdsearch.candidate import Candidate, Recipe, Term
from kdsearch.study_file import StudySpec, Teacher
from kdsearch.tasks.pool import Pool
from tests import tiny

AS_IT_IS = Teacher(model="model", fine_tune=None)


class Events(list):
    """Progress that is kept: (stage, done, total)."""

    def __call__(self, *event: Any) -> None:
        self.append(event)

    def of(self, stage: str) -> int:
        return sum(stage in event[0] for event in self)


def load(spec: Teacher, base: Path, rows: Pool, seed: int = 0) -> tuple[PreTrainedModel, str, Events]:
    events = Events()
    model, key = teacher.load(spec, base, rows, seed, "cpu", events)
    return model, key, events


def forwards(model: PreTrainedModel) -> list[int]:
    """Grows by one with each forward pass."""
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    return seen


def bench(folder: Path) -> workbench.Bench:
    """That of the tiny study, for four steps."""
    spec = StudySpec.model_validate({**tiny.study(folder), "proxy": {"steps": 4, "batch_tokens": 256, "transfer_share": 0.3}})
    return workbench.prepare(spec, space_file.load(folder / "space.yaml"), folder, [])


def spelled_bench(folder: Path) -> workbench.Bench:
    """One whose space has smaller vocabularies: 130 tokens split words, those that the texts use do not."""
    spec = StudySpec.model_validate({**tiny.study(folder, tiny.SPELLED), "limits": {"latency_relative": None}})
    content = tiny.space_content()
    content["architecture"]["vocabulary"] = {"choice": [None, 130, 200]}
    extra = Candidate(tiny.narrower(), distillation=Recipe("x", 0.0, (Term("hidden_mse"), Term("rkd"))))
    return workbench.prepare(spec, space_file.parse(content), folder, [extra])
