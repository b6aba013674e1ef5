"""What a student reads: its tokenizer, the task's rows in its ids, and the teacher with these words alone, to cut the student from."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from kdsearch.errors import UserError
from kdsearch.students import vocabulary
from kdsearch.students.vocabulary import Ranking
from kdsearch.tasks import pool
from kdsearch.tasks.data import TaskData
from kdsearch.tasks.pool import Pool


@dataclass(frozen=True)
class Reading:
    """One vocabulary's view of a task. Rows have the indices that they have for the teacher.

    ``changed`` counts the rows of train and transfer text that are tokenised otherwise than the teacher does: with 0 of them, token k of
    a row is the teacher's token k, so that states can be compared token by token.
    """

    tokenizer: Any
    rows: Pool
    teacher: PreTrainedModel
    changed: int = 0


def rank(tokenizer: Any, texts: TaskData, max_length: int) -> Ranking:
    """The order in which a smaller vocabulary keeps the tokens: by train and transfer text; the other texts name characters only."""
    counted = chain(texts.train.texts, texts.transfer.texts)
    others = chain(texts.validation.texts, texts.held_out.texts, texts.test.texts)
    if texts.corpus is None:
        return vocabulary.rank(tokenizer, counted, others, max_length=max_length)
    with texts.corpus.open(encoding="utf-8", errors="replace") as lines:
        return vocabulary.rank(tokenizer, counted, others, lines, max_length)


def reduced(whole: Reading, ranking: Ranking, size: int, texts: TaskData, max_length: int) -> Reading:
    """The reading with the first ``size`` tokens of the ranking, given that with all of the teacher's.

    Raises:
        UserError: no vocabulary of this size can be made.
    """
    if messages := vocabulary.mistakes(size, ranking):
        raise UserError(messages)
    tokenizer = vocabulary.reduce(whole.tokenizer, ranking.tokens[:size])
    rows = pool.build(texts, tokenizer, max_length)
    return Reading(tokenizer, rows, vocabulary.with_vocabulary(whole.teacher, tokenizer, whole.tokenizer), _changed(whole, tokenizer, rows))


def _changed(whole: Reading, tokenizer: Any, rows: Pool) -> int:
    told, old = vocabulary.teacher_ids(tokenizer, whole.tokenizer)[rows.encoded.ids], whole.rows.encoded
    trained = np.concatenate([rows.train, rows.transfer])
    return sum(not np.array_equal(told[slice(*rows.encoded.span(row))], old.ids[slice(*old.span(row))]) for row in trained)
