import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch import space_file
from kdsearch.candidate import Architecture, Candidate, Initialization, Recipe, Term, Training, from_dict
from tests import tiny

SHIPPED = space_file.load(tiny.REPOSITORY / "search_spaces" / "encoder.yaml")
KD = Term("kd", 1.0, (("temperature", 4.0),))
ONE = Candidate(Architecture(3, 4, 16, 2), Initialization("last"), Recipe("kd", 0.5, (KD,)), Training(5e-4))

CHANGES = {
    "layers": replace(ONE, architecture=Architecture(2, 4, 16, 2)),
    "vocabulary": replace(ONE, architecture=Architecture(3, 4, 16, 2, vocabulary=500)),
    "heads and head_size of the same width": replace(ONE, architecture=Architecture(3, 8, 8, 2)),
    "ffn_ratio": replace(ONE, architecture=Architecture(3, 4, 16, 4)),
    "kv_heads": replace(ONE, architecture=Architecture(3, 4, 16, 2, kv_heads=2)),
    "embedding": replace(ONE, architecture=Architecture(3, 4, 16, 2, embedding=32)),
    "positions": replace(ONE, architecture=Architecture(3, 4, 16, 2, positions=64)),
    "initialization.layers": replace(ONE, initialization=Initialization("first")),
    "initialization.layers as a list": replace(ONE, initialization=Initialization((0, 2, 4))),
    "initialization.width": replace(ONE, initialization=Initialization("last", "other")),
    "hard_weight": replace(ONE, distillation=Recipe("kd", 0.25, (KD,))),
    "a term's weight": replace(ONE, distillation=Recipe("kd", 0.5, (replace(KD, weight=2.0),))),
    "a term's knob": replace(ONE, distillation=Recipe("kd", 0.5, (Term("kd", 1.0, (("temperature", 4.5),)),))),
    "the knowledge": replace(ONE, distillation=Recipe("kd", 0.5, (Term("reverse_kl", 1.0, (("temperature", 4.0),)),))),
    "one more term": replace(ONE, distillation=Recipe("kd", 0.5, (KD, Term("jsd")))),
    "a term's schedule": replace(ONE, distillation=Recipe("kd", 0.5, (replace(KD, schedule="grow"),))),
    "the labels' schedule": replace(ONE, distillation=Recipe("kd", 0.5, (KD,), hard_schedule="decay")),
    "switch": replace(ONE, distillation=Recipe("kd", 0.5, (KD,), switch=0.5)),
    "balance": replace(ONE, distillation=Recipe("kd", 0.5, (KD,), balance="equal")),
    "scale": replace(ONE, distillation=Recipe("kd", 0.5, (KD,), scale="raw")),
    "the same knowledge twice": replace(ONE, distillation=Recipe("kd", 0.5, (KD, replace(KD, label="again")))),
    "learning_rate": replace(ONE, training=Training(5.000001e-4)),
}


@given(tiny.candidates(SHIPPED))
def test_it_comes_back_from_json(candidate: Candidate) -> None:
    back = from_dict(json.loads(json.dumps(candidate.to_dict())))
    assert back == candidate
    assert back.key() == candidate.key()


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_is_trained_otherwise_has_another_key(what: str) -> None:
    assert CHANGES[what].key() != ONE.key()


@given(tiny.candidates(SHIPPED), st.text())
def test_the_name_of_the_branch_is_no_part_of_the_key(candidate: Candidate, name: str) -> None:
    renamed = replace(candidate, distillation=replace(candidate.distillation, name=name))
    assert renamed.key() == candidate.key()


def test_neither_the_order_of_terms_nor_the_type_of_a_whole_number_is_part_of_the_key() -> None:
    def written(**recipe: dict) -> Candidate:
        sizes = {"layers": 3, "heads": 4, "head_size": 16, "ffn_ratio": recipe.pop("ffn_ratio")}
        return from_dict({"architecture": sizes, "distillation": {"name": "x", **recipe}})

    whole = written(ffn_ratio=2, kd={"temperature": 4}, cos={"weight": 1, "matching": [[0, 1, 1]]})
    real = written(ffn_ratio=2.0, cos={"weight": 1.0, "matching": [[0, 1, 1.0]]}, kd={"temperature": 4.0})
    assert whole.key() == real.key()


@pytest.mark.parametrize(
    "terms",
    [
        (replace(KD, label="soft"),),
        (replace(KD, knobs=(*KD.knobs, ("temperature_end", None))),),
        (KD, Term("cos", 0.0)),
        (Term("cos", 0.0, label="nothing"), KD),
    ],
    ids=["a label", "an open knob", "a term of no weight", "a labelled one before"],
)
def test_what_changes_nothing_is_no_part_of_the_key(terms: tuple[Term, ...]) -> None:
    assert replace(ONE, distillation=Recipe("kd", 0.5, terms)).key() == ONE.key()


def test_labels_of_two_terms_of_one_knowledge_do_not_matter_nor_does_their_order() -> None:
    low, high = (Term("cos", weight, (("matching", ((0, 1), (1, 3))),)) for weight in (1.0, 2.0))
    orders = [(replace(low, label="a"), replace(high, label="b")), (replace(high, label="x"), low)]
    keys = {replace(ONE, distillation=Recipe("r", 0.5, terms)).key() for terms in orders}
    assert len(keys) == 1
    back = from_dict(json.loads(json.dumps(replace(ONE, distillation=Recipe("r", 0.5, orders[0])).to_dict())))
    assert [term.name for term in back.distillation.terms] == ["a", "b"]
    assert hash(back) == hash(replace(ONE, distillation=Recipe("r", 0.5, orders[0])))


def test_a_vocabulary_is_told_where_it_is_not_the_teacher_s() -> None:
    reduced = CHANGES["vocabulary"]
    assert reduced.to_dict()["architecture"] == {**ONE.to_dict()["architecture"], "vocabulary": 500}
    assert "vocabulary" not in ONE.to_dict()["architecture"]
    assert from_dict(reduced.to_dict()) == reduced


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    assert ONE.key() == "ace38aae8b164bb2"  # recorded studies are resumed by it


def test_an_axis_that_is_left_as_the_teacher_s_is_not_recorded() -> None:
    told = ONE.to_dict()["architecture"]
    assert told == {"layers": 3, "heads": 4, "head_size": 16, "ffn_ratio": 2}
    own = replace(ONE, architecture=Architecture(3, 4, 16, 2, kv_heads=2, embedding=32, positions=64))
    assert own.to_dict()["architecture"] == {**told, "kv_heads": 2, "embedding": 32, "positions": 64}


def test_listed_layers_come_back_from_json_and_can_be_hashed() -> None:
    listed = replace(ONE, initialization=Initialization((0, 2, 4)))
    back = from_dict(json.loads(json.dumps(listed.to_dict())))
    assert back == listed
    assert (hash(back), back.key()) == (hash(listed), listed.key())


def test_a_key_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="deepness"):
        from_dict({"architecture": {"layers": 1, "heads": 1, "head_size": 8, "ffn_ratio": 1, "deepness": 2}})


@pytest.mark.parametrize(("ratio", "neurons"), [(4, 256), (2.6, 168), (1, 64), (0.01, 8)])
def test_feed_forward_neurons_are_the_nearest_multiple_of_8_and_never_0(ratio: float, neurons: int) -> None:
    assert Architecture(1, 4, 16, ratio).ffn == neurons
