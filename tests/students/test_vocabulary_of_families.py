"""A smaller vocabulary in every family, each with a tokenizer of the kind that its models have."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from kdsearch import cost
from kdsearch.candidate import Candidate
from kdsearch.errors import UserError
from kdsearch.students.build import build
from kdsearch.students.families import architecture_of, narrow
from kdsearch.students.vocabulary import padding_mistakes, rank, reduce, with_vocabulary
from tests.students.test_vocabulary import OTHERS, TEXTS
from tests.students.tiny_families import CONFIGS

MOST = 32  # tokens of a row
# RoBERTa's layout, which MPNet, XLM-R and the byte-level families share; BERT's kin have their padding first.
PADDED_SECOND, PADDED_FIRST = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ["[CLS]", "[SEP]", "[UNK]", "[MASK]"]
BYTE_LEVEL, UNIGRAM = ("roberta", "deberta", "modernbert", "gpt2", "qwen2"), ("xlm-roberta", "deberta-v2", "llama", "mistral")
every_family = pytest.mark.parametrize("name", CONFIGS)


@cache
def tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    special = ["[PAD]", *PADDED_FIRST] if model_type in ("bert", "distilbert", "electra", "deberta-v2") else PADDED_SECOND
    unknown = next(token for token in special if "unk" in token.lower())
    if model_type in BYTE_LEVEL:
        made, kind = Tokenizer(models.BPE()), "BPE"
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif model_type in UNIGRAM:
        made, kind = Tokenizer(models.Unigram()), "Unigram"
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token=unknown)
    else:
        made, kind = Tokenizer(models.WordPiece(unk_token=unknown)), "WordPiece"
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=special)
    made.train_from_iterator([*TEXTS, *OTHERS], trainer)
    assert type(made.model).__name__ == kind
    begin, end = ("[CLS]", "[SEP]") if special[0] == "[PAD]" else ("<s>", "</s>")
    ends = [(token, special.index(token)) for token in (begin, end)]
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ends)
    padding = special[0] if special[0] == "[PAD]" else "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=padding, unk_token=unknown, bos_token=begin, eos_token=end)


def config_of(name: str) -> PretrainedConfig:
    config, read = CONFIGS[name], tokenizer(CONFIGS[name].model_type)
    ids = {"pad_token_id": read.pad_token_id, "bos_token_id": read.bos_token_id, "eos_token_id": read.eos_token_id}
    return type(config).from_dict({**config.to_dict(), **ids, "vocab_size": len(read)})


@cache
def teacher(name: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(17)
        return AutoModelForSequenceClassification.from_config(config_of(name)).eval()


def logits(model: PreTrainedModel, read: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    rows = read(texts, truncation=True, max_length=MOST, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits


@every_family
def test_with_the_tokens_of_the_texts_a_student_of_the_teacher_s_shape_answers_as_the_teacher(name: str, tmp_path: Path) -> None:
    model, whole = teacher(name), tokenizer(CONFIGS[name].model_type)
    ranking = rank(whole, TEXTS, OTHERS)
    small = reduce(whole, ranking.tokens[: ranking.lossless])
    assert len(small) < len(whole)
    shape = architecture_of(model.config)
    student = build(with_vocabulary(model, small, whole), Candidate(shape), seed=0)
    torch.testing.assert_close(logits(student, small, TEXTS[:6]), logits(model, whole, TEXTS[:6]), rtol=0, atol=1e-6)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, small, TEXTS[:6]), logits(student, small, TEXTS[:6]), rtol=0, atol=0)


@every_family
def test_with_the_fewest_tokens_it_has_the_parameters_of_arithmetic_and_trains(name: str) -> None:
    model, whole = teacher(name), tokenizer(CONFIGS[name].model_type)
    ranking = rank(whole, TEXTS, OTHERS)
    small = reduce(whole, ranking.tokens[: ranking.needed])
    student = build(with_vocabulary(model, small, whole), Candidate(architecture_of(model.config)), seed=0)
    assert cost.parameters(student.config) == student.num_parameters()
    assert cost.parameters(narrow(student.config, architecture_of(model.config))) < cost.parameters(model.config)
    rows = small(OTHERS[:4], truncation=True, max_length=MOST, padding=True, return_tensors="pt")
    found = student(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], labels=torch.tensor([0, 1, 2, 0]))
    found.loss.backward()
    words = student.get_input_embeddings().weight
    assert words.shape[0] == ranking.needed
    assert words.grad is not None
    assert words.grad.isfinite().all()


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "mpnet"])
def test_positions_counted_from_the_padding_s_id_refuse_another_one(name: str) -> None:
    """The padding stands behind all words here, so that a smaller vocabulary would move it, and every position with it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    made.add_special_tokens(["<pad>"])
    whole = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    ranking = rank(whole, TEXTS)
    small = reduce(whole, ranking.tokens[: ranking.needed])
    config = type(CONFIGS[name]).from_dict({**CONFIGS[name].to_dict(), "vocab_size": len(whole), "pad_token_id": len(whole) - 1})
    (message,) = padding_mistakes(config, small, whole)
    assert f"{name} models count positions from the padding's id, {len(whole) - 1}, which must stay (in a smaller vocabulary" in message
    assert padding_mistakes(config, reduce(whole, ranking.tokens), whole) == []
    assert padding_mistakes(CONFIGS["bert"], small, whole) == []
    model = teacher(name)
    assert padding_mistakes(model.config, small, tokenizer(CONFIGS[name].model_type)) != []
    with pytest.raises(UserError, match="which must stay"):
        with_vocabulary(model, small, tokenizer(CONFIGS[name].model_type))
