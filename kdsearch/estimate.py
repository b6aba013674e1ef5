"""What a study would run, and for about how long, from arithmetic and one probe of the machine; nothing is trained."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from kdsearch import calibration, cost, planned, remarks, samplers, search_space, teacher
from kdsearch.budget import STEP
from kdsearch.candidate import Architecture, Candidate
from kdsearch.check import Study
from kdsearch.machine import matrix_product_rate
from kdsearch.planned import Costs, Plan
from kdsearch.space_file import Choice, Float, Int, OneOf
from kdsearch.students import reading, vocabulary
from kdsearch.students.baselines import baselines
from kdsearch.students.build import skeleton
from kdsearch.students.families import architecture_of, narrow
from kdsearch.study_file import Search, StudySpec
from kdsearch.tasks import batches, data

CANDIDATES, SAMPLE_ROWS = 200, 500
# Share of the float32 matrix-product rate that a training step of a small student reaches on a CPU, about.
EFFICIENCY = 0.6


@dataclass(frozen=True)
class Sample:
    """What an estimate looks at: the teacher's config, the texts, tokens a row, candidates that were drawn, the config of each shape, the
    candidates that are not too large, and what these cost."""

    config: PretrainedConfig
    tokenizer: Any
    rows: data.TaskData
    tokens: float
    drawn: list[Candidate]
    configs: dict[Architecture, PretrainedConfig]
    kept: list[Candidate]
    costs: Costs


def describe(study: Study) -> dict[str, str]:
    """One line for each part of the study."""
    spec, some = study.spec, _sample(study)
    rows, shape, plan = some.rows, architecture_of(some.config), planned.plan(spec, some.costs)
    counts = {shape: cost.parameters(narrowed) for shape, narrowed in some.configs.items()}
    small, large = min(counts.values()), max(counts.values())
    for end in (small, large):
        skeleton(some.config, next(shape for shape, count in counts.items() if count == end))
    return {
        "teacher": f"{spec.teacher.model}: {cost.parameters(some.config) / 1e6:.1f}M parameters, {shape.layers} layers x {shape.width}",
        "data": f"{len(rows.train.texts)} train, {len(rows.validation.texts)} validation, {len(rows.test.texts)} test, "
        f"{len(rows.transfer.texts)} transfer, {len(rows.held_out.texts)} held out; "
        f"classes {', '.join(rows.classes)}; {some.tokens:.0f} tokens a row",
        "space": f"{len(some.drawn)} candidates drawn, {len(counts)} shapes, "
        f"{small / 1e6:.1f}M to {large / 1e6:.1f}M parameters, the smallest and the largest were built; "
        + (f"{len(some.drawn) - len(some.kept)} break limits.parameters" if spec.limits.parameters else "their latency is not known yet"),
        **_vocabularies(study, some.tokenizer, rows),
        "before": _before(study, some),
        **_search(spec, plan),
        "output": str(study.folder),
    }


def on_finalists(study: Study) -> str | None:
    """That the study's minutes are too few for its finalists and a search, with numbers; None: they are not."""
    if not study.spec.search.finalists:
        return None
    plan = planned.plan(study.spec, _sample(study).costs)
    return remarks.on_finalists(plan.trainings, plan.finalists, study.spec)


def _sample(study: Study) -> Sample:
    spec = study.spec
    config = AutoConfig.from_pretrained(teacher.source(spec.teacher, study.base), num_labels=2)
    tokenizer, rows = teacher.load_tokenizer(spec.teacher, study.base), data.load(spec.task, study.base)
    config.num_labels = len(rows.classes)
    tokens = float(np.mean(batches.encode(tokenizer, rows.train.texts[:SAMPLE_ROWS], None, spec.task.max_length).lengths))
    drawn = [search_space.sample(study.space, _picker(np.random.default_rng([spec.search.seed, i]))) for i in range(CANDIDATES)]
    configs = {shape: narrow(config, shape) for shape in {candidate.architecture for candidate in drawn}}
    most = spec.limits.parameters
    kept = [item for item in drawn if most is None or cost.parameters(configs[item.architecture]) <= most]
    hand_made = baselines(architecture_of(config)).values() if spec.search.baselines else []
    costs = Costs(
        matrix_product_rate() * EFFICIENCY,
        [_per_token(configs[item.architecture], tokens) for item in kept],
        [_per_token(narrow(config, item.architecture), tokens) for item in hand_made],
        _told_tokens(study, rows, tokens) * _per_token(config, tokens),
    )
    return Sample(config, tokenizer, rows, tokens, drawn, configs, kept, costs)


