from pathlib import Path

import pytest

from kdsearch import resources
from kdsearch.errors import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "kdsearch_test_package"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "data" / "rows.csv").write_text("text\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_a_path_inside_a_package_is_found_without_importing_the_package(package: Path, tmp_path: Path) -> None:
    assert resources.resolve("package://kdsearch_test_package/data/rows.csv", tmp_path) == package / "data" / "rows.csv"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("package://no_such_package/data", ["package://no_such_package/data", "'no_such_package' is not installed", "pip install"]),
        ("package://os/path", ["'os' is not installed"]),  # a module without a folder
        ("package://not-a-name/data", ["'not-a-name' is not installed"]),
        ("package://kdsearch_test_package/data/typo.csv", ["has no 'data/typo.csv'", "check the path"]),
    ],
)
@pytest.mark.usefixtures("package")
def test_a_package_or_path_that_is_not_there_says_which_and_how_to_mend_it(name: str, expected: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resources.resolve(name, tmp_path)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_a_relative_path_is_looked_up_from_the_study_then_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, here = tmp_path / "study", tmp_path / "here"
    for folder in (study, here):
        folder.mkdir()
        (folder / "both.csv").touch()
    (here / "only.csv").touch()
    monkeypatch.chdir(here)
    assert resources.resolve("both.csv", study) == study / "both.csv"
    assert resources.resolve("only.csv", study) == here / "only.csv"
    assert resources.resolve("neither.csv", study) is None
    assert resources.resolve(str(here / "only.csv"), study) == here / "only.csv"


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("bert-base-uncased", False),
        ("google-bert/bert-base-uncased", False),
        ("./model", True),
        ("/models/x", True),
        ("~/x", True),
        ("a/b/c", True),
        ("rows.csv", True),
        ("package://x/y", True),
    ],
)
def test_a_name_that_can_only_be_a_path_is_known(name: str, local: bool) -> None:
    assert resources.looks_local(name) is local


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert resources.file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("KDSEARCH_CACHE", raising=False)
    assert resources.cache_folder() == Path("/x/kdsearch")
    monkeypatch.setenv("KDSEARCH_CACHE", "/y")
    assert resources.cache_folder() == Path("/y")
