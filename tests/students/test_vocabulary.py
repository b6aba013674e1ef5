import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdsearch import check, teacher
from kdsearch.candidate import Candidate
from kdsearch.errors import UserError
from kdsearch.students.build import build
from kdsearch.students.reading import Reading, rank, reduced
from kdsearch.students.vocabulary import Ranking, inherit_embeddings, mistakes, reduce, teacher_ids, with_vocabulary
from kdsearch.students.vocabulary import rank as rank_texts
from kdsearch.tasks import data, pool
from tests import tiny

RANDOM = np.random.default_rng(0)
SYLLABLES = ["ba", "di", "ku", "lo", "ne", "ra", "so", "tu", "é", "日", "x9", "-"]
WORDS = ["".join(RANDOM.choice(SYLLABLES, size=RANDOM.integers(1, 5))) for _ in range(120)]
# the first ones count, then come other ones with words and characters of their own
TEXTS = [" ".join(RANDOM.choice(WORDS[:80], size=8)) for _ in range(60)]
OTHERS = [f"{' '.join(RANDOM.choice(WORDS, size=8))}, ü{row % 3} {'🙂' * (row % 2)}" for row in range(20)]
SIZES = ("needed", "between", "lossless", "all")


def word_piece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator([*TEXTS, *OTHERS], trainers.WordPieceTrainer(vocab_size=260, special_tokens=special))
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def byte_level() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([*TEXTS, *OTHERS], trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet))
    made.add_special_tokens(["<|endoftext|>"])
    end = ("<|endoftext|>", made.token_to_id("<|endoftext|>"))
    made.post_processor = processors.RobertaProcessing(end, end)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def unigram() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator([*TEXTS, *OTHERS], trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>"))
    made.add_special_tokens(["<mask>"])  # numbered behind the model's own
    template = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    made.post_processor = processors.Sequence([template])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>", model_max_length=77
    )


MADE = {make.__name__: make() for make in (word_piece, byte_level, unigram)}
RANKED = {name: rank_texts(made, TEXTS, OTHERS) for name, made in MADE.items()}
kinds = pytest.mark.parametrize("kind", MADE)


def size_of(which: str, ranking: Ranking) -> int:
    between = (ranking.needed + ranking.lossless) // 2
    return {"needed": ranking.needed, "between": between, "lossless": ranking.lossless, "all": len(ranking.tokens)}[which]


SMALL = {(kind, which): reduce(MADE[kind], RANKED[kind].tokens[: size_of(which, RANKED[kind])]) for kind in MADE for which in SIZES}


def in_teacher_ids(kind: str, which: str, text: str) -> list[int]:
    small = SMALL[kind, which]
    return teacher_ids(small, MADE[kind])[small(text)["input_ids"]].tolist()


def plain(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)


@kinds
def test_sizes_are_as_asked_and_smaller_vocabularies_lie_in_larger_ones(kind: str) -> None:
    ranking = RANKED[kind]
    assert sorted(ranking.tokens) == sorted(MADE[kind].get_vocab())
    assert 0 < ranking.needed < ranking.lossless < len(ranking.tokens)
    kept = [set(SMALL[kind, which].get_vocab()) for which in SIZES]
    assert [len(one) for one in kept] == [size_of(which, ranking) for which in SIZES]
    assert all(smaller < larger for smaller, larger in pairwise(kept))
    for which in SIZES:
        assert sorted(SMALL[kind, which].get_vocab().values()) == list(range(size_of(which, ranking)))


@kinds
@pytest.mark.parametrize("which", SIZES)
def test_no_text_becomes_unknown_or_is_lost(kind: str, which: str) -> None:
    small, whole = SMALL[kind, which], MADE[kind]
    for text in [*TEXTS, *OTHERS, f"{WORDS[0]}{WORDS[1]} ~"]:
        if whole.unk_token_id is None or whole.unk_token_id not in whole(text)["input_ids"]:
            assert small.unk_token_id is None or small.unk_token_id not in small(text)["input_ids"], text
        assert plain(small, text) == plain(whole, text)
    if whole.unk_token is None:  # bytes spell everything
        assert plain(small, "neither seen: ж\t漢 \x07") == "neither seen: ж\t漢 \x07"


@kinds
def test_with_all_tokens_nothing_changes(kind: str) -> None:
    small, whole = SMALL[kind, "all"], MADE[kind]
    assert small.get_vocab() == whole.get_vocab()
    assert small(TEXTS + OTHERS)["input_ids"] == whole(TEXTS + OTHERS)["input_ids"]
    assert json.loads(small.backend_tokenizer.to_str())["model"] == json.loads(whole.backend_tokenizer.to_str())["model"]


@kinds
def test_with_the_tokens_that_the_texts_use_their_tokenisation_stays(kind: str) -> None:
    whole = MADE[kind]
    assert all(in_teacher_ids(kind, "lossless", text) == whole(text)["input_ids"] for text in TEXTS)
    one_less = reduce(whole, RANKED[kind].tokens[: RANKED[kind].lossless - 1])
    assert any(len(one_less(text)["input_ids"]) > len(whole(text)["input_ids"]) for text in TEXTS)


