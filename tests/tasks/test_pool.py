from dataclasses import replace
from pathlib import Path

import numpy as np

from kdsearch.tasks import pool
from kdsearch.tasks.batches import UNLABELLED
from kdsearch.tasks.data import Rows
from tests import tiny


def test_parts_are_the_task_s_texts_in_their_order(tmp_path: Path) -> None:
    data, tokenizer = tiny.task_data(), tiny.tokenizer(tmp_path)
    found = pool.build(data, tokenizer, max_length=32)
    for name in ("train", "transfer", "validation", "held_out"):
        rows, part = getattr(data, name), getattr(found, name)
        words = [tokenizer.decode(found.encoded.ids[found.encoded.offsets[i] + 1 : found.encoded.offsets[i + 1] - 1]) for i in part]
        assert words == rows.texts, name
        assert found.encoded.labels[part].tolist() == (rows.labels or [UNLABELLED] * len(rows.texts)), name
    everything = np.concatenate([found.train, found.transfer, found.validation, found.held_out])
    assert sorted(everything) == list(range(len(found.encoded)))  # and so no test row is among them
    assert found.test.labels.tolist() == data.test.labels
    assert found.measuring.tolist() == [*found.validation, *found.held_out]
    assert found.pad_id == tokenizer.pad_token_id == 0


def test_the_key_follows_the_content_and_the_parts(tmp_path: Path) -> None:
    data, tokenizer = tiny.task_data(), tiny.tokenizer(tmp_path)
    key = pool.build(data, tokenizer, 32).key
    assert key == pool.build(tiny.task_data(), tokenizer, 32).key
    assert data.train.labels is not None
    flipped = Rows(data.train.texts, [1 - data.train.labels[0], *data.train.labels[1:]])
    moved = replace(
        data,
        train=Rows(data.train.texts[:-1], data.train.labels[:-1]),
        transfer=Rows([data.train.texts[-1], *data.transfer.texts], None),
    )
    others = {
        "text": pool.build(replace(data, train=Rows(["word1", *data.train.texts[1:]], data.train.labels)), tokenizer, 32),
        "label": pool.build(replace(data, train=flipped), tokenizer, 32),
        "part": pool.build(moved, tokenizer, 32),
        "classes": pool.build(replace(data, classes=["positive", "negative"]), tokenizer, 32),
        "length": pool.build(data, tokenizer, 8),
    }
    assert len({key, *(other.key for other in others.values())}) == len(others) + 1


def test_the_key_of_the_train_rows_follows_them_alone(tmp_path: Path) -> None:
    data, tokenizer = tiny.task_data(), tiny.tokenizer(tmp_path)
    found = pool.build(data, tokenizer, 32)
    without = pool.build(replace(data, transfer=Rows([], None), held_out=Rows([], None), validation=data.test), tokenizer, 32)
    assert without.train_key == found.train_key
    assert without.key != found.key
    assert data.train.labels is not None
    others = [Rows(data.train.texts, data.train.labels[::-1]), Rows(data.train.texts[::-1], data.train.labels)]
    keys = {pool.build(replace(data, train=rows), tokenizer, 32).train_key for rows in others}
    assert len({found.train_key, *keys}) == 3
