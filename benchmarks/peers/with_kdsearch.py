"""kdsearch itself, as one more contender: its objective's stages on the study of the inputs, in this program's own environment.

python with_kdsearch.py INPUTS
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from contender import Inputs, Meter, serve
from torch import nn

from kdsearch import check, objective, workbench
from kdsearch.candidate import from_dict


def train(bench: workbench.Bench, inputs: Inputs, job: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """One job; the seed decides the order of the rows, the student's weights are those of every job."""
    start, described = time.perf_counter(), inputs.told["students"][job["student"]]["candidate"]
    described = {**described, "training": {"learning_rate": job["learning_rate"]}}
    proxy = bench.spec.proxy.model_copy(update={"steps": job["steps"], "schedule": "linear"})  # as the others
    candidate = from_dict(described)
    student = objective.started(candidate, bench, 0)
    with Meter(student) as meter:
        objective.train(student, candidate, bench, proxy, job["seed"])
    return student, meter.told(start)


if __name__ == "__main__":
    told = Inputs.read(sys.argv[1]).told
    study = check.open_files(Path(told["study"]))
    candidates = [from_dict(student["candidate"]) for student in told["students"].values()]
    serve(partial(train, workbench.in_full(workbench.prepare(study.spec, study.space, study.base, candidates))))
