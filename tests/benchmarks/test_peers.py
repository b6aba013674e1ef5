"""The benchmark against peers, without their environments: what is counted and compared, and that the peers' students are kdsearch's."""

import importlib
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import naive, peers
from benchmarks.peer_parts import first_step, inputs, loop, probe, searches, table, verdict
from kdsearch import cost, records, search_space, space_file
from kdsearch.candidate import Architecture, Candidate, Initialization, Recipe, Term, from_dict
from kdsearch.records import COMPLETE, Measurement, Record
from kdsearch.students.build import build
from kdsearch.students.families import narrow
from tests import tiny


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of benchmarks/peers, imported as it is in a peer's environment: from its own folder."""
    monkeypatch.syspath_prepend(str(loop.SCRIPTS))
    return importlib.import_module


def turn(tokens: float, seconds: float, rate: float = 100.0) -> dict[str, float]:
    counted = {"tokens": tokens, "padded": 2 * tokens, "seconds": seconds, "cpu_seconds": seconds / 2, "steps": 10, "examples": 320}
    return {**counted, "fp32": rate, "bf16": 2 * rate, "peak_megabytes": 500.0, "before": 0.1, "all_examples": 352}


def raced() -> dict[str, Any]:
    turns = [{"kdsearch": turn(1000, 1), **{name: turn(100, 1) for name in peers.LOOP if name != "kdsearch"}} for _ in range(3)]
    turns[1]["naive HF"] = turn(50, 1, rate=50)  # a neighbour came: half as fast, and so was the machine
    return {"turns": turns, **loop.summary(turns, weights=10_000_000)}


FACTS = {"teacher": "6 x 384", "teacher_accuracy": 0.8, "train": 6398, "tokens_per_row": 27.0, "cache_megabytes": 0.06}
RAN = {"part_seconds": 60.0, "load_before": 0.5, "date": "2026-01-01", "command": "the command"}


def results() -> dict[str, Any]:
    right = {name: np.arange(200)[None] % 4 > 0 for name in peers.LOOP} | {"TextBrewer": np.arange(200)[None] % 2 > 0}
    agreed = loop.agreement(right) | {"examples": dict.fromkeys(peers.LOOP, 1920)}
    points = [{"second": float(second), "trial": second, "accuracy": 0.6, "latency_relative": 0.5} for second in (10, 50, 80)]
    kept = searches.at_marks(points, [30.0, 60.0, 90.0], 0.5)
    weight = {"rss": 2000.0, "pss": 1000.0, "own": 900.0}
    searched = {**kept, "points": points, "peak_megabytes": weight, "gflops": [{"fp32": 90.0, "bf16": 200.0}] * 2}
    names = ("Optuna + naive HF", "kdsearch", "Optuna + strong HF", "syne-tune MO-ASHA")
    step = {"first": 9.0, "second": 11.0, "between": 1.0, "gaps": [1.0], "overhead": 0.05}
    milliseconds = {"kdsearch": 50.0, "Optuna TPE, memory": 3.0, "syne-tune MO-ASHA": 400.0, "MO-ASHA's decisions alone": 1.0}
    found = {
        "P0": {"1": {"fp32": 95.0, "bf16": 220.0}, "2": {"fp32": 190.0, "bf16": 430.0}},
        "P1": {"students": {"2x128": raced(), "4x256": raced()}, "facts": FACTS},
        "bigger": {"students": {"4x256": raced()}, "facts": FACTS},
        "long": {"students": {"4x256": raced()}, "facts": FACTS},
        "P2": {"naive HF": step, "kdsearch": step},
        "P3": {
            "contenders": dict.fromkeys(names, searched),
            "marks": [30.0, 60.0, 90.0],
            "seconds": 90.0,
            "reference": [0.5, 0.0],
            "steps": 50,
        },
        "P4": {"milliseconds": milliseconds},
        "accuracy": {"students": {"2x128": agreed}, "steps": 60, "seeds": 1, "examples_per_step": 32},
    }
    return {part: {**told, **RAN} for part, told in found.items()}


def test_a_ratio_counts_what_the_machine_could_do_in_each_turn() -> None:
    told = raced()
    assert told["ratio"]["naive HF"] == pytest.approx(10.0)
    assert told["ratio_range"]["naive HF"] == pytest.approx([10.0, 10.0])
    assert told["tokens_per_second"]["naive HF"] == 100
    assert told["share_of_peak"] == pytest.approx(6 * 10_000_000 * 1000 / 200e9)


def test_the_document_lists_every_bar_and_says_which_are_missed() -> None:
    everything = results()
    bars = verdict.bars(everything)
    text = table.document(everything, bars)
    assert "* `the command` (2026-01-01): P0, P1, bigger, long, P2, P3, P4, accuracy" in text
    assert all(f"| {bar.part} | {bar.asked} | {bar.found} | {'yes' if bar.met else '**no**'} |" in text for bar in bars)
    met = {bar.asked: bar.met for bar in bars}
    assert met["2x128 against naive HF: at least 10x"]
    assert not met["4x256, teacher 6 x 384, against naive HF: at least 25x"]
    assert not met["trials against Optuna + naive HF: at least 10x"]
    assert not met["hypervolume at 30 s ahead of every peer's"]  # a tie is not ahead
    assert met["ahead of syne-tune"]
    assert [bar.found for bar in bars if "accuracies" in bar.asked] == ["TextBrewer +25.0"]
    assert f"Bars met: **{sum(met.values())} of {len(bars)}**" in text


