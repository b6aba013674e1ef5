import json
import re
from typing import Any

import optuna
import pytest

from kdsearch import check, cost, search_space, space_file, within
from kdsearch.candidate import Architecture
from kdsearch.space_file import OneOf, SearchSpace
from kdsearch.students.families import narrow
from tests import tiny
from tests.students.tiny_families import CONFIGS

TEACHER = tiny.config()
DOMAINS = {"layers": {"int": [1, 4]}, "heads": {"choice": [1, 2, 3, 4]}, "head_size": 12, "ffn_ratio": {"choice": [1, 2, 4]}}


def space(domains: dict[str, Any] = DOMAINS, **target: Any) -> SearchSpace:
    return space_file.parse({"architecture": {"within": {"parameters": 50_000, "share": 0.2, **target}, **domains}})


def shapes(found: SearchSpace) -> list[Architecture]:
    return list(search_space.each_architecture(found))


@pytest.mark.parametrize("embeddings", [True, False])
def test_the_shapes_within_the_share_are_listed_and_no_others(embeddings: bool) -> None:
    found, messages = within.listed(space(embeddings=embeddings), TEACHER)
    assert messages == []
    everything = shapes(space_file.parse({"architecture": DOMAINS}))
    size = {
        shape: cost.parameters(narrow(TEACHER, shape)) - (0 if embeddings else TEACHER.vocab_size * shape.width) for shape in everything
    }
    near = {shape for shape in everything if 40_000 <= size[shape] <= 60_000}
    assert 2 < len(near) < len(everything)
    assert set(shapes(found)) == near
    assert len(shapes(found)) == len(near)


def test_every_trial_gets_a_shape_of_the_size_by_its_name_and_gives_it_back() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (found, _), study = within.listed(space(), TEACHER), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        shape = search_space.suggest(found, trial).architecture
        seen.add(shape)
        assert trial.params == {"architecture": within.name(shape)}
        assert search_space.suggest(found, optuna.trial.FixedTrial(trial.params)).architecture == shape
        study.tell(trial, 0.0)
    assert seen == set(shapes(found))


def test_names_are_read_at_sight_and_their_order_is_not_that_of_the_file() -> None:
    assert within.name(Architecture(3, 12, 32, 4.0)) == "3x384 h12 f4"
    assert within.name(Architecture(3, 12, 32, 1.5, kv_heads=4, embedding=64, positions=128, vocabulary=8000)) == (
        "3x384 h12 f1.5 kv4 e64 p128 v8000"
    )
    turned = {key: DOMAINS[key] for key in reversed(DOMAINS)} | {"heads": {"choice": [4, 3, 2, 1]}}
    names = [list(within.listed(space(domains), TEACHER)[0].tree["architecture"].branches) for domains in (DOMAINS, turned)]
    assert names[0] == names[1]
    assert names[0] == sorted(names[0], key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def test_what_is_recorded_needs_no_teacher_and_the_rest_of_the_space_stays() -> None:
    dkd = {"one_of": {"none": {}, "dkd": {"least_classes": 3, "dkd": {}}}}
    whole = space_file.parse({"architecture": {"within": {"parameters": 50_000, "share": 0.2}, **DOMAINS}, "distillation": dkd})
    found, _ = within.listed(search_space.for_classes(whole, 2), TEACHER)
    assert list(found.tree["distillation"].branches) == ["none"]
    assert search_space.for_classes(space_file.parse(json.loads(json.dumps(found.content))), 2) == found


def test_a_space_without_within_stays_as_it_is() -> None:
    found = space_file.parse({"architecture": DOMAINS})
    assert within.listed(found, TEACHER) == (found, [])


def test_where_nothing_lies_within_the_nearest_shape_and_its_count_are_named() -> None:
    found, (message,) = within.listed(space(parameters=3_000, share=0.05), TEACHER)
    (nearest,) = shapes(found)
    smallest = min(shapes(space_file.parse({"architecture": DOMAINS})), key=lambda shape: cost.parameters(narrow(TEACHER, shape)))
    assert nearest == smallest
    count = cost.parameters(narrow(TEACHER, smallest))
    assert message == (
        "architecture.within: must leave a shape of 3,000 parameters, 5 % more or less; the nearest, 1x12 h1 f1, has "
        f"{count:,} ({100 * (count / 3000 - 1):.2g} % off); correct parameters, widen share, or give more values"
    )
    assert "parameters besides word embeddings" in within.listed(space(parameters=10, embeddings=False), TEACHER)[1][0]


def test_shapes_that_cannot_be_cut_and_too_many_of_them_are_refused() -> None:
    (message,) = within.listed(space({**DOMAINS, "layers": {"int": [3, 5]}}), TEACHER)[1]
    assert message == "architecture.layers: must not exceed the teacher's 4; the value is 5; lower it in the search space"
    (message,) = within.listed(space({**DOMAINS, "vocabulary": {"choice": [None, "small"]}}), TEACHER)[1]
    assert message.startswith(
        "architecture.vocabulary: must be a whole number above 0, or null for the teacher's own; the value is 'small'"
    )
    (message,) = within.listed(space({**DOMAINS, "layers": {"int": [1, 4000]}}), TEACHER)[1]
    assert message == ("architecture.within: counts every combination of the domains, at most 10,000; there are 48,000; give fewer values")


def test_heads_that_share_keys_and_values_are_listed_too() -> None:
    domains = {"layers": {"int": [1, 3]}, "heads": 4, "head_size": 4, "ffn_ratio": 1, "kv_heads": {"choice": [1, 2]}}
    found, messages = within.listed(space(domains, share=0.99), CONFIGS["llama"])
    assert messages == []
    assert all(re.fullmatch(r"[123]x16 h4 f1 kv[12]", name) for name in found.tree["architecture"].branches)


def test_the_shipped_space_offers_deep_and_wide_students_of_one_size() -> None:
    teacher = tiny.mini_lm()
    found, messages = within.listed(space_file.load(tiny.REPOSITORY / "search_spaces" / "iso_parameters.yaml"), teacher)
    assert messages == []
    assert isinstance(found.tree["architecture"], OneOf)
    assert "3x384 h12 f2" in found.tree["architecture"].branches  # as its comment says
    assert set(search_space.depths(found)) >= {2, 3, 4, 5, 6}
    assert len(shapes(found)) >= 10
    assert check.space_mistakes(found, teacher) == []
