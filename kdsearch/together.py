"""Optuna's relational storage, able to write several things of a trial in one transaction.

A trial of twelve parameters and as many attributes is thirty commits, each some milliseconds, and a kill between two of them leaves half a
trial. Inside :func:`together` they are one.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session


class Storage(optuna.storages.RDBStorage):
    """RDBStorage that holds parameters and attributes back while a block is open; a study's own must be new ones there."""

    held: list[Callable[[Any], None]] | None = None
    file: tuple[Path, int] | None = None  # of SQLite, with its inode

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Write at the end of the block what was set inside, in order, all or nothing; after an error nothing."""
        self.held = []
        try:
            yield
            writes = self.held
        finally:
            self.held = None
        with _create_scoped_session(self.scoped_session) as session:
            for write in writes:
                write(session)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        value = (trial_id, param_name, param_value_internal, distribution, previous_distribution)
        if self.held is None:
            super()._set_trial_param(*value)
        else:
            self.held.append(lambda session: self._set_trial_param_without_commit(session, *value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: D102
        if self.held is None:
            super().set_trial_user_attr(trial_id, key, value)
        else:
            self._hold(models.TrialUserAttributeModel, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: D102
        if self.held is None:
            super().set_trial_system_attr(trial_id, key, value)
        else:
            self._hold(models.TrialSystemAttributeModel, trial_id, key, value)

    def add_study_attrs(self, study_id: int, attributes: dict[str, Any]) -> None:
        """Set system attributes of a study, unless the first of them is there already: all, or none."""
        table, first = models.StudySystemAttributeModel, next(iter(attributes))

        def write(session: Any) -> None:
            if session.query(table).filter_by(study_id=study_id, key=first).one_or_none() is None:
                session.add_all(table(study_id=study_id, key=key, value_json=json.dumps(value)) for key, value in attributes.items())

        if self.held is not None:
            self.held.append(write)
            return
        with _create_scoped_session(self.scoped_session) as session:
            write(session)

    def _hold(self, table: Any, trial_id: int, key: str, value: Any) -> None:
        assert self.held is not None
        self.held.append(lambda session: self._set_trial_attr_without_commit(session, table, trial_id, key, value))


def together(study: optuna.Study) -> AbstractContextManager[None]:
    """While open, parameters and attributes of trials are held back, and then written in one transaction where the storage can."""
    storage = storage_of(study)
    return storage.holding() if storage else nullcontext()


def storage_of(study: optuna.Study) -> Storage | None:
    """The storage behind a study; None where it is not one of these."""
    storage = getattr(study._storage, "_backend", study._storage)
    return storage if isinstance(storage, Storage) else None
