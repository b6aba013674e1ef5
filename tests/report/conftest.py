import pytest
from synthetic_study import EXPORT, study_records, write_study


@pytest.fixture
def study(tmp_path):
    """A study of 30 trials with one export."""
    return write_study(tmp_path / "reviews", study_records(), exports=[EXPORT])


@pytest.fixture
def fresh_study(tmp_path):
    """A study in which nothing has been trained yet."""
    return write_study(tmp_path / "fresh")
