"""Full training of a pick, and its export: a plain Hugging Face folder, loaded back and compared before it is called done."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from kdsearch import inference, objective, records
from kdsearch.candidate import Candidate
from kdsearch.distillation.loop import Progress, telling
from kdsearch.kept import written_aside
from kdsearch.objective import scores
from kdsearch.students.families import longest
from kdsearch.target.latency import measure
from kdsearch.tasks import metrics
from kdsearch.tasks.batches import encode
from kdsearch.tasks.pool import Pool
from kdsearch.workbench import Bench, silent

LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Export:
    """An exported student: its folder and what was measured on it, as it stands in result.json."""

    folder: Path
    result: dict[str, Any]


def train(candidate: Candidate, trial: int, seed: int, bench: Bench, folder: Path, progress: Progress = silent) -> Export:
    """Distil a candidate at full length, save it, load it back, compare, and look at the test rows once.

    Raises:
        RuntimeError: the folder that was written does not give the trained student's tokens and logits back.
    """
    start, spec = time.perf_counter(), bench.spec
    student = objective.started(candidate, bench, seed)  # the seed of the trial: what is random in the student is the same again
    objective.train(student, candidate, bench, spec.train, seed, telling(progress, "distilling", spec.train.steps))
    place = folder / "exports" / str(trial)
    with written_aside(place) as aside:  # an older export of the trial stays whole until this one is
        result = _write(aside, student, candidate, trial, bench, start)
        for one in (aside, *aside.rglob("*")):
            records.open_to_others(one)
    return Export(place / "model", result)


def _write(place: Path, student: PreTrainedModel, candidate: Candidate, trial: int, bench: Bench, start: float) -> dict[str, Any]:
    """Save, load back, compare, measure; all of an export's files."""
    spec, own = bench.spec, bench.reading(candidate.architecture.vocabulary)
    student.cpu().save_pretrained(place / "model")
    own.tokenizer.save_pretrained(place / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(place / "model", dtype=torch.float32).eval()
    if not same_tokens(AutoTokenizer.from_pretrained(place / "model"), own.rows, bench):
        raise RuntimeError(f"trial {trial}: the saved tokenizer splits the task's texts otherwise after loading; it is not exported")
    difference = round_trip(student, loaded)
    if difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"trial {trial}: the saved student's logits differ by {difference:.2g} after loading; it is not exported")
    latency = measure(loaded, bench.teacher, spec.target)
    result = {
        "trial": trial,
        "steps": spec.train.steps,
        **{f"validation_{name}": value for name, value in scores(loaded, bench, candidate.architecture.vocabulary).items()},
        **_test(loaded, own.rows, bench, "test_accuracy"),
        **_test(bench.teacher, bench.rows, bench, "teacher_test_accuracy"),
        "latency_ms": latency.ms,
        "latency_relative": latency.relative,
        "parameters": loaded.num_parameters(),
        "vocabulary": len(own.tokenizer),
        "round_trip_difference": difference,
        "candidate": candidate.to_dict(),
        "seconds": time.perf_counter() - start,
    }
    records.write_text(place / "result.json", json.dumps(result, indent=2))
    records.write_text(place / "model" / "README.md", card(result, bench))
    return result


def same_tokens(tokenizer: Any, rows: Pool, bench: Bench) -> bool:
    """Whether a tokenizer encodes the validation texts as the student's rows hold them."""
    again = encode(tokenizer, bench.texts.validation.texts, None, bench.spec.task.max_length)
    start, end = rows.encoded.offsets[[rows.validation[0], rows.validation[-1] + 1]]
    return np.array_equal(again.ids, rows.encoded.ids[start:end])


@torch.inference_mode()
def round_trip(student: PreTrainedModel, loaded: PreTrainedModel) -> float:
    """Largest absolute difference of the two models' logits on seeded random token ids."""
    shape = 4, min(16, longest(student.config))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, student.config.vocab_size, shape))
    return float((student(input_ids=ids).logits - loaded(input_ids=ids).logits).abs().max())


def card(result: dict[str, Any], bench: Bench) -> str:
    """The model card: what it is, how it was made, what was measured."""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---
# Student of {bench.spec.teacher.model}

Distilled by kdsearch, study `{bench.spec.name}`, trial {result["trial"]}, {result["steps"]} steps.

| | student | teacher |
|---|---|---|
| test accuracy | {result["test_accuracy"]:.4f} ± {result["test_accuracy_se"]:.4f} | \
{result["teacher_test_accuracy"]:.4f} ± {result["teacher_test_accuracy_se"]:.4f} |
| parameters | {result["parameters"]:,} | {bench.facts["teacher"]["parameters"]:,} |
| vocabulary | {result["vocabulary"]:,} | {len(bench.tokenizer):,} |
| latency relative to the teacher | {result["latency_relative"]:.3f} | 1 |

± is one standard error. Latency: {bench.spec.target.model_dump()}.

```json
{json.dumps(result["candidate"], indent=2)}
```
"""


def _test(model: PreTrainedModel, rows: Pool, bench: Bench, name: str) -> dict[str, float]:
    logits = inference.predict(model, rows.test, np.arange(len(rows.test)), rows.pad_id, bench.spec.target.device)
    accuracy, error = metrics.accuracy(logits.argmax(1), rows.test.labels)
    return {name: accuracy, f"{name}_se": error}
