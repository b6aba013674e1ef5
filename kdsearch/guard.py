"""What a trial may hold of the machine's memory, so that a student that is too large fails alone."""

import ctypes
import gc
import math
import sys

from kdsearch.machine import available_memory, held_memory

SHARE = 0.9
# Bytes of a parameter in float32: its weight; and where it is trained, its gradient, AdamW's two moments, and the mean of its steps
# where these are averaged.
OF_A_WEIGHT, OF_ITS_TRAINING, OF_ITS_MEAN = 4, 12, 4


class TooMuchMemoryError(RuntimeError):
    """A trial needs more memory than it may have."""


# What a trial that did not fit into the memory raised: here, in Python, or in PyTorch on a GPU.
TOO_LARGE = (TooMuchMemoryError.__name__, MemoryError.__name__, "OutOfMemoryError")


def most_bytes(gigabytes: float | None, workers: int) -> float:
    """Bytes that a process which evaluates may hold, teacher and all: ``search.trial_gigabytes``, or its share of nine tenths of what is
    available now; one process alone has what it holds already, too."""
    if gigabytes is not None:
        return gigabytes * 1e9
    return SHARE * (available_memory() + (held_memory() if workers == 1 else 0)) / workers


def refuse_large(parameters: int, frozen: int, most: float, averaged: bool = False) -> None:
    """Before a student is built: the least that its training needs, 4 bytes for each weight and 12 (averaged: 16) for each that is trained.

    Raises:
        TooMuchMemoryError: that is more than is left.
    """
    if math.isinf(most):
        return
    needed = OF_A_WEIGHT * parameters + (OF_ITS_TRAINING + OF_ITS_MEAN * averaged) * (parameters - frozen)
    if held_memory() + needed > most:
        give_back()  # what an earlier trial has left
    if (held := held_memory()) + needed > most:
        raise TooMuchMemoryError(
            f"{parameters:,} parameters need at least {needed / 1e9:.3g} GB to train, and beside the {held / 1e9:.3g} GB that the process "
            f"holds that is more than {_limit(most)}"
        )


def refuse_growth(most: float) -> None:
    """While a student is trained, at every step.

    Raises:
        TooMuchMemoryError: the process holds more than it may.
    """
    if (held := held_memory()) > most:
        raise TooMuchMemoryError(f"the process holds {held / 1e9:.3g} GB, more than {_limit(most)}")


def _limit(most: float) -> str:
    return f"the {most / 1e9:.3g} GB of a trial; a smaller student, fewer proxy.batch_tokens or workers, or a larger search.trial_gigabytes"


def give_back() -> None:
    """Return what is freed to the system; glibc keeps it for itself."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
