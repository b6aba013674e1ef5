"""A smaller vocabulary for a student: which of the teacher's tokens it keeps, a fast tokenizer of these alone, and their embeddings.

The kept tokens are a beginning of one :class:`Ranking`, so that smaller vocabularies lie inside larger ones. Texts whose tokens are all
kept are tokenised as before: greedy longest match (WordPiece), ranked merges (BPE) and the best-scored path (Unigram) choose the same
when only what they did not choose is taken away. Every other text is spelled by smaller pieces, down to characters or bytes.

Reference: Kolesnikova, Kuratov, Konovalov, Burtsev, *Knowledge Distillation of Russian Language Models with Reduction of Vocabulary*,
2022, arXiv 2205.02340.
"""

import copy
import json
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from kdsearch.errors import UserError
from kdsearch.students.families import family_of

MODELS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
WORD_START = "▁"  # what sentencepiece writes for a space
ASCII = set(string.printable) - set(string.whitespace)
TEXTS_AT_ONCE = 1000
TOLD = ("model_max_length", "model_input_names", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "extra_special_tokens")


@dataclass(frozen=True)
class Ranking:
    """A tokenizer's tokens in the order in which they are kept: any ``tokens[:size]`` with ``size >= needed`` is a vocabulary.

    ``needed`` counts special tokens, bytes, and the characters without which some text would become unknown; with ``lossless`` tokens
    or more, no counted text is tokenised otherwise.
    """

    tokens: tuple[str, ...]
    needed: int
    lossless: int


def rank(
    tokenizer: Any, texts: Iterable[str], others: Iterable[str] = (), corpus: Iterable[str] = (), max_length: int | None = None
) -> Ranking:
    """Order a fast tokenizer's tokens by how often ``texts`` (their first ``max_length`` tokens) and ``corpus`` use them.

    ``others`` (validation and test) are not counted: they only name characters that must not become unknown. The parts that a BPE token
    is merged from count with it and stand before it.

    Raises:
        UserError: not a fast tokenizer, or one of a kind that cannot be cut.
    """
    state, ids = _state(tokenizer), tokenizer.get_vocab()
    names, prefix, special = {i: token for token, i in ids.items()}, _prefix(state), _special(state)
    spelling = {token: _spelling(token, prefix, special) for token in ids}
    counts, extra = (np.zeros(max(names) + 1, dtype=np.int64) for _ in range(2))
    seen, hard = np.zeros(len(counts), dtype=bool), np.zeros(len(counts), dtype=bool)
    hard[[i for token, i in ids.items() if not ids.keys() >= spelling[token]]] = True
    whole = np.zeros(len(counts), dtype=bool)
    for counted, some in ((True, texts), (False, others)):
        for row in _encoded(tokenizer, some):
            seen[row] = True
            if counted:
                np.add.at(counts, row[:max_length], 1)
            if hard[row].any():  # such a text keeps all its tokens: what would spell them need not exist
                whole[row] = True
    for row in _encoded(tokenizer, corpus):
        np.add.at(extra, row, 1)
    needed = _always(state) | {names[i] for i in np.flatnonzero(whole)}
    needed = ids.keys() & needed.union(*(spelling[names[i]] for i in np.flatnonzero(seen)))
    return _ordered(ids, counts, extra, needed, _Merges(state, needed))


def _ordered(ids: dict[str, int], counts: np.ndarray, extra: np.ndarray, needed: set[str], merges: "_Merges") -> Ranking:
    """The needed tokens, then the others by their counts, each behind its parts, which count whenever it does."""
    total, names = counts + extra, {i: token for token, i in ids.items()}
    for i in np.flatnonzero(total).tolist():
        for part in merges.parts(names[i])[:-1]:
            total[ids[part]] += counts[i] + extra[i]
    order = dict.fromkeys(sorted(needed, key=ids.__getitem__))
    for token in sorted(ids.keys() - needed, key=lambda token: (-total[ids[token]], ids[token])):
        order |= dict.fromkeys(merges.parts(token))
    used = [place for place, token in enumerate(order, 1) if counts[ids[token]]]
    return Ranking(tuple(order), len(needed), max(len(needed), *used[-1:]))


def mistakes(size: object, ranking: Ranking) -> list[str]:
    """Why no vocabulary of this size can be made; empty when one can. Rule, value and fix each."""
    most = len(ranking.tokens)
    if isinstance(size, bool) or not isinstance(size, int):
        return [f"architecture.vocabulary: must be a whole number, or null for the teacher's own; the value is {size!r}; correct it"]
    if size < ranking.needed:
        return [
            f"architecture.vocabulary: must be at least {ranking.needed}, the special tokens, bytes and characters that the task's texts "
            f"need; the value is {size}; raise it"
        ]
    if size > most:
        return [f"architecture.vocabulary: must not exceed the teacher's {most} tokens; the value is {size}; lower it, or write null"]
    return []


