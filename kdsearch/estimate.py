"""What a study would run, and for about how long, from arithmetic and one probe of the machine; nothing is trained."""

from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from kdsearch import calibration, cost, rungs, samplers, search_space, teacher
from kdsearch.check import Study
from kdsearch.machine import matrix_product_rate
from kdsearch.space_file import Choice, Float, Int, OneOf
from kdsearch.students import reading, vocabulary
from kdsearch.students.build import skeleton
from kdsearch.students.families import architecture_of, narrow
from kdsearch.study_file import Search, StudySpec
from kdsearch.tasks import batches, data

CANDIDATES, SAMPLE_ROWS = 200, 500
# Share of the float32 matrix-product rate that a training step of a small student reaches on a CPU, about.
EFFICIENCY = 0.6


def describe(study: Study) -> dict[str, str]:
    """One line for each part of the study."""
    spec, rate = study.spec, matrix_product_rate() * EFFICIENCY
    config = AutoConfig.from_pretrained(teacher.source(spec.teacher, study.base), num_labels=2)
    tokenizer, rows = teacher.load_tokenizer(spec.teacher, study.base), data.load(spec.task, study.base)
    config.num_labels = len(rows.classes)
    shape = architecture_of(config)
    texts = rows.train.texts[:SAMPLE_ROWS]
    mean_tokens = float(np.mean(batches.encode(tokenizer, texts, None, spec.task.max_length).lengths))

    def per_token(model: PretrainedConfig) -> float:
        return cost.flops(model, 1, int(mean_tokens)) / mean_tokens

    total = sum(len(part.texts) for part in (rows.train, rows.transfer, rows.validation, rows.held_out)) * mean_tokens
    tuning = (
        spec.teacher.fine_tune.epochs * len(rows.train.texts) * mean_tokens * 3 * per_token(config) / rate
        if spec.teacher.fine_tune
        else 0.0
    )
    caching = total * per_token(config) / rate
    parts = calibration.parts_of(candidate.initialization for candidate in search_space.each_branch(study.space))
    calibrating = calibration.work(config, parts, len(rows.train.texts) + len(rows.transfer.texts), mean_tokens) / rate
    once = {"fine-tuning": tuning, "caching": caching, "calibration": calibrating}
    drawn = [search_space.sample(study.space, _picker(np.random.default_rng([spec.search.seed, i]))) for i in range(CANDIDATES)]
    configs = {shape: narrow(config, shape) for shape in {candidate.architecture for candidate in drawn}}
    counts = {shape: cost.parameters(narrowed) for shape, narrowed in configs.items()}
    small, large = min(counts.values()), max(counts.values())
    for end in (small, large):
        skeleton(config, next(shape for shape, count in counts.items() if count == end))
    kept = [item for item in drawn if spec.limits.parameters is None or counts[item.architecture] <= spec.limits.parameters]
    tokens = spec.proxy.steps * spec.proxy.batch_tokens
    trial = float(np.mean([tokens * 3 * per_token(configs[item.architecture]) / rate for item in kept])) if kept else 0.0
    sampler, (share, words) = samplers.kind(spec.search), _rungs(spec)
    return {
        "teacher": f"{spec.teacher.model}: {cost.parameters(config) / 1e6:.1f}M parameters, {shape.layers} layers x {shape.width}",
        "data": f"{len(rows.train.texts)} train, {len(rows.validation.texts)} validation, {len(rows.test.texts)} test, "
        f"{len(rows.transfer.texts)} transfer, {len(rows.held_out.texts)} held out; "
        f"classes {', '.join(rows.classes)}; {mean_tokens:.0f} tokens a row",
        "space": f"{len(drawn)} candidates drawn, {len(counts)} shapes, "
        f"{small / 1e6:.1f}M to {large / 1e6:.1f}M parameters, the smallest and the largest were built; "
        f"{len(drawn) - len(kept)} break limits.parameters",
        **_vocabularies(study, tokenizer, rows),
        "before": f"about {', '.join(f'{seconds / 60:.1f} min of {what}' for what, seconds in once.items() if seconds)}, "
        "once (kept for later runs)",
        "search": f"{spec.search.minutes:g} min with the {sampler} sampler, {spec.proxy.steps} steps each{words}: "
        f"about {share * trial:.0f} s a candidate without limits, {_candidates(spec.search, share * trial)}",
        "output": str(study.folder),
    }


def _rungs(spec: StudySpec) -> tuple[float, str]:
    """The mean share of the proxy's steps of a candidate, if as many are stopped at each rung as eta says; and the rungs in words."""
    at, eta = rungs.at(spec.search.rungs, spec.proxy.steps), spec.search.eta
    ends = [*at, spec.proxy.steps]
    mean = sum((end - start) * eta**-number for number, (start, end) in enumerate(zip([0, *at], ends, strict=True)))
    words = f" but for those that are stopped after {' or '.join(map(str, at))} (the best 1/{eta:g} go on)" if at else ""
    return mean / spec.proxy.steps, words


def _candidates(plan: Search, seconds: float) -> str:
    """How many candidates the budget allows; limits and duplicates make them cheaper."""
    many = int(plan.minutes * 60 / max(seconds, 0.1))
    if plan.trials is not None and plan.trials <= many:
        return f"{plan.trials} candidates (search.trials)"
    return f"{many} or more candidates" + (f", {plan.trials} at most (search.trials)" if plan.trials is not None else "")


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
