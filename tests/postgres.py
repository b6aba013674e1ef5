"""A PostgreSQL server of its own for a test: started on a socket in a temporary folder, stopped and started as the test likes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = [shutil.which("initdb") or "", *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
INITDB = next((Path(name).resolve() for name in FOLDERS if name), None)
URL = "postgresql+psycopg://kdsearch@/postgres?host="


class Server:
    """A server whose data are in a folder; it may not be root's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"{URL}{folder}"
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        self._call("initdb", "-D", "data", "-A", "trust", "-U", "kdsearch", "--no-sync")

    def start(self) -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", f"-k {self.folder} -c listen_addresses= -c fsync=off", "start")

    def stop(self) -> None:
        """As if the machine had gone."""
        self._call("pg_ctl", "-D", "data", "-m", "immediate", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        assert INITDB is not None
        command = [str(INITDB.with_name(program)), *arguments]
        subprocess.run(command, cwd=self.folder, user=self.user, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def server() -> Iterator[Server]:
    """A server that runs."""
    with tempfile.TemporaryDirectory(prefix="kdsearch-") as folder:
        found = Server(Path(folder))
        found.start()
        try:
            yield found
        finally:
            found.stop()