def padding_mistakes(config: PretrainedConfig, tokenizer: Any, teacher_tokenizer: Any) -> list[str]:
    """Why a tokenizer cannot serve a family that counts positions from its padding's id (RoBERTa and its kin); empty when it can."""
    if not family_of(config).position_offset or config.pad_token_id is None:
        return []
    new = np.flatnonzero(teacher_ids(tokenizer, teacher_tokenizer) == config.pad_token_id).tolist()
    if new == [config.pad_token_id]:
        return []
    return [
        f"architecture.vocabulary: {config.model_type} models count positions from the padding's id, {config.pad_token_id}, which must "
        f"stay (in a smaller vocabulary it would be {new[0] if new else 'gone'}); leave vocabulary out of the search space"
    ]


def reduce(tokenizer: Any, tokens: Iterable[str]) -> PreTrainedTokenizerFast:
    """The fast tokenizer of these of its tokens alone (a beginning of its :class:`Ranking`), numbered from 0 in the order of the old ids.

    What a last call left of truncation and padding is dropped. It loads with AutoTokenizer, from its tokenizer.json as it stands.
    """
    state, ids = _state(tokenizer), tokenizer.get_vocab()
    model, vocab = state["model"], state["model"]["vocab"]
    own = {entry[0] for entry in vocab} if isinstance(vocab, list) else set(vocab)
    # tokens that were added beside the model's own are numbered behind them
    new = {token: i for i, token in enumerate(sorted(set(tokens), key=lambda token: (token not in own, ids[token])))}
    if isinstance(vocab, list):
        if model["unk_id"] is not None:
            model["unk_id"] = new[vocab[model["unk_id"]][0]]
        model["vocab"] = [entry for entry in vocab if entry[0] in new]
    else:
        model["vocab"] = {token: i for token, i in new.items() if token in own}
    if "merges" in model:
        model["merges"] = [merge for merge in map(_pair, model["merges"]) if new.keys() >= {*merge, "".join(merge)}]
    state["added_tokens"] = [{**token, "id": new[token["content"]]} for token in state["added_tokens"]]
    state["post_processor"] = _renumbered(state["post_processor"], new)
    state["truncation"] = state["padding"] = None
    told = {name: getattr(tokenizer, name) for name in (*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *TOLD) if getattr(tokenizer, name, None)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **told)


def teacher_ids(tokenizer: Any, teacher_tokenizer: Any) -> np.ndarray:
    """The teacher's id of each token [vocabulary]; -1 for a token that the teacher does not have."""
    known = teacher_tokenizer.get_vocab()
    found = np.full(len(tokenizer), -1, dtype=np.int64)
    for token, i in tokenizer.get_vocab().items():
        found[i] = known.get(token, -1)
    return found


def inherit_embeddings(teacher_embeddings: Tensor, tokenizer: Any, teacher_tokenizer: Any) -> Tensor:
    """The embeddings [vocabulary, width] of a tokenizer's tokens: the teacher's own, or for a new piece the mean of those that make it up.

    Raises:
        ValueError: there is a new piece and the two tokenizers are not of one kind.
    """
    ids, names = teacher_ids(tokenizer, teacher_tokenizer), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    found = teacher_embeddings[torch.from_numpy(ids)].clone()
    new = np.flatnonzero(ids < 0)
    kinds = [_state(one)["model"]["type"] for one in (tokenizer, teacher_tokenizer)] if len(new) else []
    if len(set(kinds)) > 1:
        raise ValueError(f"new pieces are spelled by a teacher's tokenizer of the same kind; the student's is {kinds[0]}, not {kinds[1]}")
    for i in new:
        found[i] = teacher_embeddings[torch.tensor(_pieces(names[i], teacher_tokenizer))].mean(dim=0)
    return found


def with_vocabulary(teacher: PreTrainedModel, tokenizer: Any, teacher_tokenizer: Any) -> PreTrainedModel:
    """The teacher with a tokenizer's vocabulary in place of its own: what a student of that vocabulary is cut from.

    Every weight but the word embeddings is shared with the teacher, not copied; the config's token ids are the new ones.

    Raises:
        UserError: the family counts positions from the padding's id, and that would change.
    """
    if messages := padding_mistakes(teacher.config, tokenizer, teacher_tokenizer):
        raise UserError(messages)
    shared = {id(weight): weight for weight in chain(teacher.parameters(), teacher.buffers())}
    model, words = copy.deepcopy(teacher, shared), teacher.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    rows = inherit_embeddings(words.weight.detach(), tokenizer, teacher_tokenizer)
    new_of = {int(old): new for new, old in enumerate(teacher_ids(tokenizer, teacher_tokenizer))}
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            ids = [new_of[old] for old in np.atleast_1d(value).tolist() if old in new_of]
            setattr(model.config, name, (ids if isinstance(value, list) else ids[0]) if ids else None)
    model.config.vocab_size = len(rows)
    padding = None if words.padding_idx is None else model.config.pad_token_id
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=padding))
    return model.eval()


