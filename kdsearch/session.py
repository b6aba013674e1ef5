"""What the sessions of one study share: settings that may not change, its folder for one process alone, and study.json.

A search is started again with the same file, days later or on a busier machine. What its trials depend on is compared, and what probes of
the machine once decided stays as it was decided.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from kdsearch import earlier, guard, records, search_space, starts, study_store, workers
from kdsearch.check import Study
from kdsearch.earlier import Taken
from kdsearch.errors import UserError
from kdsearch.machine import accelerator, matrix_product_rate, use_precision
from kdsearch.resources import resolve
from kdsearch.workbench import Bench

PACKAGES = ("kdsearch-distill", "torch", "transformers", "optuna", "datasets", "accelerate", "scikit-learn", "plotly")
# What a study's trials depend on: a study is only resumed with these unchanged.
IDENTITY = ("teacher", "task", "target", "limits", "proxy")
EARLIER, EARLIER_FILE = "earlier studies", "earlier.json"
SEARCHED_WITH = ("seed", "sampler", "random_share", "rungs", "eta", "startup_trials", "baselines")


def fingerprint(study: Study) -> dict[str, Any]:
    """What must not change between the sessions of a study."""
    spec = study.spec.model_dump(mode="json")
    search_part = {key: spec["search"][key] for key in SEARCHED_WITH}
    return {key: spec[key] for key in IDENTITY} | {"space": study.space.content, **search_part}


def files_key(study: Study) -> str:
    """A hash of the files besides teacher and data that students are made from: the corpus, and models that they start from."""
    starting = {candidate.initialization for candidate in search_space.each_branch(study.space) if candidate.initialization.model}
    places = [Path(starts.source(start, study.base)) for start in starting]
    if study.spec.task.corpus:
        places.append(resolve(study.spec.task.corpus, study.base) or Path())
    found = hashlib.sha256()
    for place in sorted(places):
        for file in [place] if place.is_file() else sorted(one for one in place.rglob("*") if one.is_file()):
            with file.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]


def refuse_other_study(study: Study) -> None:
    """Two studies in one folder would overwrite each other's records.

    Raises:
        UserError: the folder holds a study of another name.
    """
    facts = study.folder / "study.json"
    name = json.loads(facts.read_text(encoding="utf-8")).get("name") if facts.is_file() else study.spec.name
    if name != study.spec.name:
        raise UserError(f"output folder: {study.folder} holds the study '{name}', not '{study.spec.name}'; choose another with --out")


def workers_as_before(study: Study, store: Any) -> int:
    """How many workers, after the precision is settled: probes of the machine decide on both, and a later session goes on as the first did,
    since what is proposed and what is found depends on them."""
    device = study.spec.target.device
    if precision := store.user_attrs.get("precision"):
        use_precision(device, precision)
    study_store.as_before(store, "precision", accelerator(device).mixed_precision)
    return study.spec.search.workers or study_store.as_before(store, "workers", workers.count_for(study.spec))


def refuse_other_sources(study: Study, store: Any, sources: Sequence[Path]) -> None:
    """What is taken from earlier studies is settled before the first trial, since every later one depends on it.

    Raises:
        UserError: the study's trials were made without these studies, or with others; or one of them is the study itself.
    """
    if any(source.resolve() == study.folder.resolve() for source in sources):
        raise UserError(f"--from: must name other studies; {study.folder} is this one, and goes on by itself; leave it out")
    before = store.user_attrs.get(EARLIER, {}).get("studies", [])
    if store.trials and sources and _named(sources) != before:
        raise UserError(
            f"--from: must name what the study's {len(store.trials)} trials started from: {', '.join(before) or 'no other study'}; "
            "leave it out to go on with that, or start anew in another folder with --out"
        )


def taken_as_before(study: Study, store: Any, sources: Sequence[Path], take: Callable[[], Taken]) -> Taken:
    """What the first session took from earlier studies, whatever has become of them; in the first session what ``take`` gives.

    Raises:
        UserError: what it took is not in the study's folder any more.
    """
    place, before = study.folder / EARLIER_FILE, store.user_attrs.get(EARLIER)
    if before is None or (sources and not store.trials):
        taken = take() if sources else Taken()
        if sources:
            text = taken.to_text()
            records.write_text(place, text)
            store.set_user_attr(EARLIER, {"studies": _named(sources), "key": _key(text)})
        return taken
    text = place.read_text(encoding="utf-8") if place.is_file() else ""
    if _key(text) != before["key"]:
        raise UserError(f"{place}: must be as the first session wrote it, since trials depend on it; restore it, or start anew with --out")
    return earlier.from_text(text)


def _named(sources: Sequence[Path]) -> list[str]:
    return sorted({str(source.resolve()) for source in sources})


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def most_bytes_as_before(study: Study, store: Any, count: int) -> float:
    """What each of so many processes may hold of the memory, as the study says or as it was in its first session."""
    given = study.spec.search.trial_gigabytes
    return guard.most_bytes(given, count) if given else study_store.as_before(store, "bytes of a process", guard.most_bytes(None, count))


def _processor(device: str) -> str:
    """The model of the GPU, or of the processor; where that is not told its architecture."""
    if device != "cpu":
        return f"{platform.machine()}, {torch.cuda.get_device_name(device)}"
    place = Path("/proc/cpuinfo")
    lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join(filter(None, (platform.machine(), names[0] if names else platform.processor())))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The study's folder for one process alone.

    Raises:
        UserError: another has it.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{folder}: another kdsearch is running this study; wait for it, or choose another folder with --out") from None


@contextmanager
def kept(folder: Path, storage: str) -> Iterator[None]:
    """While open, trouble of the storage or of the study's folder (a full disk, a server or a folder that is gone) ends with one message.

    Raises:
        RuntimeError: where the trouble is, what was said, and how to go on.
    """
    try:
        yield
    except Exception as error:
        said = study_store.trouble(error)
        if said is not None:
            where = f"storage {study_store.shown(storage)}"
        elif isinstance(error, OSError) and Path(str(error.filename)).is_relative_to(folder):
            where, said = f"folder {folder}", error.strerror
        else:
            raise
        then = "finished trials are kept, and the same command goes on from there once it is mended"
        raise RuntimeError(f"{where}: {said}; {then}") from error


def write_facts(study: Study, bench: Bench, count: int) -> dict[str, Any]:
    """study.json: what was searched, with what, on which machine, by how many workers; its content."""
    precision = accelerator(study.spec.target.device).mixed_precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    on_cpu = study.spec.target.device == "cpu"
    facts = {
        "name": study.spec.name,
        "base": str(study.base),
        "spec": study.spec.model_dump(mode="json"),
        "space": study.space.content,
        **bench.facts,
        "machine": f"{_processor(study.spec.target.device)}, {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, training in {'float32' if precision == 'no' else precision}",
        "workers": count,
        "precision": precision,
        # FLOP/s of what one worker may use; on a GPU it is not measured
        "rate": matrix_product_rate(dtype=dtype, count=max(1, torch.get_num_threads() // count)) if on_cpu else None,
        "versions": {name: version(name) for name in PACKAGES},
    }
    # A later session does not time the teacher anew: its milliseconds stand beside those of the students that the first one timed.
    place = study.folder / "study.json"
    before = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    if before.get("teacher", {}).get("key") == bench.facts["teacher"]["key"]:
        facts |= {name: before[name] for name in ("teacher", "rate") if name in before}
    records.write_text(place, json.dumps(facts, indent=2))
    return json.loads(json.dumps(facts))
