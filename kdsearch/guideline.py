"""Records --> statements: what each axis of the search did to the validation accuracy in this study, with interval and grade.

One regression on all trained students (main effects, HC3 standard errors), so that each axis is judged with the others held equal: on
simulated studies its intervals cover the truth about as often as they promise, where bootstrapped forests do not. A statement is at best
"suggestive"; "confirmed" needs paired runs that change one thing.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch import regression
from kdsearch.candidate import Candidate, from_dict
from kdsearch.records import COMPLETE, Record

SUGGESTIVE, NO_EVIDENCE = "suggestive", "no evidence"
UNIT = "percentage points of validation accuracy"
LEAST_FREEDOM, LEAST_PER_LEVEL, LEAST_PER_RECIPE = 10, 5, 10
REFERENCES = ("none", "random")
METHOD = (
    "Each effect is that of changing one thing with the other axes held equal, averaged over the students of this study: least squares on "
    "the main effects of all trained students, 95% intervals from HC3 standard errors. "
    f"A judgement needs {LEAST_FREEDOM} residual degrees of freedom, a choice needs {LEAST_PER_LEVEL} trials (rarer ones are pooled), "
    f"a recipe's own knobs need {LEAST_PER_RECIPE} trials with that recipe. "
    "Suggestive: p < 0.05 after Holm's correction for all the comparisons. "
    "Nothing here is confirmed: that needs paired runs that change one thing. "
    "The sampler proposes more of what scored well, and the runs were short: long training may rank students otherwise."
)


@dataclass(frozen=True)
class Statement:
    """What the study shows about one change. ``effect``, ``low`` and ``high`` (95%) in ``unit``; ``p_value`` is Holm-corrected.

    ``n`` trained students, ``baselines`` of them hand-made; None where the trials do not determine a number.
    """

    axis: str
    statement: str
    effect: float | None
    low: float | None
    high: float | None
    unit: str
    n: int
    p_value: float | None
    grade: str
    baselines: int = 0


@dataclass(frozen=True)
class Column:
    """One change whose effect is asked for: its axis, the change in words, the regressor [n], what was seen, why it cannot be judged."""

    axis: str
    change: str
    values: NDArray[np.float64]
    seen: str
    obstacle: str | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Finding:
    """A column with its fitted effect; NaN where there is none. ``tied`` are the changes that cannot be told apart from it."""

    column: Column
    effect: float = np.nan
    margin: float = np.nan
    p_value: float = np.nan
    tied: tuple[str, ...] = ()


NUMERIC: tuple[tuple[str, str, Callable[[Candidate], float], bool], ...] = (
    ("layers", "one more layer", lambda c: c.architecture.layers, False),
    ("width", "doubling the width", lambda c: c.architecture.width, True),
    ("heads", "doubling the number of heads at the same width", lambda c: c.architecture.heads, True),
    ("ffn_ratio", "doubling the feed-forward ratio", lambda c: c.architecture.ffn_ratio, True),
    ("learning_rate", "doubling the learning rate", lambda c: c.training.learning_rate, True),
)
CATEGORICAL: tuple[tuple[str, Callable[[Candidate], str]], ...] = (
    ("initialization.layers", lambda c: str(c.initialization.layers)),
    ("initialization.width", lambda c: c.initialization.width),
    ("distillation", lambda c: c.distillation.name if c.distillation.terms else "none"),
)


def evidence(records: Sequence[Record]) -> list[Record]:
    """The records that count: trained to the end, each student once; hand-made baselines too."""
    return [r for r in records if r.measurement.state == COMPLETE and r.duplicate_of is None and r.measurement.accuracy is not None]


def statements(records: Sequence[Record]) -> list[Statement]:
    """What the trained students of one study show about each axis, suggestive ones first."""
    used = evidence(records)
    candidates = [from_dict(record.candidate) for record in used]
    accuracy = 100 * np.array([record.measurement.accuracy for record in used], dtype=float)
    axes = _axes(candidates)
    findings = [finding for finding in _findings(axes, accuracy) if not finding.column.pooled]
    for recipe, count in sorted(Counter(c.distillation.name for c in candidates if c.distillation.terms).items()):
        if count >= LEAST_PER_RECIPE:
            knobs = _knobs(candidates, recipe)
            findings += _findings([*axes, *knobs], accuracy)[len(axes) :]
    corrected = regression.holm([finding.p_value for finding in findings])
    comparisons = int(np.isfinite(corrected).sum())
    hand_made = sum(record.baseline is not None for record in used)
    said = [
        replace(_state(finding, p_value, len(used), comparisons), baselines=hand_made)
        for finding, p_value in zip(findings, corrected, strict=True)
    ]
    return sorted(said, key=lambda one: (one.grade != SUGGESTIVE, -abs(one.effect or 0.0) if one.grade == SUGGESTIVE else 0.0))


def to_markdown(found: Sequence[Statement], facts: dict[str, Any]) -> str:
    """guideline.md: what the study is about, how to read it, the statements."""
    lines = [
        f"# Guideline of the study {facts['name']}",
        "",
        "About this study only; another teacher, task or size may behave otherwise.",
        "",
    ]
    lines += [f"* {label}: {text}" for label, text in region(found, facts).items()]
    for grade, title in ((SUGGESTIVE, "Suggestive"), (NO_EVIDENCE, "No evidence")):
        lines += ["", f"## {title}", ""]
        lines += [f"* {one.statement}" for one in found if one.grade == grade] or ["* Nothing."]
    return "\n".join([*lines, "", "## How this was found", "", METHOD, ""])


def to_json(found: Sequence[Statement], facts: dict[str, Any]) -> str:
    """guideline.json: the same as data."""
    content = {"study": facts["name"], "region": region(found, facts), "method": METHOD, "statements": [asdict(one) for one in found]}
    return json.dumps(content, indent=2)


def region(found: Sequence[Statement], facts: dict[str, Any]) -> dict[str, str]:
    """Where the statements hold: teacher, data, sizes, recipes, number of trials, sampler, length of the runs."""
    spec, space = facts.get("spec", {}), facts.get("space", {})
    task, search, proxy = spec.get("task", {}), spec.get("search", {}), spec.get("proxy", {})
    n, hand_made = (found[0].n, found[0].baselines) if found else (0, 0)
    rows = f" ({facts['task']['train']:,} training rows)" if "train" in facts.get("task", {}) else ""
    shape = space.get("architecture", {})
    sizes = in_words(shape) if "one_of" in shape else "; ".join(f"{key} {in_words(domain)}" for key, domain in shape.items())
    return {
        "teacher": facts.get("teacher", {}).get("model", "not recorded"),
        "data": f"{task.get('data', 'not recorded')}{rows}",
        "student sizes": sizes or "not recorded",
        "recipes": in_words(space["distillation"]) if "distillation" in space else "none",
        "trials": f"{n} trained students, {hand_made} of them hand-made baselines",
        "sampler": str(search.get("sampler", "not recorded")),
        "training per trial": f"{proxy['steps']} steps" if "steps" in proxy else "not recorded",
    }


def in_words(domain: Any) -> str:
    """A domain of a search space: ``{int: [1, 6]}`` is "1 to 6"."""
    if not isinstance(domain, dict):
        return str(domain)
    if "one_of" in domain or "choice" in domain:
        return ", ".join(str(value) for value in domain.get("one_of", domain.get("choice", ())))
    ends = domain.get("int") or domain.get("float")
    if isinstance(ends, list) and len(ends) == 2:
        return f"{ends[0]} to {ends[1]}{' (log)' if domain.get('log') else ''}"
    return str(domain.get("name", ", ".join(domain)))


def _axes(candidates: Sequence[Candidate]) -> list[Column]:
    columns = [_number(axis, change, [get(c) for c in candidates], log) for axis, change, get, log in NUMERIC]
    for axis, get in CATEGORICAL:
        columns += _levels(axis, [get(c) for c in candidates])
    if any(c.architecture.vocabulary for c in candidates):
        columns += _levels("vocabulary", [str(c.architecture.vocabulary or "the teacher's") for c in candidates])
    return columns


def _number(axis: str, change: str, values: Sequence[float], log: bool) -> Column:
    numbers = np.array(values, dtype=float)
    seen = "" if not values else f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"
    return Column(axis, change, np.log2(numbers) if log else numbers, seen)


def _levels(axis: str, values: Sequence[str]) -> list[Column]:
    """One column per choice that is not the reference: "none" or "random" where enough trials had it, else the most frequent one."""
    counts, texts = Counter(values), np.array(values, dtype=object)
    if len(counts) < 2:
        return [Column(axis, axis, np.zeros(len(values)), "".join(counts))]
    usual = [name for name in REFERENCES if counts[name] >= LEAST_PER_LEVEL]
    reference = usual[0] if usual else counts.most_common(1)[0][0]
    columns, rare = [], []
    for level in sorted(set(counts) - {reference}):
        scarce = min((level, reference), key=lambda name: counts[name])
        if counts[level] < LEAST_PER_LEVEL:
            rare.append(level)
        short = counts[scarce] < LEAST_PER_LEVEL
        obstacle = f"{counts[scarce]} of {len(values)} trials had {scarce!r}, {LEAST_PER_LEVEL} are needed" if short else None
        # A rare choice gets no regressor of its own: zeros, and its trials share the pooled one below.
        own = np.zeros(len(values)) if level in rare else (texts == level).astype(float)
        columns.append(Column(axis, f"{axis} {level!r} instead of {reference!r}", own, level, obstacle))
    pooled = np.isin(texts.astype(str), rare).astype(float)
    return [*columns, Column(axis, f"the rarer choices of {axis}", pooled, "", pooled=True)] if rare else columns


def _knobs(candidates: Sequence[Candidate], recipe: str) -> list[Column]:
    """Columns for what a recipe alone has, centered within its trials and 0 elsewhere: the recipe's own effect stays that of its mean."""
    inside = np.array([c.distillation.name == recipe for c in candidates])
    members = [c.distillation for c in candidates if c.distillation.name == recipe]
    whole = ("hard_weight", "hard_schedule", "switch", "balance", "scale")
    knobs: list[dict[str, Any]] = [{name: getattr(member, name) for name in whole} for member in members]
    for own, member in zip(knobs, members, strict=True):
        for term in member.terms:
            own |= {f"{term.name}.{name}": value for name, value in [("weight", term.weight), ("schedule", term.schedule), *term.knobs]}
    found = []
    for name in knobs[0]:
        values = [own[name] for own in knobs if name in own]
        if len(values) == len(members) and len({str(value) for value in values}) > 1:
            for column in _knob(f"distillation.{recipe}.{name}", values):
                spread = np.zeros(len(candidates))
                spread[inside] = column.values - column.values.mean()
                found.append(replace(column, values=spread))
    return found


