import json
import os
import stat
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch import records
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement, Record

FLOATS = st.none() | st.floats(allow_nan=False)
MEASUREMENTS = st.builds(
    Measurement,
    state=st.sampled_from([COMPLETE, REFUSED, FAILED]),
    reason=st.none() | st.text(),
    accuracy=FLOATS,
    latency_ms=FLOATS,
    parameters=st.none() | st.integers(),
    violations=st.lists(st.floats(allow_nan=False)).map(tuple),
    traceback=st.none() | st.text(),
)
RECORDS = st.builds(
    Record,
    trial=st.integers(min_value=0),
    candidate=st.just({"architecture": {"layers": 1}}),
    measurement=MEASUREMENTS,
    seed=st.integers(),
    baseline=st.none() | st.text(),
    duplicate_of=st.none() | st.integers(),
)


@given(found=st.lists(RECORDS, max_size=5))
def test_records_come_back_from_the_file(found: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "trials.jsonl"
    records.write(path, found)
    assert records.read(path) == found
    assert path.read_text(encoding="utf-8").count("\n") == len(found)


def test_a_line_holds_what_the_contract_names() -> None:
    line = json.loads(json.dumps(Record(3, {}, Measurement(COMPLETE), seed=1).to_dict()))
    named = "trial state accuracy accuracy_se latency_ms latency_relative parameters steps seconds divergence candidate seed reason"
    assert set(named.split()) <= set(line)


def test_a_key_of_a_later_version_is_ignored() -> None:
    record = Record(3, {}, Measurement(COMPLETE, accuracy=0.5), seed=1)
    assert records.from_dict({**record.to_dict(), "invented_later": 1}) == record


@pytest.mark.parametrize(
    ("state", "violations", "feasible"),
    [
        (COMPLETE, (), True),
        (COMPLETE, (-0.5, 0.0), True),  # at its limit
        (COMPLETE, (-0.5, 1e-9), False),
        (REFUSED, (-0.5,), False),
        (FAILED, (), False),
    ],
)
def test_feasible_is_trained_and_inside_every_limit(state: str, violations: tuple[float, ...], feasible: bool) -> None:
    assert Record(0, {}, Measurement(state, violations=violations), seed=0).feasible is feasible


@pytest.mark.parametrize(
    ("state", "violations", "reason", "breaks"),
    [
        (COMPLETE, (0.1, -0.1), "accuracy_relative 0.86 is below the limit 0.9", "accuracy_relative"),
        (COMPLETE, (0.1, 0.2), "latency_ms 3 exceeds the limit 2; parameters 5 exceeds the limit 4", "latency_ms, parameters"),
        (COMPLETE, (0.1,), None, "a limit"),
        (COMPLETE, (-0.1,), None, ""),
        (REFUSED, (0.1,), "latency_ms 3 exceeds the limit 2", ""),
    ],
)
def test_a_student_says_which_limits_it_breaks(state: str, violations: tuple[float, ...], reason: str | None, breaks: str) -> None:
    assert Record(0, {}, Measurement(state, reason=reason, violations=violations), seed=0).breaks == breaks


def test_what_is_written_aside_is_for_others_to_read_as_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        records.write_text(tmp_path / "report.html", "text")
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        records.open_to_others(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o644
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, one = tmp_path / "trials.jsonl", Record(0, {"x": "y" * 2000}, Measurement(COMPLETE), seed=0)
    versions = [[replace(one, trial=n, seed=version) for n in range(50)] for version in (1, 2)]
    records.write(path, versions[0])
    ended = threading.Event()

    def keep_writing() -> None:
        for n in range(60):
            records.write(path, versions[n % 2])
        ended.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    reads = 0
    while not ended.is_set():
        assert records.read(path) in versions
        reads += 1
    writer.join()
    assert reads > 5
    assert [item.name for item in tmp_path.iterdir()] == ["trials.jsonl"]


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    records.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        records.write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