def test_a_document_of_some_parts_names_the_others() -> None:
    some = {"P0": results()["P0"]}
    text = table.document(some, verdict.bars(some))
    assert "not run: P1, accuracy, bigger, long, P2, P3, P4" in text
    assert "Bars met: **0 of 0**" in text


def test_what_is_printed_leaves_out_raw_data() -> None:
    told = table.brief(results())
    assert "turns" not in told["P1"]["students"]["2x128"]
    assert "points" not in told["P3"]["contenders"]["kdsearch"]
    assert told["P4"]["milliseconds"]["kdsearch"] == 50.0
    assert table.brief({"between": float("nan")}) == {"between": None}  # JSON has no other word for it


def test_within_a_point_or_else_two_errors() -> None:
    base = np.tile(np.arange(400) % 2, (2, 1))
    close, noisy, far = base.copy(), base.copy(), base.copy()
    close[:, 0] = 1
    noisy[:, :48:2] = 1  # 24 rows better ..
    noisy[:, 49:81:2] = 0  # .. and 16 worse: two points, with an error of one and a half
    far[:, :80:2] = 1
    told = loop.agreement({"kdsearch": base, "close": close, "noisy": noisy, "far": far})
    assert told["within"] == {"close": "a point", "noisy": "2 SE", "far": "neither"}
    assert loop.agreement({"kdsearch": base[:1], "far": far[:1]})["error"] == {"far": told["error"]["far"]}  # two seeds alike are as one


def test_seeds_that_disagree_are_part_of_the_error() -> None:
    base = np.tile(np.arange(400) % 2, (2, 1))
    other = base.copy()
    other[0, :80:2] = 1  # ten points with one seed, none with the other
    told = loop.agreement({"kdsearch": base, "other": other})
    assert told["difference"]["other"] == pytest.approx(-0.05)
    rows = np.repeat([-0.5, 0.0], [40, 360])
    assert told["error"]["other"] == pytest.approx(math.sqrt(0.05**2 + rows.var(ddof=1) / 400))


def test_the_probe_counts_operations_per_second() -> None:
    assert 1e7 < probe.rate(torch.float32, seconds=0.01) < 1e14


def test_trials_and_hypervolume_at_each_mark() -> None:
    points = [
        {"second": 10.0, "trial": 1, "accuracy": 0.6, "latency_relative": 0.5},
        {"second": 20.0, "trial": 1, "accuracy": 0.7, "latency_relative": 0.5},
        {"second": 70.0, "trial": 2, "accuracy": 0.8, "latency_relative": 2.0},
        {"second": 75.0, "trial": 3},  # stopped at a rung
    ]
    told = searches.at_marks(points, [5.0, 30.0, 90.0], 0.5)
    assert told["trials"] == [0, 1, 3]
    assert told["hypervolume"] == pytest.approx([0.0, 0.2 * math.log(2), 0.2 * math.log(2)])


def test_a_trial_that_is_told_before_an_earlier_one_is_found_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()

    def told(*trials: int) -> None:
        found = Measurement(COMPLETE, accuracy=0.7, latency_relative=0.5)
        records.write(folder / "trials.jsonl", [Record(trial, {}, found, seed=0) for trial in trials])

    told(0, 2)
    points = searches.new_points(tmp_path, [], 1.0, 0.0)
    told(0, 1, 2, 3)  # the records stand in the order of their trials
    points += searches.new_points(tmp_path, points, 2.0, 0.0)
    assert [(point["trial"], point["second"]) for point in points] == [(0, 1.0), (2, 1.0), (1, 2.0), (3, 2.0)]


def test_gaps_are_between_trials_of_one_process() -> None:
    steps = [(10.0, 1, 0), (12.0, 1, 0), (11.0, 2, 0), (13.0, 2, 0), (12.5, 1, 1), (14.0, 2, 1)]
    told = first_step.read_steps(steps, start=5.0)
    assert (told["first"], told["second"], told["between"]) == (5.0, 6.0, 0.75)
    assert first_step.max_trials(steps) == 2


def test_the_memory_of_this_process_is_seen() -> None:
    told = searches.memory_of(os.getpid())
    assert told["rss"] >= told["pss"] >= told["own"] > 10


def test_the_fixed_students_and_the_space_are_kdsearch_s() -> None:
    space = space_file.parse(inputs.SPACE)
    drawn = search_space.sample(space, lambda _, domain: search_space._options(domain)[0])
    assert drawn.distillation.scale == "raw"
    for case in inputs.CASES.values():
        for name, shape in case.students.items():
            candidate = inputs.candidate_of(shape, inputs.RATES[name])
            built = from_dict(candidate).architecture
            assert f"{built.layers}x{built.width}" == name
            layer = 4 * built.width**2 + 2 * built.width * built.ffn
            assert inputs.products(candidate) == built.layers * layer


