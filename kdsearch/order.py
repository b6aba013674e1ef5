"""What an evaluation is asked for: plain data that goes to a worker process and back with its measurement."""

import hashlib
from dataclasses import dataclass, field

from kdsearch.candidate import Candidate
from kdsearch.records import Measurement
from kdsearch.rungs import Rungs
from kdsearch.study_file import Search, Training


@dataclass(frozen=True)
class Order:
    """A candidate, the seed of its weights and of the order of its rows, and how far it is trained.

    ``train_anyway`` trains a yardstick that breaks a limit; ``rungs`` says whether it goes on where others have been; ``training`` is
    the study's proxy where it is None; ``timed`` has the latency of another student of this shape, which needs no timing of its own then.
    """

    candidate: Candidate
    seed: int
    train_anyway: bool = False
    rungs: Rungs = field(default_factory=Rungs)
    training: Training | None = None
    timed: Measurement | None = None


def derived(seed: int, number: int, purpose: str = "") -> int:
    """A 32-bit seed for the ask after ``number`` trials, the same in every session; another for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}{purpose}".encode()).digest()[:4], "big")


def seed_of(plan: Search) -> int:
    """The seed of every candidate of a search: equal weights and data order make their difference clearer."""
    return derived(plan.seed, -1)
