"""What sessions remember of the earlier studies that the first started from; the rest stands in test_commands and test_readme."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdsearch import session
from kdsearch.earlier import Taken
from kdsearch.errors import UserError

TAKEN, OTHERS = Taken([{"architecture.layers": 2}], [], ["from a: 0 trials imported"]), Taken([], [], ["from b: nothing"])


class Store(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(user_attrs={}, trials=[])

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value


def never() -> Taken:
    raise AssertionError("what the first session took is not taken anew")


@pytest.fixture
def study(tmp_path: Path) -> Any:
    return SimpleNamespace(folder=tmp_path)


def test_what_the_first_session_took_stays_with_and_without_the_option(study: Any) -> None:
    store, sources = Store(), [Path("a"), Path("b")]
    assert session.taken_as_before(study, store, sources, lambda: TAKEN) == TAKEN
    assert session.taken_as_before(study, store, [], never) == TAKEN
    store.trials.append("one")
    session.refuse_other_sources(study, store, [Path("b"), Path("a"), Path("a")])
    for again in ([], sources):
        assert session.taken_as_before(study, store, again, never) == TAKEN


def test_before_the_first_trial_other_studies_may_be_named(study: Any) -> None:
    store = Store()
    session.taken_as_before(study, store, [Path("a")], lambda: TAKEN)
    session.refuse_other_sources(study, store, [Path("b")])
    assert session.taken_as_before(study, store, [Path("b")], lambda: OTHERS) == OTHERS
    assert session.taken_as_before(study, store, [], never) == OTHERS


def test_a_study_that_started_from_none_goes_on_with_none(study: Any) -> None:
    store = Store()
    assert session.taken_as_before(study, store, [], never) == Taken()
    store.trials.append("one")
    assert session.taken_as_before(study, store, [], never) == Taken()
    with pytest.raises(UserError, match="--from: must name what the study's 1 trials started from: no other study; leave it out"):
        session.refuse_other_sources(study, store, [Path("a")])


def test_other_studies_than_the_first_session_s_and_the_study_itself_are_refused(study: Any) -> None:
    store = Store()
    session.taken_as_before(study, store, [Path("a")], lambda: TAKEN)
    store.trials.append("one")
    for others in ([Path("b")], [Path("a"), Path("b")]):
        with pytest.raises(UserError, match=f"started from: {Path('a').resolve()}; leave it out"):
            session.refuse_other_sources(study, store, others)
    with pytest.raises(UserError, match=r"must name other studies; .* is this one"):
        session.refuse_other_sources(study, store, [study.folder / ".." / study.folder.name])


@pytest.mark.parametrize("spoil", [lambda place: place.write_text("{}"), lambda place: place.unlink()])
def test_what_was_taken_and_changed_since_is_refused(study: Any, spoil: Any) -> None:
    store = Store()
    session.taken_as_before(study, store, [Path("a")], lambda: TAKEN)
    store.trials.append("one")
    spoil(study.folder / "earlier.json")
    with pytest.raises(UserError, match=r"earlier\.json: must be as the first session wrote it"):
        session.taken_as_before(study, store, [], never)