def _told_tokens(study: Study, rows: data.TaskData, tokens: float) -> float:
    """About on how many tokens the teacher is asked: on those that are measured, and on all that students are trained on, or on those that
    short distillations read, where these are less than half (workbench.prepare)."""
    trained, measured = (
        tokens * sum(len(part.texts) for part in parts) for parts in ((rows.train, rows.transfer), (rows.validation, rows.held_out))
    )
    read, alike = study.spec.proxy.steps * study.spec.proxy.batch_tokens, search_space.vocabularies(study.space) == [None]
    return measured + (read if alike and not study.spec.search.finalists and 2 * read < trained else trained)


def _per_token(config: PretrainedConfig, tokens: float) -> float:
    """FLOPs of a forward pass for each token of a row."""
    return cost.flops(config, 1, int(tokens)) / tokens


def _before(study: Study, some: Sample) -> str:
    """What is done once, before the search."""
    tune, rows, rate = study.spec.teacher.fine_tune, some.rows, some.costs.rate
    tuning = tune.epochs * len(rows.train.texts) * some.tokens * STEP * _per_token(some.config, some.tokens) if tune else 0.0
    parts = calibration.parts_of(candidate.initialization for candidate in search_space.each_branch(study.space))
    calibrating = calibration.work(some.config, parts, len(rows.train.texts) + len(rows.transfer.texts), some.tokens)
    once = {"fine-tuning": tuning, "caching": some.costs.teacher, "calibration": calibrating}
    minutes = ", ".join(f"{flops / rate / 60:.1f} min of {what}" for what, flops in once.items() if flops)
    return f"about {minutes}, once (kept for later runs)"


def _search(spec: StudySpec, plan: Plan) -> dict[str, str]:
    """The search, who goes on at its rungs, the finalists, and the FLOPs of all that."""
    ends, sampler, at = spec.search, samplers.kind(spec.search), list(plan.behind)
    words = f" but for those that are stopped after {' or '.join(map(str, at))} (the best 1/{ends.eta:g} go on)" if at else ""
    found = {
        "search": f"{ends.minutes:g} min with the {sampler} sampler, {spec.proxy.steps} steps each{words}: "
        f"about {plan.seconds:.0f} s a candidate without limits, {_candidates(ends, plan)}"
    }
    if at:
        found["rungs"] = f"of these about {', '.join(f'{many} go on behind step {step}' for step, many in plan.behind.items())}"
    flops = f"about {plan.search_flops:.2g} of search, {plan.teacher_flops:.2g} of them the teacher's answers (not its fine-tuning)"
    if ends.finalists:
        found["finalists"] = (
            f"{ends.finalists}, the knee without distillation{' and the baselines' if ends.baselines else ''}: {plan.trainings} trainings "
            f"of {spec.train.steps} steps, about {plan.finalists / 60:.1f} of the {ends.minutes:g} min"
        )
        flops += f"; {plan.finalist_flops:.2g} of the finalists"
    said = [remarks.on_teacher_flops(plan.teacher_flops, ends), remarks.on_finalists(plan.trainings, plan.finalists, spec)]
    but = " ".join(filter(None, said))
    return {**found, "FLOPs": flops, **({"but": but} if but else {})}


def _candidates(ends: Search, plan: Plan) -> str:
    """How many candidates the budget allows; limits and duplicates make them cheaper."""
    if plan.limit == "trials":
        return f"{plan.candidates} candidates (search.trials)"
    flops = " (search.flops)" if plan.limit == "flops" else ""
    return f"{plan.candidates} candidates by their training alone{flops}" + (
        f", {ends.trials} at most (search.trials)" if ends.trials is not None else ""
    )


def _vocabularies(study: Study, tokenizer: Any, texts: data.TaskData) -> dict[str, str]:
    """What the space's smaller vocabularies do to the task's texts."""
    sizes, length = [size for size in search_space.vocabularies(study.space) if size is not None], study.spec.task.max_length
    if not sizes:
        return {}
    ranking, some, told = reading.rank(tokenizer, texts, length), texts.train.texts[:SAMPLE_ROWS], []
    for size in sizes:
        rows = batches.encode(vocabulary.reduce(tokenizer, ranking.tokens[:size]), some, None, length)
        other = "" if size >= ranking.lossless else ", so that what compares token by token is refused"
        told.append(f"with {size} tokens {np.mean(rows.lengths):.1f} a row{other}")
    kept = f"{ranking.lossless} of the teacher's {len(ranking.tokens)} tokens keep the tokenisation of all train and transfer text"
    return {"vocabulary": "; ".join([kept, *told])}


def _picker(random: np.random.Generator):
    def pick(_: str, domain: Int | Float | Choice | OneOf) -> object:
        match domain:
            case Choice(values):
                return values[random.integers(len(values))]
            case OneOf(branches):
                return list(branches)[random.integers(len(branches))]
            case Int(low, high, step):
                return int(low + step * random.integers((high - low) // step + 1))
            case Float(low, high, log):
                return float(np.exp(random.uniform(np.log(low), np.log(high)))) if log else float(random.uniform(low, high))

    return pick