def test_products_are_the_weights_of_the_layers() -> None:
    shape = Architecture(2, 4, 6, 2)
    config = narrow(tiny.teacher().config, shape)
    embeddings = (len(tiny.VOCABULARY) + 64 + 2) * 24 + 2 * 24
    biases = 2 * (4 * 24 + 48 + 24 + 4 * 24)
    head = 24 * 24 + 24 + 2 * 24 + 2
    described = {"architecture": {"layers": 2, "heads": 4, "head_size": 6, "ffn_ratio": 2}}
    assert inputs.products(described) == cost.parameters(config) - embeddings - biases - head


@pytest.mark.parametrize("start", ["first", "last", "uniform"])
def test_a_peer_s_student_is_the_one_that_kdsearch_builds(peer: Any, start: str) -> None:
    teacher = tiny.teacher()
    theirs = peer("space").cut(teacher, {"layers": 3, "heads": 2, "head_size": 6, "ffn_ratio": 2, "start": start})
    ours = build(teacher, Candidate(Architecture(3, 2, 6, 2), Initialization(start, "slice")), 0)
    for (name, weight), (other, same) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(weight, same), name


def test_a_peer_s_loss_is_the_naive_way_s_which_is_kdsearch_s(peer: Any) -> None:
    teacher, student = tiny.teacher(1), tiny.teacher(2)
    batch = tiny.batch([5, 9, 3], labels=[0, 1, 1])
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    recipe = {"hard_weight": 0.3, "temperature": 2.0}
    trainer = SimpleNamespace(args=SimpleNamespace(bf16=False), guide=teacher, recipe=recipe)
    theirs = peer("with_trainer").DistillingTrainer.compute_loss(trainer, student, given)
    kd = Recipe("kd", 0.3, (Term("kd", 1.0, (("temperature", 2.0),)),), scale="raw")
    told = teacher(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(theirs, naive.naive_loss(kd, student(**given), told, batch.attention_mask, torch.nn.Identity()))


def test_the_meter_counts_all_steps_but_the_first(peer: Any) -> None:
    model = tiny.teacher()
    optimizer = torch.optim.AdamW(model.parameters())
    with peer("contender").Meter(model) as meter:
        for lengths in ([30, 30], [4, 6], [3, 8]):
            batch = tiny.batch(lengths)
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.sum().backward()
            optimizer.step()
        with torch.no_grad():
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    told = meter.told(start=0.0)
    assert (told["steps"], told["examples"], told["tokens"], told["padded"], told["all_examples"]) == (2, 4, 21, 28, 6)
    assert told["seconds"] > 0
    with pytest.raises(RuntimeError, match="0 optimizer steps"), peer("contender").Meter(model) as empty:
        empty.told(start=0.0)


def test_rows_come_back_from_files_as_they_were(peer: Any, tmp_path: Path) -> None:
    contender, rows = peer("contender"), tiny.rows(tmp_path)
    inputs._write_rows(tmp_path / "rows.npz", rows)
    (tmp_path / "inputs.json").write_text(f'{{"rows": "{tmp_path}/rows.npz", "pad_id": 0, "max_length": 32}}')
    read = contender.Inputs.read(str(tmp_path / "inputs.json"))
    assert len(read.measured) == len(rows.validation) + len(rows.test)
    first, last = (read.example(int(place)) for place in (rows.validation[0], read.measured[-1]))
    assert first["input_ids"] == rows.encoded.ids[slice(*rows.encoded.span(int(rows.validation[0])))].tolist()
    assert last["input_ids"] == rows.test.ids[slice(*rows.test.span(len(rows.test) - 1))].tolist()
    batch = read.padded([first, last])
    assert batch["input_ids"].shape[1] % 4 == 0
    assert batch["attention_mask"].sum() == len(first["input_ids"]) + len(last["input_ids"])
    assert read.padded([first], width=32)["input_ids"].shape == (1, 32)


def test_kdsearch_s_batches_hold_about_as_many_examples_as_the_others() -> None:
    random = np.random.default_rng(1)
    lengths = np.clip(random.normal(27, 11, 6400).astype(int), 3, 64)
    encoded = SimpleNamespace(lengths=lengths)
    size = inputs.batch_tokens(SimpleNamespace(encoded=encoded, train=np.arange(6400)))  # pyright: ignore[reportArgumentType]
    batches = inputs.bucket(np.arange(6400), lengths, size)
    assert len(lengths) / len(batches) == pytest.approx(inputs.EXAMPLES_PER_STEP, rel=0.02)


def test_every_contender_has_a_script_and_an_environment() -> None:
    for environment, (script, *_) in loop.CONTENDERS.values():
        assert (loop.SCRIPTS / script).is_file()
        assert environment == "kdsearch" or environment in peers.environments.PEERS
    peer_scripts = [path for path in loop.SCRIPTS.rglob("*.py") if path.name != "with_kdsearch.py"]
    assert len(peer_scripts) > 8
    assert not [path for path in peer_scripts if "import kdsearch" in path.read_text() or "from kdsearch" in path.read_text()]
