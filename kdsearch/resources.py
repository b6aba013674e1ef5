"""Where a model or a data file is: a Hub id, a local path, or ``package://PACKAGE/PATH`` inside an installed Python package."""

import hashlib
import importlib.util
import os
from pathlib import Path

from kdsearch.errors import UserError

PACKAGE = "package://"


def resolve(name: str, base: Path) -> Path | None:
    """The local path that a name stands for, or None for a name that is not local (a Hub id).

    A relative path is looked up from ``base`` (the study file's folder), then from the working directory.

    Raises:
        UserError: a package that is not installed, or a path that does not exist in it.
    """
    if name.startswith(PACKAGE):
        return _in_package(name)
    for root in (base, Path.cwd()):
        path = (root / Path(name).expanduser()).resolve()
        if path.exists():
            return path
    return None


def looks_local(name: str) -> bool:
    """Whether a name can only mean a path: Hub ids have at most one slash and no file ending."""
    return name.startswith((".", "/", "~", PACKAGE)) or name.count("/") > 1 or Path(name).suffix in {".csv", ".json", ".jsonl", ".parquet"}


CACHE_VARIABLE = "KDSEARCH_CACHE"


def cache_folder() -> Path:
    """Where fine-tuned teachers and their outputs are kept: KDSEARCH_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdsearch"
    return Path(os.environ.get(CACHE_VARIABLE, default))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{name}: the Python package '{package}' is not installed; install it (for the quickstart: pip install -c constraints.txt "
            '".[quickstart]")'
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise UserError(f"{name}: the package '{package}' is installed but has no '{inside}'; check the path inside the package")
    return path
