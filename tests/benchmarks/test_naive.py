"""The comparison is fair: both ways see the same rows, minimise the same loss, and see as many examples."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from benchmarks import naive
from kdsearch import search_space, space_file, teacher
from kdsearch.candidate import Architecture, Recipe, Term
from kdsearch.distillation.composition import Composition
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.signals import observe
from kdsearch.tasks import data, pool
from kdsearch.tasks.batches import Encoded, bucket, collate, encode

SPACE = Path(naive.__file__).parents[1] / "search_spaces" / "encoder.yaml"
KD = Term("kd", 1.0, (("temperature", 2.0),))
HIDDEN = Term("hidden_mse", 0.7, (("matching", "uniform"),))
VOCABULARY = 50


class WordTokenizer:
    """Words are their own token ids; 0 pads."""

    def __call__(self, texts: list[str], padding: str = "", truncation: bool = True, max_length: int = 0, **_: object) -> dict[str, list]:
        ids = [[int(word) for word in text.split()][:max_length] for text in texts]
        width = max_length if padding == "max_length" else 0
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
        return {"input_ids": [row + [0] * (width - len(row)) for row in ids], "attention_mask": mask}


def model(layers: int, width: int) -> BertForSequenceClassification:
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config).eval()


def rows(count: int, longest: int) -> data.Rows:
    random = np.random.default_rng(0)
    texts = [" ".join(map(str, random.integers(1, VOCABULARY, random.integers(1, longest + 1)))) for _ in range(count)]
    return data.Rows(texts, random.integers(0, 2, count).tolist())


def pooled(encoded: Encoded) -> pool.Pool:
    nothing = np.zeros(0, dtype=np.int64)
    everything = np.arange(len(encoded))
    return pool.Pool(encoded, everything, nothing, nothing, nothing, encoded, ["0", "1"], 0.5, 0)


def test_padded_rows_are_the_rows_of_kdsearch_in_the_same_order():
    texts = rows(20, 14)
    padded, encoded = naive.padded_rows(WordTokenizer(), texts, 10), encode(WordTokenizer(), texts.texts, texts.labels, 10)
    assert {len(row) for row in padded["input_ids"]} == {10}
    kept = [np.asarray(ids)[np.asarray(mask) == 1] for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)]
    assert [len(row) for row in kept] == encoded.lengths.tolist()
    assert np.concatenate(kept).tolist() == encoded.ids.tolist()
    assert padded["labels"] == encoded.labels.tolist()


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize(
    "recipe",
    [Recipe("kd", 0.5, (KD,), scale="raw"), Recipe("hard", scale="raw"), Recipe("hidden_mse", 0.3, (KD, HIDDEN), scale="raw")],
    ids=lambda recipe: recipe.name,
)
def test_the_hand_written_loss_is_the_loss_of_kdsearch_whatever_the_padding(recipe: Recipe, layers: int):
    student, guide, texts = model(layers, 8), model(6, 16), rows(12, 9)
    encoded = encode(WordTokenizer(), texts.texts, texts.labels, 16)
    batch = collate(encoded, np.arange(12), 0, torch.device("cpu"))
    composition = Composition(recipe, Shapes(Architecture(layers, 2, 4, 2), Architecture(6, 2, 8, 1), 2))
    ours = composition(
        observe(student, batch, composition.student_signals), observe(guide, batch, composition.teacher_signals), batch
    ).mean()

    padded = naive.padded_rows(WordTokenizer(), texts, 16).with_format("torch")[:]
    found = student(**padded, output_hidden_states=True)
    told = guide(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], output_hidden_states=True)
    project = nn.Linear(8, 16, bias=False)
    nn.init.eye_(project.weight)
    theirs = naive.naive_loss(recipe, found, told, padded["attention_mask"], project)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    assert ours > 0


def test_the_naive_way_refuses_a_recipe_that_it_does_not_know():
    outputs = SimpleNamespace(loss=torch.tensor(0.0), logits=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="rkd"):
        naive.naive_loss(Recipe("r", 0.0, (Term("rkd"),)), outputs, outputs, torch.ones(1, 1), nn.Identity())


def test_both_ways_see_as_many_examples_of_the_same_mean_length():
    random = np.random.default_rng(1)
    lengths = np.clip(random.normal(27, 11, 6400).astype(int), 3, 64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    some = pooled(Encoded(np.ones(offsets[-1], dtype=np.int32), offsets, np.zeros(6400, dtype=np.int64)))
    size = naive.equal_batches(some, 50, 0)
    examples, padded, tokens = naive.seen(some, size, 50, 0)
    assert examples == pytest.approx(50 * naive.EXAMPLES_PER_STEP, rel=0.05)
    assert tokens / examples == pytest.approx(lengths.mean(), rel=0.05)
    assert tokens <= padded <= 50 * size
    assert len(lengths) / len(bucket(some.train, lengths, size)) == pytest.approx(naive.EXAMPLES_PER_STEP, rel=0.1)


@pytest.mark.parametrize("params", naive.CANDIDATES)
def test_candidates_lie_in_the_quickstart_s_space(params: naive.Params):
    # FixedTrial warns of a value outside of its range, and warnings are errors here.
    candidate = search_space.suggest(space_file.load(SPACE), optuna.trial.FixedTrial(params))
    assert {term.knowledge for term in candidate.distillation.terms} <= {"kd", "hidden_mse"}


def test_summary_counts_the_cache_in_and_says_whether_accuracies_agree():
    right = np.arange(100) % 2 == 0
    slow, fast = naive.Run(10.0, 20.0, right, 64, 4096), naive.Run(2.0, 4.0, right, 64, 1024)
    told = naive.summary([{"naive": slow, "kdsearch": fast}] * 2, cache_seconds=6.0, steps=2, machine="")
    assert told["ratio"] == 5.0
    assert told["ratio_with_cache"] == 2.0  # 10 / (2 + 6 / 2)
    assert told["accuracy"]["se"] == pytest.approx(math.sqrt(2) * 0.05, abs=1e-3)
    assert told["agree"]
    better = replace(fast, right=np.arange(100) % 10 < 7)
    assert not naive.summary([{"naive": slow, "kdsearch": better}], 6.0, 2, "")["agree"]
    assert "differ by more than" in naive.document({**told, "agree": False}, [], "command", 0.0)


def test_the_cache_s_place_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for before in (str(tmp_path / "mine"), None):
        monkeypatch.delenv("KDSEARCH_CACHE", raising=False)
        default = teacher.cache_folder()
        if before:
            monkeypatch.setenv("KDSEARCH_CACHE", before)
        with naive.cache_at(str(tmp_path)):
            assert teacher.cache_folder() == tmp_path
        assert teacher.cache_folder() == (Path(before) if before else default)
