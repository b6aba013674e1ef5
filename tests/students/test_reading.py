from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdsearch.errors import UserError
from kdsearch.students.reading import Reading, rank, reduced
from kdsearch.students.vocabulary import Ranking, teacher_ids
from kdsearch.tasks import pool
from kdsearch.tasks.data import Rows, TaskData
from tests import tiny

LENGTH = 32


@pytest.fixture
def texts() -> TaskData:
    return tiny.task_data()


@pytest.fixture
def whole(tmp_path: Path, texts: TaskData) -> Reading:
    tokenizer = tiny.tokenizer(tmp_path, tiny.SPELLED)
    return Reading(tokenizer, pool.build(texts, tokenizer, LENGTH), tiny.teacher(vocab_size=len(tiny.SPELLED)))


def words(rows: Rows) -> set[str]:
    return {word for text in rows.texts for word in text.split()}


def test_only_train_and_transfer_text_is_counted_and_no_text_becomes_unknown(whole: Reading, texts: TaskData) -> None:
    few = replace(texts, train=Rows(texts.train.texts[:4], [0, 1, 0, 1]), transfer=Rows(texts.transfer.texts[:4], None))
    few = replace(few, test=Rows([*texts.test.texts, "zebra zebra zebra word9"], [*(texts.test.labels or []), 0]))
    ranking = rank(whole.tokenizer, few, LENGTH)
    assert words(few.train) | words(few.transfer) <= set(ranking.tokens[: ranking.lossless])
    assert words(few.test) - {"zebra"} - set(ranking.tokens[: ranking.lossless])
    assert {"z", "##e", "##b", "##r", "##a"} <= set(ranking.tokens[: ranking.needed])


def test_a_corpus_counts_beside_the_task_s_texts(whole: Reading, texts: TaskData, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("bad7\n" * 500 + "good3 good3\n" * 200)
    plain, more = (rank(whole.tokenizer, replace(texts, corpus=corpus), LENGTH) for corpus in (None, tmp_path / "more.txt"))
    assert more.tokens[more.needed : more.needed + 2] == ("bad7", "good3")
    assert (plain.needed, sorted(plain.tokens)) == (more.needed, sorted(more.tokens))


def test_what_is_cut_off_is_not_counted(whole: Reading, texts: TaskData) -> None:
    long = replace(texts, train=Rows(["word0 " * LENGTH + "word149 good0", *texts.train.texts[1:]], texts.train.labels))
    without = {word for rows in (texts.transfer, replace(texts.train, texts=texts.train.texts[1:])) for word in words(rows)}
    ranking = rank(whole.tokenizer, long, LENGTH)
    assert ("good0" in ranking.tokens[: ranking.lossless]) == ("good0" in without)


@pytest.mark.parametrize("all_tokens", [True, False])
def test_rows_keep_their_places_and_those_that_change_are_counted(whole: Reading, texts: TaskData, all_tokens: bool) -> None:
    ranking = rank(whole.tokenizer, texts, LENGTH)
    size = ranking.lossless if all_tokens else ranking.needed + 40
    found = reduced(whole, ranking, size, texts, LENGTH)
    for part in ("train", "transfer", "validation", "held_out"):
        np.testing.assert_array_equal(getattr(found.rows, part), getattr(whole.rows, part))
    np.testing.assert_array_equal(found.rows.encoded.labels, whole.rows.encoded.labels)
    told, old, changed = teacher_ids(found.tokenizer, whole.tokenizer)[found.rows.encoded.ids], whole.rows.encoded, 0
    for row in [*whole.rows.train, *whole.rows.transfer]:
        changed += told[slice(*found.rows.encoded.span(row))].tolist() != old.ids[slice(*old.span(row))].tolist()
    assert found.changed == changed
    assert (changed == 0) == all_tokens
    assert found.rows.encoded.ids.max() < size


def test_a_size_that_cannot_be_made_is_refused(whole: Reading, texts: TaskData) -> None:
    with pytest.raises(UserError, match=r"architecture\.vocabulary: must be at least 5"):
        reduced(whole, Ranking(tuple("abcdef"), 5, 5), 3, texts, LENGTH)
