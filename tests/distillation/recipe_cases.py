"""Every recipe that a contract runs over: each knowledge type, matching, schedule, balance, scale and stage, and each named recipe.

Adding one to KNOWLEDGE, MATCHINGS, SCHEDULES, BALANCES, SCALES or search_spaces/recipes.yaml adds cases here and needs no test code.
"""

from kdsearch import search_space, space_file
from kdsearch.candidate import Recipe, Term
from kdsearch.distillation.composition import BALANCES, SCALES, SCHEDULES
from kdsearch.distillation.knowledge import KNOWLEDGE
from kdsearch.distillation.matching import MATCHINGS
from tests import tiny

KD, COS = Term("kd", 1.0, (("temperature", 2.0),)), Term("cos", 1.0)
RELATION_HEADS = (("relation_heads", 6),)  # divides the widths of the tiny models
NOT_ZERO_AT_EQUALITY = {"infonce"}  # its minimum is above 0


def knows(term: Term) -> Term:
    """The term with knobs that the tiny models' sizes allow."""
    return Term("minilmv2", term.weight, (*term.knobs, *RELATION_HEADS)) if term.knowledge == "minilmv2" and not term.knobs else term


def named_recipes() -> dict[str, Recipe]:
    space = space_file.load(tiny.REPOSITORY / "search_spaces" / "recipes.yaml")
    return {candidate.distillation.name: candidate.distillation for candidate in search_space.each_branch(space)}


NAMED = named_recipes()
CASES: dict[str, Recipe] = {
    **{f"knowledge {name}": Recipe(name, 0.0, (knows(Term(name)),)) for name in KNOWLEDGE},
    **{f"matching {name}": Recipe(name, 0.0, (Term("hidden_mse", 1.0, (("matching", name),)),)) for name in MATCHINGS},
    "matching by a list": Recipe("listed", 0.0, (Term("cos", 1.0, (("matching", ((0, 1), (-1, -1, 2.0))),)),)),
    **{f"schedule {name}": Recipe(name, 0.5, (KD, Term("cos", 2.0, (), name)), hard_schedule=name) for name in SCHEDULES},
    **{f"balance {name}": Recipe(name, 0.5, (KD, COS, Term("gram")), balance=name) for name in BALANCES},
    **{f"scale {name}": Recipe(name, 0.5, (KD, COS), scale=name) for name in SCALES},
    "a temperature that moves": Recipe("cooling", 0.0, (Term("kd", 1.0, (("temperature", 6.0), ("temperature_end", 1.0))),)),
    "stages": Recipe("stages", 0.3, (KD, COS, Term("embedding_mse")), switch=0.4),
    "one knowledge twice": Recipe("twice", 0.0, (COS, Term("cos", 0.5, (("matching", "last_only"),), "constant", "top"))),
    **{f"recipe {name}": recipe for name, recipe in NAMED.items()},
}
