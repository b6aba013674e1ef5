"""A made-up but realistic study on disk; what the tests of the reports read."""

import json

import numpy as np

from kdsearch import records
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement, Record
from kdsearch.report import study_folder

FACTS = {
    "name": "reviews",
    "spec": {
        "name": "reviews",
        "teacher": {"model": "package://a_teacher/model"},
        "task": {"type": "text-classification", "data": "package://reviews/data.csv"},
        "target": {"runtime": "torch", "device": "cpu", "threads": 1, "batch_size": 1, "sequence_length": 32},
        "limits": {"latency_relative": 0.5, "parameters": None},
        "proxy": {"steps": 300, "batch_tokens": 1024},
        "search": {"sampler": "tpe", "minutes": 6, "trials": None, "seed": 0},
    },
    "space": {
        "architecture": {"layers": {"int": [1, 6]}, "heads": {"choice": [2, 4, 12]}, "head_size": 32, "ffn_ratio": {"choice": [1, 2, 4]}},
        "initialization": {"layers": {"choice": ["random", "uniform"]}},
        "distillation": {"one_of": {"none": {}, "kd": {"kd": {"temperature": {"float": [1, 10], "log": True}}}}},
        "training": {"learning_rate": {"float": [1e-4, 1e-3], "log": True}},
    },
    "teacher": {
        "model": "package://a_teacher/model",
        "architecture": {"layers": 6, "heads": 12, "head_size": 32, "ffn_ratio": 4},
        "accuracy": 0.871,
        "accuracy_se": 0.009,
        "latency_ms": 9.4,
        "latency_ms_low": 9.3,
        "latency_ms_high": 9.6,
        "parameters": 22_700_000,
        "flops": 6.9e8,
        "bytes": 90_900_000,
    },
    "task": {
        "classes": ["neg", "pos"], "train": 8000, "transfer": 10_000, "validation": 1330, "held_out": 4000, "test": 1330, "majority": 0.5,
    },
    "workers": 2,
        "rate": 1e11,
        "machine": "x86_64, 2 threads, Linux, Python 3.11",
    "versions": {"torch": "2.6", "optuna": "5.0.0"},
}  # fmt: skip


def candidate(layers, heads, recipe, *, start="uniform", temperature=2.0, rate=3e-4):
    terms = {} if recipe in ("none", "no-kd") else {"kd": {"weight": 1.0, "temperature": temperature}}
    return {
        "architecture": {"layers": layers, "heads": heads, "head_size": 32, "ffn_ratio": 4},
        "initialization": {"layers": start, "width": "slice"},
        "distillation": {"name": recipe, "hard_weight": 0.5 if terms else 1.0, **terms},
        "training": {"learning_rate": rate},
    }


def trained(trial, proposed, rng, **more):
    shape = proposed["architecture"]
    relative = float(0.03 + 0.94 * (shape["layers"] / 6) * (shape["heads"] / 12) ** 0.8 + 0.002 * rng.random())
    accuracy = 0.62 + 0.022 * shape["layers"] + 0.03 * np.log2(shape["heads"]) / 3.6 + 0.02 * ("kd" in proposed["distillation"])
    accuracy = float(np.round((accuracy + 0.008 * rng.normal()) * 1330) / 1330)
    found = Measurement(
        COMPLETE,
        accuracy=accuracy,
        accuracy_se=float(np.sqrt(accuracy * (1 - accuracy) / 1330)),
        divergence=0.9 - accuracy,
        divergence_se=0.004,
        latency_ms=9.4 * relative,
        latency_ms_low=9.3 * relative,
        latency_ms_high=9.6 * relative,
        latency_relative=relative,
        latency_relative_low=relative * 0.98,
        latency_relative_high=relative * 1.02,
        parameters=int(1e6 + 3.5e6 * relative),
        flops=6.9e8 * relative,
        bytes=int(4e6 + 14e6 * relative),
        steps=300,
        seconds=11.0,
        violations=(relative / 0.5 - 1,),
    )
    return Record(trial, proposed, found, 0, **more)


