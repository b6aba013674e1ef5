import itertools
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from optuna.trial import FixedTrial
from transformers import PretrainedConfig

from kdsearch import check, cost, search_space, space_file, within
from kdsearch.candidate import COMPOSITION, Architecture, Candidate, from_dict
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.mistakes import recipe_mistakes
from kdsearch.errors import UserError
from kdsearch.search_space import each_architecture, each_asked, each_branch, parameters_of, sample, smallest_shapes, suggest
from kdsearch.space_file import Choice, Float, Int, SearchSpace, parse
from kdsearch.students.families import architecture_of, mistakes, narrow
from tests import tiny

FILES = sorted((tiny.REPOSITORY / "search_spaces").rglob("*.yaml"))
ENCODER = space_file.load(tiny.REPOSITORY / "search_spaces" / "encoder.yaml")
ARCHITECTURE = {"layers": {"int": [1, 6]}, "heads": {"choice": [2, 4]}, "head_size": 16, "ffn_ratio": {"float": [1, 4]}}
NESTED = {
    "architecture": ARCHITECTURE,
    "distillation": {
        "one_of": {
            "none": {},
            "hidden": {
                "hidden_mse": {
                    "matching": {"choice": ["uniform", [[0, 1], [1, 3, 0.5]]]},
                    "weight": {"one_of": {"fixed": {}, "drawn": {"value": {"float": [0.1, 10], "log": True}}}},
                }
            },
        }
    },
}


@pytest.fixture(scope="module")
def mini_lm() -> PretrainedConfig:
    """With three classes, as some knowledge needs them."""
    return tiny.mini_lm(classes=3)


def shipped(path: Path, teacher: PretrainedConfig) -> SearchSpace:
    """The space of a file as a study of the quickstart's teacher gets it."""
    space, messages = within.listed(space_file.load(path), teacher)
    assert messages == []
    return space


@pytest.fixture(params=[*FILES, "nested"], ids=lambda file: getattr(file, "stem", file))
def space(request: pytest.FixtureRequest, mini_lm: PretrainedConfig) -> SearchSpace:
    """Every shipped space, and one with branches in branches."""
    return parse(NESTED) if request.param == "nested" else shipped(request.param, mini_lm)


