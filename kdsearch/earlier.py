"""What earlier studies found that this one need not find again: results of the same students, and fronts to try first.

Of a study of the same teacher, data, target, proxy and machine, what was found of a student that lies in this space is *imported* and held
against this study's limits. Of any other study the front is tried first: what is best for one teacher is a good guess for another.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdsearch import limits, records, rungs
from kdsearch.candidate import Candidate, from_dict
from kdsearch.check import Study
from kdsearch.errors import UserError, all_of
from kdsearch.records import COMPLETE, FAILED, REFUSED, STOPPED, Measurement, Record
from kdsearch.report import front, study_folder
from kdsearch.report.study_folder import StudyFolder
from kdsearch.search_space import parameters_of, vocabularies
from kdsearch.space_file import SearchSpace

# What must be equal for a measurement to be one of this study: its name, and where it stands in study.json.
SAME = {
    "teacher": ("teacher", "key"),
    "data": ("task", "key"),
    "target": ("spec", "target"),
    "proxy": ("spec", "proxy"),
    "machine": ("machine",),
}


@dataclass(frozen=True)
class Offer:
    """A student of an earlier study: the parameters by which a trial gets it (a baseline has none), and its record where it is imported."""

    params: dict[str, Any] | None
    record: Record | None


@dataclass(frozen=True)
class Taken:
    """What is taken from earlier studies: parameters to try first, those of the imported students before others; the imported records;
    and a line for each study that says so."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    imported: list[Record] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def by_key(self) -> dict[str, Record]:
        """The imported records by their candidates' keys."""
        return {from_dict(record.candidate).key(): record for record in self.imported}

    def to_text(self) -> str:
        """The content of earlier.json; inverse of :func:`from_text`."""
        return json.dumps({**asdict(self), "imported": [record.to_dict() for record in self.imported]}, indent=1)


def from_text(text: str) -> Taken:
    """What earlier.json holds; inverse of :meth:`Taken.to_text`."""
    content = json.loads(text)
    return Taken(content["starts"], [records.from_dict(row) for row in content["imported"]], content["said"])


def load(places: Sequence[Path]) -> list[StudyFolder]:
    """The studies of these folders or study files, each once.

    Raises:
        UserError: some are no studies, or not as this kdsearch writes them.
    """
    found = all_of(*(lambda place=place: _load(place) for place in places))
    return list({folder.path.resolve(): folder for folder in found}.values())


def _load(place: Path) -> StudyFolder:
    try:
        folder = study_folder.load(place)
    except UserError as error:
        raise UserError([f"--from: {message}" for message in error.messages]) from None
    try:
        for record in folder.records:
            from_dict(record.candidate)
        front_of(folder)
        _number_of_limits(folder.facts)
    except (KeyError, TypeError) as error:
        raise UserError(f"--from: {place}: is not as this kdsearch writes a study ({error!r}); run it again, or leave it out") from None
    return folder


def take(folders: Sequence[StudyFolder], study: Study, facts: dict[str, Any], hand_made: Sequence[Candidate]) -> Taken:
    """What these studies give to one that has these ``facts`` (study.json) and hand-made baselines; of two imports the first counts."""
    yardsticks, found, said = {candidate.key() for candidate in hand_made}, dict[str, Offer](), list[str]()
    for folder in folders:
        different, left = differences(facts, folder.facts), Counter[str]()
        offers = [(one, None) for one in front_of(folder)] if different else _offers(folder, study, facts, left)
        settled = {key for key, offer in found.items() if different or offer.record}
        fresh = _fresh(offers, study.space, yardsticks, settled, left)
        found |= fresh
        what = f"{_counted(len(fresh), 'student')} of its front tried first" if different else f"{_counted(len(fresh), 'trial')} imported"
        why = f"; {' and '.join(different)} not the same" if different else ""
        said.append(f"from {_name(folder)}: {what}{_left_out(left)}{why}")
    ordered = sorted(found.values(), key=lambda offer: offer.record is None)
    starts = [offer.params for offer in ordered if offer.params is not None]
    return Taken(starts, [offer.record for offer in ordered if offer.record], said)


def _fresh(
    offers: Iterable[tuple[Candidate, Record | None]], space: SearchSpace, yardsticks: set[str], settled: set[str], left: Counter[str]
) -> dict[str, Offer]:
    """The offers by their candidates' keys that lie in the space, or are a yardstick trained to its end; the others are counted."""
    found = dict[str, Offer]()
    for candidate, record in offers:
        key, (params, missing) = candidate.key(), parameters_of(space, candidate)
        trained = record is not None and record.measurement.state == COMPLETE
        if missing and key not in yardsticks:
            left[f"outside this space: {', '.join(missing)}"] += 1
        elif key in settled or (key in yardsticks and not trained):
            left["tried or imported already"] += 1
        else:
            found[key] = Offer(None if key in yardsticks else params, record)
    return found


