"""What an evaluation is asked for: plain data that goes to a worker process and back with its measurement."""

from dataclasses import dataclass, field

from kdsearch.candidate import Candidate
from kdsearch.records import Measurement
from kdsearch.rungs import Rungs
from kdsearch.study_file import Training


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
