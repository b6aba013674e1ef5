import io
import time

import pytest
from rich.console import Console

from kdsearch.budget import Work
from kdsearch.candidate import Candidate
from kdsearch.display import Display
from kdsearch.records import COMPLETE, Measurement, Record
from kdsearch.study_file import Search
from tests import tiny

CANDIDATE = Candidate(tiny.SHAPE)
FOUND = Measurement(COMPLETE, accuracy=0.8, accuracy_se=0.01, latency_relative=0.5, flops=1e6, steps=10, seconds=5.0)


def at_trial(number: int, plan: Search, work: Work | None = None, kept: float = 0.0) -> Display:
    """A display after so many trials, in 100 seconds, while another runs."""
    known = [Record(trial, CANDIDATE.to_dict(), FOUND, 0) for trial in range(number)]
    display = Display(Console(file=io.StringIO()), plan, known, seconds=100.0)
    display.reckons(work or Work(), lambda known: kept)
    display.proposed(number, CANDIDATE, None)
    return display


@pytest.mark.parametrize(
    ("plan", "kept", "expected"),
    [
        (Search(minutes=10), 0.0, 60),
        (Search(minutes=10), 300.0, 30),
        (Search(minutes=10, trials=20), 0.0, 20),
        (Search(minutes=10, flops=1.5e9 + 1e6), 0.0, 50),  # a trial is 3e7, and the teacher 1e6
        (Search(minutes=10, flops=1.0), 0.0, 60),
    ],
)
def test_about_how_many_trials_there_will_be(plan: Search, kept: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert at_trial(10, plan, Work(1, 1, 1e6), kept).expected() == expected


def test_what_is_left_of_the_budget_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert at_trial(10, Search(minutes=10)).standing() == "best so far 0.800 at 2.0x · 8.3 min left"
    some = at_trial(10, Search(minutes=10, flops=1e9), Work(1, 1, 1e8), 120.0)
    assert some.standing().endswith(" · 8.3 min left, 2.0 of them for the finalists · 60% of the FLOPs left")
    some.keep = lambda known: 60.0 * len(known) / 11
    some.found(Record(10, CANDIDATE.to_dict(), FOUND, 0), [*some.known, Record(10, CANDIDATE.to_dict(), FOUND, 0)])
    assert some.standing().endswith(" · 8.3 min left, 1.0 of them for the finalists · 57% of the FLOPs left")