def differences(facts: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What keeps the measurements of another study from being those of this one; empty when nothing does."""
    return [name for name, path in SAME.items() if _at(facts, path) is None or _at(facts, path) != _at(other, path)]


def front_of(folder: StudyFolder) -> list[Candidate]:
    """The students of a study's front, each once: by full trainings where it has these, then by short ones."""
    confirmed = [row["candidate"] for row in (folder.confirmed or {}).get("students", []) if row["on_front"]]
    found = map(from_dict, [*confirmed, *(record.candidate for record in front.on_front(folder))])
    return list({candidate.key(): candidate for candidate in found}.values())


def _offers(folder: StudyFolder, study: Study, facts: dict[str, Any], left: Counter[str]) -> Iterator[tuple[Candidate, Record]]:
    """Candidates of a study with what was found, as this study sees it; why others are left out is counted."""
    corpus = folder.facts["spec"].get("task", {}).get("corpus")
    elsewhere = folder.facts.get("base") != facts["base"] or corpus != study.spec.task.corpus
    for record in folder.records:
        if record.duplicate_of is not None:
            continue
        candidate = from_dict(record.candidate)
        named = candidate.initialization.other_model or ((corpus or study.spec.task.corpus) and candidate.architecture.vocabulary)
        reason = _obstacle(record.measurement, folder, study, facts)
        if reason or (named and elsewhere):
            left[reason or "made from files of another folder"] += 1
            continue
        found = held_against(record.measurement, study, facts, _refused_for_tokens(record.measurement, folder))
        origin = record.imported_from or f"trial {record.trial} of {_name(folder)}"
        yield candidate, Record(record.trial, record.candidate, found, record.seed, imported_from=origin)


def _obstacle(found: Measurement, folder: StudyFolder, study: Study, facts: dict[str, Any]) -> str | None:
    """Why a measurement is none of this study's; None: it is."""
    if found.state == FAILED:
        return "failed there"
    if found.state == STOPPED and found.steps not in rungs.at(study.spec.search.rungs, study.spec.proxy.steps):
        return "stopped at a rung that this study does not have"
    if study.spec.limits.memory_megabytes is not None and found.memory_bytes is None and found.state in (COMPLETE, STOPPED):
        return "its memory was not measured there"
    allowed = limits.broken(found, study.spec.limits, facts["teacher"]["accuracy"]) is None
    # Without parameters its recipe was impossible for its shape, whatever the limits are.
    if found.state == REFUSED and allowed and found.parameters is not None and not _refused_for_tokens(found, folder):
        return "refused there for a limit that this study does not have"
    return None


def held_against(found: Measurement, study: Study, facts: dict[str, Any], unusable: bool = False) -> Measurement:
    """A measurement with this study's violations and reason; ``unusable``: its recipe cannot be used with its vocabulary.

    What was trained to the end stays so: where it breaks a limit, its accuracy is worth more to a sampler than none.
    """
    known = replace(found, accuracy=None) if found.state == STOPPED else found  # what it would have had is not known
    rule = known, study.spec.limits, facts["teacher"]["accuracy"]
    also = [float(unusable)] if vocabularies(study.space) != [None] else []
    reason = limits.broken(*rule)
    if found.state != COMPLETE:
        reason = found.reason if found.state == STOPPED or reason is None else reason
    return replace(found, violations=(*limits.excess(*rule), *also), reason=reason)


def _refused_for_tokens(found: Measurement, folder: StudyFolder) -> bool:
    """Whether it was refused since its recipe compares token by token: the constraint that stands after the limits."""
    return found.state == REFUSED and len(found.violations) > _number_of_limits(folder.facts) and found.violations[-1] > 0


def _number_of_limits(facts: dict[str, Any]) -> int:
    return sum(limit is not None for limit in facts["spec"]["limits"].values())


def _at(facts: dict[str, Any], path: Sequence[str]) -> Any:
    for key in path:
        facts = facts.get(key) or {}
    return facts or None


def _name(folder: StudyFolder) -> str:
    return str(folder.facts.get("name", folder.path.name))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _left_out(left: Counter[str]) -> str:
    reasons = "; ".join(f"{number} {reason}" for reason, number in left.items())
    return f", {left.total()} left out ({reasons})" if left else ""