def _knob(axis: str, values: Sequence[Any]) -> list[Column]:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _levels(axis, [str(value) for value in values])
    if min(values) >= 0 and max(values) <= 1:  # a share: steps of 0.1 mean the same everywhere
        column = _number(axis, f"0.1 more {axis}", values, False)
        return [replace(column, values=column.values * 10)]
    log = min(values) > 0
    return [_number(axis, f"doubling {axis}" if log else f"1 more {axis}", values, log)]


def _findings(columns: Sequence[Column], accuracy: NDArray[np.float64]) -> list[Finding]:
    n = len(accuracy)
    if n < LEAST_FREEDOM + 2:
        few = f"{n} trials leave fewer than {LEAST_FREEDOM} residual degrees of freedom" if n else "no student was trained"
        return [Finding(replace(column, obstacle=few)) for column in columns]
    fitted = regression.fit(np.stack([column.values for column in columns], axis=1), accuracy)
    if fitted.freedom < LEAST_FREEDOM:
        few = f"{n} trials leave {fitted.freedom} residual degrees of freedom beside the other axes, {LEAST_FREEDOM} are needed"
        columns = [replace(column, obstacle=column.obstacle or few) for column in columns]
    together = {index: tuple(columns[k].change for k in partners) for index, partners in fitted.tied.items()}
    for index, partners in fitted.tied.items():
        for k in partners:
            together[k] = (*together.get(k, ()), columns[index].change)
    return [_finding(index, column, fitted, together.get(index, ())) for index, column in enumerate(columns)]