def study_records():
    """30 trials: three baselines, a search with refused and failed ones, one duplicate."""
    rng, found = np.random.default_rng(7), []
    for name in ("no-kd", "distilbert", "tinybert"):
        found.append(trained(len(found), candidate(3, 6 if name == "tinybert" else 12, name), rng, baseline=name))
    while len(found) < 30:
        trial = len(found)
        start, recipe = str(rng.choice(["random", "uniform"])), str(rng.choice(["none", "kd"]))
        layers, heads, rate = int(rng.integers(1, 7)), int(rng.choice([2, 4, 12])), float(10 ** rng.uniform(-4, -3))
        proposed = candidate(layers, heads, recipe, start=start, temperature=float(rng.uniform(1, 10)), rate=rate)
        one = trained(trial, proposed, rng)
        over = one.measurement.latency_relative
        if trial == 20:
            one = Record(trial, proposed, Measurement(FAILED, reason="RuntimeError: <b>out of memory</b>", traceback="..."), 0)
        elif trial == 25:
            one = Record(trial, found[-1].candidate, found[-1].measurement, 0, duplicate_of=trial - 1)
        elif over > 0.5:
            reason = f"latency_relative {over:.4g} exceeds the limit 0.5"
            one = Record(trial, proposed, Measurement(REFUSED, reason=reason, latency_relative=over, violations=(over / 0.5 - 1,)), 0)
        found.append(one)
    return found


def write_study(path, found=(), facts=FACTS, exports=()):
    path.mkdir(parents=True, exist_ok=True)
    (path / "study.json").write_text(json.dumps(facts), encoding="utf-8")
    records.write(path / "trials.jsonl", found)
    for export in exports:
        place = path / "exports" / str(export["trial"])
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(export), encoding="utf-8")
    return study_folder.load(path)


EXPORT = {
    "trial": 4,
    "validation_accuracy": 0.842,
    "validation_accuracy_se": 0.01,
    "test_accuracy": 0.8395,
    "test_accuracy_se": 0.0101,
    "teacher_test_accuracy": 0.866,
    "teacher_test_accuracy_se": 0.0093,
    "latency_relative": 0.2,
    "steps": 3000,
    "seconds": 240.0,
}


def of_its_trials(document, study):
    """Full trainings with the candidates of a study's trials, without which they count as another study's."""
    candidates = {record.trial: record.candidate for record in study.records}
    return {**document, "students": [{**row, "candidate": candidates.get(row["trial"])} for row in document["students"]]}


CONFIRMED = {
    "steps": 3000,
    "seeds": [11, 12],
    "picks": {"knee": 4, "best": 4},
    "students": [
        {
            "student": "4", "role": "near the front", "trial": 4, "seeds": 2, "twin_of": None, "proxy_accuracy": 0.812, "accuracy": 0.8401,
            "accuracy_se": 0.0122, "divergence": 0.031, "latency_relative": 0.2, "parameters": 4_200_000, "feasible": True,
            "on_front": True,
        },
        {
            "student": "no-kd twin of 4", "role": "no-kd twin of 4", "trial": None, "seeds": 0, "twin_of": 4, "proxy_accuracy": None,
            "accuracy": None, "accuracy_se": None, "divergence": None, "latency_relative": None, "parameters": None, "feasible": False,
            "on_front": False,
        },
        {
            "student": "0", "role": "baseline no-kd", "trial": 0, "seeds": 2, "twin_of": None, "proxy_accuracy": 0.75, "accuracy": 0.79,
            "accuracy_se": 0.012, "divergence": 0.09, "latency_relative": 0.52, "parameters": 9_000_000, "feasible": False,
            "breaks": "latency_relative",
            "on_front": False,
        },
    ],
    "sentences": ["The proxy ranks these students poorly."],
}  # fmt: skip