def optuna_study(seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def test_a_candidate_is_given_by_all_its_parameters_and_not_by_some() -> None:
    space = space_file.parse({"architecture": {"layers": {"int": [1, 3]}, "heads": 2, "head_size": 16, "ffn_ratio": {"choice": [1, 2]}}})
    found = search_space.given(space, {"architecture.layers": 2, "architecture.ffn_ratio": 1})
    assert found is not None
    assert (found.architecture.layers, found.architecture.ffn_ratio) == (2, 1)
    assert search_space.given(space, {"architecture.layers": 2}) is None


def test_spaces_are_shipped() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_space_can_be_cut_out_of_the_quickstart_teacher(path: Path, mini_lm: PretrainedConfig) -> None:
    assert check.space_mistakes(shipped(path, mini_lm), mini_lm) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("classes", [2, 3])
def test_nothing_that_a_shipped_space_samples_is_impossible(path: Path, classes: int) -> None:
    config = tiny.mini_lm(classes)
    space, study = search_space.for_classes(shipped(path, config), classes), optuna_study()
    for _ in range(300):
        trial = study.ask()
        candidate = suggest(space, trial)
        study.tell(trial, 0.0)
        shapes = Shapes(candidate.architecture, architecture_of(config), classes)
        assert mistakes(candidate.architecture, config) + recipe_mistakes(candidate.distillation, shapes) == []
    assert len({trial.params["distillation"] for trial in study.trials}) == len(space.tree["distillation"].branches)


def test_a_trial_gives_the_same_candidate_back_however_it_is_read(space: SearchSpace) -> None:
    study = optuna_study()
    for _ in range(40):
        trial = study.ask()
        candidate = suggest(space, trial)
        study.tell(trial, 0.0)
        frozen = study.trials[-1]
        assert suggest(space, frozen) == candidate
        assert suggest(space, FixedTrial(frozen.params)) == candidate
        assert suggest(space, FixedTrial(json.loads(json.dumps(frozen.params)))) == candidate


def test_a_branch_samples_only_its_own_knobs_and_fixed_values_are_no_parameters(space: SearchSpace) -> None:
    study = optuna_study()
    for _ in range(60):
        trial = study.ask()
        suggest(space, trial)
        branch = trial.params["distillation"]
        own = [name for name in trial.params if name.startswith("distillation.")]
        assert all(name.startswith(f"distillation.{branch}.") for name in own)
        study.tell(trial, 0.0)
    seen = set().union(*(trial.params for trial in study.trials))
    assert len(seen) > 3
    fixed = {
        f"{section}.{key}"
        for section, tree in space.tree.items()
        if section != "distillation" and isinstance(tree, dict)
        for key, value in tree.items()
        if not isinstance(value, Int | Float | Choice)
    }
    assert not seen & {*fixed, "distillation.hidden_mse.kd.temperature", "distillation.none.hard_weight"}


def test_no_parameter_changes_its_domain_between_trials() -> None:
    study = optuna_study()
    for _ in range(60):
        trial = study.ask()
        suggest(ENCODER, trial)
        study.tell(trial, 0.0)
    domains: dict[str, Any] = {}
    for trial in study.trials:
        for name, domain in trial.distributions.items():
            assert domains.setdefault(name, domain) == domain


def test_a_list_among_the_choices_is_sampled_by_its_json_text() -> None:
    fixed = {
        "architecture.layers": 2,
        "architecture.heads": 4,
        "architecture.ffn_ratio": 2.0,
        "distillation": "hidden",
        "distillation.hidden.hidden_mse.matching": "[[0, 1], [1, 3, 0.5]]",
        "distillation.hidden.hidden_mse.weight": "fixed",
    }
    (term,) = suggest(parse(NESTED), FixedTrial(fixed)).distillation.terms
    assert dict(term.knobs)["matching"] == ((0, 1), (1, 3, 0.5))


def test_the_log_and_step_of_a_range_reach_the_sampler() -> None:
    content = {
        "architecture": {**ARCHITECTURE, "layers": {"int": [2, 6], "step": 2}},
        "training": {"learning_rate": {"float": [1e-4, 1], "log": True}},
    }
    study = optuna_study()
    for _ in range(100):
        trial = study.ask()
        suggest(parse(content), trial)
        study.tell(trial, 0.0)
    assert {trial.params["architecture.layers"] for trial in study.trials} == {2, 4, 6}
    rates = [trial.params["training.learning_rate"] for trial in study.trials]
    assert 0.3 < sum(rate < 1e-2 for rate in rates) / 100 < 0.7  # half of the decades; without log one in a hundred


def test_the_teacher_s_own_vocabulary_is_no_smallest_one(mini_lm: PretrainedConfig) -> None:
    space = parse({"architecture": {**ARCHITECTURE, "vocabulary": {"choice": [None, 8000, 4000]}}})
    (smallest,), (of_encoder,) = smallest_shapes(space), smallest_shapes(ENCODER)
    assert smallest.vocabulary == 4000
    assert search_space.vocabularies(space) == [None, 8000, 4000]
    assert search_space.vocabularies(ENCODER) == [None, 16000]
    found = {suggest(space, optuna_study(seed).ask()).architecture.vocabulary for seed in range(12)}
    assert found == {None, 8000, 4000}
    costs = [cost.parameters(narrow(mini_lm, shape)) for shape in (smallest, of_encoder)]
    assert costs[0] < costs[1]


@given(candidate=tiny.candidates(ENCODER))
def test_no_candidate_is_smaller_than_the_smallest(candidate: Candidate, mini_lm: PretrainedConfig) -> None:
    found = [cost.parameters(narrow(mini_lm, shape)) for shape in (*smallest_shapes(ENCODER), candidate.architecture)]
    assert found[0] <= found[1]


def test_each_branch_takes_every_branch_every_choice_and_both_ends_of_a_range(space: SearchSpace) -> None:
    candidates = list(each_branch(space))
    taken = set().union(*(_leaves(candidate) for candidate in candidates))
    branches = space.tree["distillation"].branches
    assert {candidate.distillation.name for candidate in candidates} == set(branches)
    for branch in branches:
        wanted: set[tuple[str, str]] = set()

        def wish(name: str, domain: Any, branch: str = branch, wanted: set[tuple[str, str]] = wanted) -> Any:
            options = search_space._options(domain)
            if isinstance(domain, space_file.OneOf):
                return branch if branch in options else options[-1]
            wanted.update((name, json.dumps(option)) for option in options if option is not None)  # null is not written
            return options[0]

        sample(space, wish)
        assert wanted <= taken, branch


def test_choices_of_one_term_are_tried_together_and_those_of_others_alone() -> None:
    term = {"knowledge": {"choice": ["cos", "minilm"]}, "matching": {"choice": ["last_only", "last2"]}}
    content = {"architecture": ARCHITECTURE, "distillation": {"layers": term, "kd": {"temperature": {"choice": [1.0, 2.0]}}}}
    terms = [candidate.distillation.terms[0] for candidate in each_branch(parse(content))]
    pairs = {(term.knowledge, dict(term.knobs)["matching"]) for term in terms}
    assert pairs == set(itertools.product(["cos", "minilm"], ["last_only", "last2"]))


def test_weights_that_may_each_be_0_are_not_taken_for_a_recipe_of_nothing() -> None:
    weight = {"float": [0.0, 1.0]}
    content = {"architecture": ARCHITECTURE, "distillation": {"hard_weight": weight, "kd": {"weight": weight}}}
    recipes = [candidate.distillation for candidate in each_branch(parse(content))]
    assert {(recipe.hard_weight, recipe.terms[0].weight) for recipe in recipes} == {(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)}


def test_each_architecture_is_every_combination_of_choices() -> None:
    content = {"layers": {"int": [1, 3]}, "heads": {"choice": [2, 4]}, "head_size": 16, "ffn_ratio": {"float": [1, 4]}}
    found = [(shape.layers, shape.heads, shape.head_size, shape.ffn_ratio) for shape in each_architecture(parse({"architecture": content}))]
    assert sorted(found) == sorted(itertools.product([1, 2, 3], [2, 4], [16], [1.0, 4.0]))


SHAPES = {
    "flat": {"layers": 2, "heads": 4, "head_size": 16, "ffn_ratio": 1},
    "deep": {"layers": {"int": [3, 4]}, "heads": {"choice": [1, 2]}, "head_size": 16, "ffn_ratio": 4, "vocabulary": {"choice": [None, 9]}},
}


def test_whole_shapes_are_named_and_may_have_domains_of_their_own() -> None:
    space, study = parse({"architecture": {"one_of": SHAPES}, "distillation": {"kd": {}}}), optuna_study()
    flat, deep = Architecture(2, 4, 16, 1), [*itertools.product([3, 4], [1, 2], [None, 9])]
    everything = [flat, *(Architecture(layers, heads, 16, 4, vocabulary=size) for layers, heads, size in deep)]
    assert list(each_architecture(space)) == everything
    for asked, shape in each_asked(space):
        drawn = FixedTrial({**asked, "distillation.kd.weight": 1.0})
        assert suggest(space, drawn).architecture == shape
    seen = set()
    for _ in range(100):
        trial = study.ask()
        seen.add(suggest(space, trial).architecture)
        assert (len(trial.params) == 1) == (trial.params["architecture"] == "flat")
        study.tell(trial, 0.0)
    assert seen == set(everything)
    assert smallest_shapes(space) == [flat, Architecture(3, 1, 16, 4, vocabulary=9)]
    assert search_space.depths(space) == [2, 3, 4]
    assert search_space.vocabularies(space) == [None, 9]
    assert {candidate.architecture.layers for candidate in each_branch(space)} == {2, 3, 4}


def test_a_start_may_be_one_of_several_too() -> None:
    starts = {"one_of": {"own": {"layers": "first"}, "other": {"layers": "pretrained", "model": "m"}}}
    space = parse({"architecture": ARCHITECTURE, "initialization": starts})
    assert {candidate.initialization.other_model for candidate in each_branch(space)} == {None, "m"}


def _leaves(candidate: Candidate) -> set[tuple[str, str]]:
    """Values of a candidate by the name of the parameter that they come from."""
    found: set[tuple[str, str]] = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            branch = f".{value['name']}" if "name" in value else ""
            for key, item in value.items():
                walk(item, f"{name}{branch}.{key}".strip("."))
        else:
            found.add((name, json.dumps(value)))

    recipe = candidate.distillation
    told = {name: getattr(recipe, name) for name in ("name", "hard_weight", *COMPOSITION)}  # defaults too, which to_dict leaves out
    terms = {term.name: {"weight": term.weight, "schedule": term.schedule, **dict(term.knobs)} for term in recipe.terms}
    walk({**candidate.to_dict(), "distillation": {**told, **terms}}, "")
    return found


DKD = {"one_of": {"none": {}, "dkd": {"least_classes": 3, "dkd": {"beta": {"float": [1, 8]}}}}}


def test_a_branch_is_left_out_where_the_task_has_too_few_classes() -> None:
    space = parse({"architecture": ARCHITECTURE, "distillation": DKD})
    assert [list(search_space.for_classes(space, classes).tree["distillation"].branches) for classes in (2, 3)] == [
        ["none"],
        ["none", "dkd"],
    ]
    recipes = {candidate.distillation.name: candidate.distillation for candidate in each_branch(search_space.for_classes(space, 3))}
    assert [term.knowledge for term in recipes["dkd"].terms] == ["dkd"]
    assert search_space.for_classes(space, 2).content == space.content
    with pytest.raises(UserError, match=r"distillation: every branch needs more than the task's 2 classes"):
        search_space.for_classes(parse({"architecture": ARCHITECTURE, "distillation": {"one_of": {"dkd": DKD["one_of"]["dkd"]}}}), 2)


def test_parameters_are_read_off_a_candidate_as_they_were_drawn(space: SearchSpace) -> None:
    study = optuna_study()
    for _ in range(30):
        trial = study.ask()
        proposed = from_dict(json.loads(json.dumps(suggest(space, trial).to_dict())))  # as a record tells it
        params, missing = parameters_of(space, proposed)
        assert missing == []
        assert suggest(space, FixedTrial(params)).key() == proposed.key()


def test_a_candidate_of_another_space_is_found_under_this_space_s_names() -> None:
    shape, kd = {"layers": 3, "heads": 2, "head_size": 16, "ffn_ratio": 2.0}, {"kd": {"temperature": {"float": [1, 10]}}}
    here = parse(
        {
            "architecture": {"one_of": {"wide": {**shape, "heads": 4}, "small": {**shape, "layers": {"int": [1, 5]}}}},
            "distillation": {
                "one_of": {
                    "plain": {},
                    "soft": {**kd, "hard_weight": {"float": [0, 1]}, "hidden_mse": {"weight": {"float": [0, 2]}}},
                    "lists": {"cos": {"matching": {"choice": ["last", [[0, 1]]]}}},
                }
            },
        }
    )
    there = {"architecture": shape, "distillation": {"name": "hinton", "hard_weight": 0.5, "kd": {"temperature": 2}}}
    # what the recipe does not have is there with weight 0
    expected = {
        "architecture": "small",
        "architecture.small.layers": 3,
        "distillation": "soft",
        "distillation.soft.kd.temperature": 2.0,
        "distillation.soft.hard_weight": 0.5,
        "distillation.soft.hidden_mse.weight": 0.0,
    }
    assert parameters_of(here, from_dict(there)) == (expected, [])
    listed = {"architecture": shape, "distillation": {"name": "lists", "cos": {"matching": [[0, 1]]}}}
    assert parameters_of(here, from_dict(listed))[0]["distillation.lists.cos.matching"] == "[[0, 1]]"


@pytest.mark.parametrize(
    ("section", "changed"),
    [
        ("architecture", {"layers": 7}),
        ("architecture", {"heads": 3}),
        ("architecture", {"head_size": 32}),
        ("architecture", {"ffn_ratio": 4.5}),
        ("architecture", {"vocabulary": 500}),
        ("initialization", {"layers": "last"}),
        ("distillation", {"name": "none", "kd": {"temperature": 2.0}}),
        ("distillation", {"name": "none", "hard_weight": 0.5}),
        ("training", {"learning_rate": 0.1}),
    ],
)
def test_a_candidate_that_a_space_does_not_have_is_named_by_its_section(section: str, changed: dict[str, Any]) -> None:
    space = parse({"architecture": {**ARCHITECTURE, "layers": {"int": [2, 6], "step": 2}}, "training": {"learning_rate": 1e-3}})
    inside = {"architecture": {"layers": 4, "heads": 2, "head_size": 16, "ffn_ratio": 2}, "training": {"learning_rate": 1e-3}}
    assert parameters_of(space, from_dict(inside))[1] == []
    assert parameters_of(space, from_dict({**inside, section: {**inside.get(section, {}), **changed}}))[1] == [section]
    assert parameters_of(space, from_dict({**inside, "architecture": {**inside["architecture"], "layers": 3}}))[1] == ["architecture"]
