"""A student from a candidate: a plain Hugging Face model that any transformers installation loads."""

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from kdsearch.candidate import Architecture, Candidate
from kdsearch.students.families import narrow
from kdsearch.students.importance import Calibration
from kdsearch.students.initialize import initialize


def skeleton(teacher: PretrainedConfig, architecture: Architecture) -> PreTrainedModel:
    """The student without weights (on the meta device): to check that it can be built and count its parameters."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(narrow(teacher, architecture))


def build(teacher: PreTrainedModel, candidate: Candidate, seed: int, calibration: Calibration | None = None) -> PreTrainedModel:
    """The student, float32 on the CPU, started from the teacher as the candidate says; the seed decides what is random.

    A candidate that starts from another model takes that one as its ``teacher``; ``calibration`` is what some initializations choose by.

    Raises:
        ValueError: the candidate has a vocabulary that is not the teacher's (``students.vocabulary.with_vocabulary`` gives it that one), or
            needs a calibration.
    """
    if (size := candidate.architecture.vocabulary) not in (None, teacher.config.vocab_size):
        raise ValueError(f"a student of {size} tokens is cut from a teacher that has these; got one of {teacher.config.vocab_size}")
    logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForSequenceClassification.from_config(narrow(teacher.config, candidate.architecture))
    initialize(student, teacher, candidate.initialization, calibration)
    return student.eval()
