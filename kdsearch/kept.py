"""Folders that are kept on disk under the hash of what they come from: made by one process, whole or absent."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from kdsearch.resources import cache_folder

CACHE_VERSION = 3


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the processes that need this folder one makes it, and the others wait and read it."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{folder.name}.lock"):
        yield


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when all is written; a kill leaves no half of it under that name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def digest(*parts: str) -> str:
    """Content hash of some texts: the name of a folder that is kept for them."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:24]