@kinds
@pytest.mark.parametrize("which", SIZES)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.one_of(st.sampled_from(WORDS), st.lists(st.sampled_from(SYLLABLES), max_size=6).map("".join)), max_size=6))
def test_a_text_whose_tokens_are_kept_is_tokenised_as_before(kind: str, which: str, words: list[str]) -> None:
    text = " ".join(words)
    before = MADE[kind](text)
    if set(before.tokens()) <= SMALL[kind, which].get_vocab().keys():
        assert in_teacher_ids(kind, which, text) == before["input_ids"]


@pytest.mark.parametrize("which", SIZES)
def test_every_kept_token_of_bpe_can_be_merged(which: str) -> None:
    small, model = SMALL["byte_level", which], SMALL["byte_level", which].backend_tokenizer.model
    merged = set(small.get_vocab()) - {"<|endoftext|>"}
    assert all([piece.value for piece in model.tokenize(token)] == [token] for token in merged)


@kinds
def test_frequent_tokens_come_first_and_other_texts_only_name_characters(kind: str) -> None:
    whole, ranking = MADE[kind], RANKED[kind]
    counted = {token for text in TEXTS for token in whole(text, add_special_tokens=False).tokens()}
    assert counted <= set(ranking.tokens[: ranking.lossless])
    others = {token for text in OTHERS for token in whole(text, add_special_tokens=False).tokens()} - counted
    assert others - set(ranking.tokens[: ranking.lossless])  # their words are not kept for them
    twice = rank_texts(whole, TEXTS, OTHERS, corpus=[OTHERS[1]] * 500)
    favoured = {token for token in whole(OTHERS[1], add_special_tokens=False).tokens() if token in others}
    assert favoured <= set(twice.tokens[: twice.needed + 40])


@kinds
def test_it_loads_where_kdsearch_is_not_installed(kind: str, tmp_path: Path) -> None:
    program = (
        "import json, sys\nfrom transformers import AutoTokenizer\n"
        "texts, found = json.load(open('texts.json')), {}\n"
        "for which in sys.argv[1:]:\n"
        "    loaded = AutoTokenizer.from_pretrained(which)\n"
        "    found[which] = [loaded(texts)['input_ids'], len(loaded), loaded.pad_token_id, loaded.model_max_length, loaded.is_fast]\n"
        "assert not any(name.startswith('kdsearch') for name in sys.modules)\n"
        "print(json.dumps(found))\n"
    )
    texts = [*TEXTS[:9], *OTHERS[:9]]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    for which in SIZES:
        SMALL[kind, which].save_pretrained(tmp_path / which)
        tiny.config().save_pretrained(tmp_path / which)  # the model's type must not bring another tokenizer
    done = subprocess.run([sys.executable, "-I", "-c", program, *SIZES], cwd=tmp_path, capture_output=True, text=True, check=True)
    for which, found in json.loads(done.stdout.splitlines()[-1]).items():
        small = SMALL[kind, which]
        assert found == [small(texts)["input_ids"], len(small), small.pad_token_id, small.model_max_length, True]


def model_of(tokenizer: Any, **changes: Any) -> Any:
    return tiny.teacher(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **changes)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


@kinds
@pytest.mark.parametrize("which", ["lossless", "all"])
def test_the_student_of_the_teacher_s_shape_answers_as_the_teacher(kind: str, which: str) -> None:
    whole, small = MADE[kind], SMALL[kind, which]
    model = model_of(whole, attention="sdpa")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = with_vocabulary(model, small, whole)
    student = build(cut, Candidate(tiny.narrower(layers=4, head_size=12, ffn_ratio=4, vocabulary=len(small))), seed=0)
    for text in TEXTS[:5]:
        expected = logits(model, whole(text)["input_ids"])
        for one in (cut, student):
            torch.testing.assert_close(logits(one, small(text)["input_ids"]), expected, rtol=0, atol=0)
    for one in (cut.config, student.config):
        assert (one.vocab_size, one.pad_token_id, one.eos_token_id) == (len(small), small.pad_token_id, small.eos_token_id)
    assert model.config.vocab_size == len(whole)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert cut.classifier.weight is model.classifier.weight  # only the word embeddings are its own


@kinds
@pytest.mark.parametrize("which", SIZES)
def test_embeddings_are_inherited_by_token(kind: str, which: str) -> None:
    whole, small = MADE[kind], SMALL[kind, which]
    rows = torch.randn(len(whole), 5)
    found = inherit_embeddings(rows, small, whole)
    assert found.shape == (len(small), 5)
    for token, i in small.get_vocab().items():
        assert torch.equal(found[i], rows[whole.get_vocab()[token]]), token


