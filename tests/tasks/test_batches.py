from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.tasks.batches import UNLABELLED, Encoded, bucket, collate, encode, join, stream
from tests import tiny

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60).map(np.array)


def padded(lengths: np.ndarray) -> int:
    return -(-int(lengths.max()) // 4) * 4


@given(LENGTHS, st.integers(1, 2000), st.randoms())
def test_every_row_is_in_one_batch_that_keeps_to_its_tokens(lengths: np.ndarray, batch_tokens: int, random) -> None:
    rows = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    batches = bucket(rows, lengths, batch_tokens)
    assert sorted(np.concatenate(batches)) == sorted(rows)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * padded(lengths[batch]) <= batch_tokens


@given(LENGTHS, st.integers(300, 3000))
def test_a_batch_is_as_large_as_its_tokens_allow(lengths: np.ndarray, batch_tokens: int) -> None:
    batches = bucket(np.arange(len(lengths)), lengths, batch_tokens)
    for this, following in pairwise(batches):
        with_one_more = np.append(this, following[0])
        assert len(with_one_more) * padded(lengths[with_one_more]) > batch_tokens


def test_hardly_anything_is_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(3, 0.5, size=3000).astype(int) + 2
    batches = bucket(np.arange(3000), lengths, 1024)
    tokens = sum(len(batch) * padded(lengths[batch]) for batch in batches)
    at_random = sum(len(batch) * padded(lengths[batch]) for batch in np.array_split(np.arange(3000), len(batches)))
    assert lengths.sum() / tokens > 0.85  # what remains: rounding up to a multiple of 4
    assert lengths.sum() / at_random < 0.55


def epochs(labelled: int, transfer: int, share: float, count: int, seed: int = 0) -> list[list[int]]:
    """Rows of the first epochs; rows from 1000 on are transfer rows."""
    lengths = np.random.default_rng(0).integers(3, 40, size=2000)
    of_one = labelled + (round(labelled * share / (1 - share)) if transfer else 0)
    flow = stream(np.arange(labelled), 1000 + np.arange(transfer), lengths, 256, share, seed)
    found: list[list[int]] = []
    for number in range(count):
        found.append([])
        while len(found[-1]) < of_one:
            epoch, rows = next(flow)
            assert epoch == number
            found[-1] += rows.tolist()
        assert len(found[-1]) == of_one
    return found


@settings(max_examples=40)
@given(st.integers(2, 60), st.integers(0, 80), st.sampled_from([0.0, 0.2, 0.5, 0.75]))
def test_an_epoch_holds_every_labelled_row_and_the_share_of_transfer_rows(labelled: int, transfer: int, share: float) -> None:
    drawn: list[int] = []
    for epoch in epochs(labelled, transfer, share, 4):
        assert sorted(row for row in epoch if row < 1000) == list(range(labelled))
        drawn += [row for row in epoch if row >= 1000]
    counts = Counter(drawn)
    if transfer and drawn:
        # None comes again before each was seen.
        assert max(counts.values()) == -(-len(drawn) // transfer)
        assert len(counts) == min(transfer, len(drawn))


def test_the_stream_is_decided_by_its_seed_and_differs_between_epochs() -> None:
    assert epochs(40, 60, 0.5, 3, seed=1) == epochs(40, 60, 0.5, 3, seed=1)
    assert epochs(40, 60, 0.5, 1, seed=1) != epochs(40, 60, 0.5, 1, seed=2)
    first, second = epochs(40, 0, 0.0, 2)
    assert first != second


def test_batches_of_an_epoch_are_not_sorted_by_length() -> None:
    lengths = np.arange(1, 401)
    sizes = [lengths[batch].max() for _, batch in islice(stream(np.arange(400), np.zeros(0, int), lengths, 1024, 0.0, 0), 30)]
    assert sizes != sorted(sizes)


def test_rows_are_cut_and_joined_without_a_loss(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer(tmp_path)
    labelled = encode(tokenizer, ["good1 word2 word3 word4 word5", "bad1"], [1, 0], max_length=5)
    free, nothing = encode(tokenizer, ["word7"], None, max_length=5), encode(tokenizer, [], None, max_length=5)
    both = join([labelled, nothing, free])
    words = [tokenizer.convert_ids_to_tokens(both.ids[both.offsets[i] : both.offsets[i + 1]]) for i in range(len(both))]
    assert words == [["[CLS]", "good1", "word2", "word3", "[SEP]"], ["[CLS]", "bad1", "[SEP]"], ["[CLS]", "word7", "[SEP]"]]
    assert both.labels.tolist() == [1, 0, UNLABELLED]
    assert both.lengths.tolist() == [5, 3, 3]


@given(LENGTHS, st.randoms())
def test_a_batch_is_its_rows_padded(lengths: np.ndarray, random) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    encoded = Encoded(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets, np.arange(len(lengths)))
    rows = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    batch = collate(encoded, rows, pad_id=-7, device=torch.device("cpu"))
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(rows), padded(lengths[rows]))
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.labels.dtype == torch.int64
    for place, row in enumerate(rows):
        expected = encoded.ids[offsets[row] : offsets[row + 1]].tolist()
        assert batch.input_ids[place].tolist() == expected + [-7] * (batch.input_ids.shape[1] - len(expected))
        assert batch.attention_mask[place].tolist() == [1] * len(expected) + [0] * (batch.input_ids.shape[1] - len(expected))
    assert batch.labels.tolist() == batch.rows.tolist() == rows.tolist()
