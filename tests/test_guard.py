import sys

import pytest

from kdsearch import guard, machine
from kdsearch.guard import TooMuchMemoryError

GIGABYTE = 1e9


@pytest.fixture(autouse=True)
def of_two_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds 2 GB on a machine that has 6 left."""
    monkeypatch.setattr(guard, "held_memory", lambda: 2 * GIGABYTE)
    monkeypatch.setattr(guard, "available_memory", lambda: 6 * GIGABYTE)


def test_a_trial_may_hold_what_the_study_says_or_its_share_of_what_is_available() -> None:
    assert guard.most_bytes(1.5, 3) == 1.5 * GIGABYTE
    assert guard.most_bytes(None, 3) == pytest.approx(0.9 * 2 * GIGABYTE)
    assert guard.most_bytes(None, 1) == pytest.approx(0.9 * (6 + 2) * GIGABYTE)


@pytest.mark.parametrize(
    ("parameters", "frozen", "averaged", "needed"),
    [(100_000_000, 0, False, 1.6), (100_000_000, 50_000_000, False, 1.0), (100_000_000, 50_000_000, True, 1.2)],
)
def test_a_parameter_takes_4_bytes_and_more_where_it_is_trained(parameters: int, frozen: int, averaged: bool, needed: float) -> None:
    guard.refuse_large(parameters, frozen, (2 + needed) * GIGABYTE, averaged)
    with pytest.raises(TooMuchMemoryError) as raised:
        guard.refuse_large(parameters, frozen, (2 + needed) * GIGABYTE - 1, averaged)
    assert str(raised.value).startswith(
        f"100,000,000 parameters need at least {needed:.3g} GB to train, and beside the 2 GB that the process holds that is more than the "
        f"{2 + needed:.3g} GB of a trial; a smaller student, "
    )


def test_what_an_earlier_trial_left_is_given_back_before_a_student_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([3 * GIGABYTE, 2 * GIGABYTE])
    monkeypatch.setattr(guard, "held_memory", lambda: next(held))
    guard.refuse_large(100_000_000, 0, 4 * GIGABYTE)
    assert next(held, None) is None


def test_growth_is_refused_above_the_limit_alone() -> None:
    guard.refuse_growth(2 * GIGABYTE)
    with pytest.raises(
        TooMuchMemoryError, match=r"the process holds 2 GB, more than the 1.99 GB of a trial; .* or a larger search.trial_gigabytes"
    ):
        guard.refuse_growth(1.99 * GIGABYTE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is kept, or nothing can be said to what keeps it")
def test_freed_memory_is_given_back_to_the_system() -> None:
    blocks, kept = [], []
    for _ in range(1000):
        blocks.append(bytearray(100_000))
        kept.append(bytearray(1000))  # between them, so that what is freed is not the end of the heap
    before = machine.held_memory()
    del blocks
    guard.give_back()
    assert machine.held_memory() < before - 80e6
