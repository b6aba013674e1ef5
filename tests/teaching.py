"""A teacher loaded in a test, and what it was seen to do."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kdsearch import teacher
from kdsearch.study_file import Teacher
from kdsearch.tasks.pool import Pool

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