def _finding(index: int, column: Column, fitted: regression.Fit, tied: tuple[str, ...]) -> Finding:
    if column.obstacle or index in fitted.tied:
        return Finding(column, tied=tied)
    return Finding(column, fitted.effect[index], fitted.margin[index], fitted.p_value[index], tied)


def _state(finding: Finding, p_value: float, n: int, comparisons: int) -> Statement:
    """The finding in a sentence, and its grade."""
    column, effect, margin = finding.column, finding.effect, finding.margin
    nothing = Statement(column.axis, "", None, None, None, UNIT, n, None, NO_EVIDENCE)
    if column.obstacle:
        return replace(nothing, statement=f"No evidence on {column.change}: {column.obstacle}.")
    if np.isnan(effect) and finding.tied:
        return replace(
            nothing, statement=f"No evidence on {column.change}: in these {n} trials it cannot be told apart from {_and(finding.tied)}."
        )
    if np.isnan(effect):
        return replace(nothing, statement=f"No evidence on {column.axis}: it was {column.seen} in all {n} trials.")
    if np.isnan(p_value):
        return replace(nothing, statement=f"No evidence on {column.change}: among {n} trials it rests on a single one.")
    low, high = effect - margin, effect + margin
    numbers = f"{effect:+.2f} {UNIT} (95% interval {low:+.2f} to {high:+.2f}; {n} trials)"
    beside = f" {_capital(_and(finding.tied))} cannot be told apart from it, so the effect may belong to either." if finding.tied else ""
    grade = SUGGESTIVE if p_value < 0.05 else NO_EVIDENCE
    if grade == SUGGESTIVE:
        text = f"{_capital(column.change)}: {numbers}. Suggestive; paired runs have not confirmed it."
    elif low <= 0 <= high:
        text = f"No evidence that {column.change} changes the accuracy: {numbers}."
    else:
        text = f"No evidence, after correction for {comparisons} comparisons, that {column.change} changes the accuracy: {numbers}."
    return Statement(column.axis, text + beside, float(effect), float(low), float(high), UNIT, n, float(p_value), grade)


def _and(names: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