class _Merges:
    """How a BPE token comes about. Other models' tokens, and those that are ``given``, have no parts."""

    def __init__(self, state: dict[str, Any], given: set[str]) -> None:
        self.ranks = {_pair(merge): i for i, merge in reversed(list(enumerate(state["model"].get("merges", []))))}
        self.given = given

    def parts(self, token: str) -> list[str]:
        """What is merged on the way to a token, in that order, and the token last."""
        if not self.ranks or token in self.given:
            return [token]
        symbols, made = list(token), []
        while len(symbols) > 1:
            best = min(range(len(symbols) - 1), key=lambda i: self.ranks.get((symbols[i], symbols[i + 1]), len(self.ranks)))
            if (symbols[best], symbols[best + 1]) not in self.ranks:
                break
            symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
            made.append(symbols[best])
        return [part for part in made if part != token] + [token]


def _state(tokenizer: Any) -> dict[str, Any]:
    """The serialised tokenizer, of a kind that can be cut."""
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {"model": {"type": "no fast one"}}
    model = state["model"]
    cut = model["type"] in MODELS and not (model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"]))
    if not cut:
        raise UserError(
            f"architecture.vocabulary: needs a fast tokenizer of {', '.join(MODELS)} (BPE without prefix or suffix); "
            f"the teacher's {type(tokenizer).__name__} is {model['type']}; leave vocabulary out of the search space"
        )
    return state


def _prefix(state: dict[str, Any]) -> str:
    """What a WordPiece token inside a word starts with."""
    return state["model"].get("continuing_subword_prefix") or ""


def _always(state: dict[str, Any]) -> set[str]:
    """What is kept whether it occurs or not: special tokens, bytes, ASCII, and the piece that sets Unigram's scale."""
    model, kept = state["model"], {WORD_START, *ASCII, *_special(state)}
    kept |= {_prefix(state) + symbol for symbol in ASCII}
    kept |= {f"<0x{byte:02X}>" for byte in range(256)}
    if "ByteLevel" in json.dumps(state["pre_tokenizer"]):
        kept |= set(ByteLevel.alphabet())
    if model["type"] == "Unigram":
        # an unknown character costs 10 more than the lowest score: without that piece, paths through it would be ranked otherwise
        kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    return kept


def _special(state: dict[str, Any]) -> set[str]:
    """Added tokens and the unknown token: they stand for themselves and are not spelled."""
    model = state["model"]
    unknown = model.get("unk_token") if model["type"] != "Unigram" or model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return {token["content"] for token in state["added_tokens"]} | ({unknown} if unknown else set())


def _spelling(token: str, prefix: str, special: set[str]) -> set[str]:
    """The single-character tokens that would spell a token at its place in a word."""
    if not token or BYTE.fullmatch(token) or token in special:
        return {token}
    inside = token.startswith(prefix) and token != prefix
    first, *others = token.removeprefix(prefix) if inside else token
    return {prefix + first if inside else first, *(prefix + symbol for symbol in others)}


def _pieces(token: str, tokenizer: Any) -> list[int]:
    """The teacher's ids that make up a token it does not have; of WordPiece, of the same place in a word."""
    prefix, known = _prefix(_state(tokenizer)), tokenizer.get_vocab()
    found = [piece.value for piece in tokenizer.backend_tokenizer.model.tokenize(token.removeprefix(prefix))]
    if prefix and token.startswith(prefix) and found and prefix + found[0] in known:
        found[0] = prefix + found[0]
    return [known[piece] for piece in found] or [tokenizer.unk_token_id or 0]


def _encoded(tokenizer: Any, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The token ids of each text, whole and without special tokens."""
    remaining = iter(texts)
    while some := list(islice(remaining, TEXTS_AT_ONCE)):
        for row in tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
            yield np.asarray(row, dtype=np.int64)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumbered(processor: dict[str, Any] | None, new: dict[str, int]) -> dict[str, Any] | None:
    """A post-processor with the new ids of its special tokens."""
    if processor is None:
        return None
    changed = dict(processor)
    for end in {"cls", "sep"} & processor.keys():
        changed[end] = [processor[end][0], new[processor[end][0]]]
    if processor["type"] == "TemplateProcessing":
        special = processor["special_tokens"].items()
        changed["special_tokens"] = {name: {**token, "ids": [new[part] for part in token["tokens"]]} for name, token in special}
    if "processors" in processor:
        changed["processors"] = [_renumbered(part, new) for part in processor["processors"]]
    return changed