@pytest.mark.parametrize(("kind", "token", "expected"), [
    ("word_piece", "##badi", ["##ba", "##di"]),
    ("word_piece", "badiku", ["ba", "##di", "##ku"]),
    ("byte_level", "badiku", ["b", "a", "d", "i", "k", "u"]),
    ("unigram", "ab", ["a", "b"]),
])  # fmt: skip
def test_a_new_piece_starts_as_the_mean_of_what_makes_it_up(kind: str, token: str, expected: list[str]) -> None:
    smallest, known = SMALL[kind, "needed"], SMALL[kind, "needed"].get_vocab()
    assert token not in known
    prefix = "##" if token.startswith("##") else ""
    if not known.keys() >= set(expected):  # the syllables are no tokens of the smallest vocabulary
        expected = [prefix + token[len(prefix)], *(f"##{symbol}" for symbol in token[len(prefix) + 1 :])]
    state = json.loads(smallest.backend_tokenizer.to_str())
    vocab, size = state["model"]["vocab"], len(state["model"]["vocab"])
    for added in state["added_tokens"]:
        added["id"] += added["id"] >= size
    state["model"]["vocab"] = [*vocab, [token, -3.0]] if isinstance(vocab, list) else {**vocab, token: size}
    larger = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    rows = torch.randn(len(known), 4)
    found = inherit_embeddings(rows, larger, smallest)[larger.get_vocab()[token]]
    torch.testing.assert_close(found, rows[[known[piece] for piece in expected]].mean(dim=0))


def test_pieces_of_another_kind_of_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same kind; the student's is BPE, not Unigram"):
        inherit_embeddings(torch.randn(len(MADE["unigram"]), 4), MADE["byte_level"], MADE["unigram"])


def test_a_word_that_cannot_be_spelled_is_kept_whole() -> None:
    """The teacher has no piece for a lone q: only longer ones know it."""
    vocab = ["[PAD]", "[UNK]", "qa", "##b", "##qab", "##a", "a", "b", "aq", "##ab", "c"]
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")
    texts, ranking = ["qab", "aqab", "ab ab ab"], rank_texts(whole, ["ab ab ab", "qab"], ["aqab"])
    for size in range(ranking.needed, len(vocab) + 1):
        small = reduce(whole, ranking.tokens[:size])
        assert all(small.unk_token_id not in small(text)["input_ids"] for text in texts)
    assert small(["ac"])["input_ids"] == [[small.unk_token_id]]  # as before


def test_sizes_that_cannot_be_made_are_refused() -> None:
    ranking = Ranking(("a", "b", "c"), needed=2, lossless=2)
    assert [mistakes(size, ranking) for size in (2, 3)] == [[], []]
    for size, expected in (
        (1, "must be at least 2, the special tokens, bytes and characters that the task's texts need; the value is 1; raise it"),
        (4, "must not exceed the teacher's 3 tokens; the value is 4; lower it, or write null"),
        (True, "must be a whole number, or null for the teacher's own; the value is True"),
        (2.5, "must be a whole number, or null for the teacher's own; the value is 2.5"),
    ):
        (message,) = mistakes(size, ranking)
        assert message.startswith(f"architecture.vocabulary: {expected}")


@pytest.mark.parametrize(
    "model", [lambda: models.WordLevel({"a": 0}, unk_token="a"), lambda: models.BPE({}, [], end_of_word_suffix="</w>")]
)
def test_other_tokenizers_are_refused(model: Callable[[], Any]) -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model()))
    with pytest.raises(UserError, match=r"needs a fast tokenizer of WordPiece, BPE, Unigram .*leave vocabulary out"):
        rank_texts(other, ["a"])


def test_a_student_is_not_cut_from_a_teacher_of_other_tokens() -> None:
    with pytest.raises(ValueError, match=r"a student of 50 tokens .* got one of 198"):
        build(tiny.teacher(), Candidate(tiny.narrower(vocabulary=50)), seed=0)


def test_the_real_teacher_and_its_task() -> None:
    """MiniLM's 30,522 tokens, rotten_tomatoes and sentences of imdb."""
    study = check.open_files(tiny.REPOSITORY / "studies" / "quickstart.yaml")
    task = study.spec.task.model_copy(update={"transfer": study.spec.task.transfer.model_copy(update={"train": 1500, "held_out": 500})})
    texts, tokenizer = data.load(task, study.base), teacher.load_tokenizer(study.spec.teacher, study.base)
    rows = pool.build(texts, tokenizer, task.max_length)
    whole = Reading(tokenizer, rows, tiny.teacher(vocab_size=len(tokenizer)))
    ranking = rank(tokenizer, texts, task.max_length)
    assert ranking.needed < 1000
    assert 10_000 < ranking.lossless < 16_000
    for size in (ranking.lossless, 4000):
        found = reduced(whole, ranking, size, texts, task.max_length)
        assert (len(found.tokenizer), found.teacher.config.vocab_size) == (size, size)
        assert (found.changed == 0) == (size == ranking.lossless)
        assert (found.rows.encoded.ids == found.tokenizer.unk_token_id).sum() == (rows.encoded.ids == tokenizer.unk_token_id).sum()
        assert found.rows.encoded.labels.tolist() == rows.encoded.labels.tolist()
        for text in texts.test.texts[:200]:
            assert plain(found.tokenizer, text) == plain(tokenizer, text)
    assert found.changed > 1000
