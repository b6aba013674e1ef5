import signal
import subprocess
import sys

import pytest

from kdsearch import beside

PROGRAM = """
import gc, signal, sys
from kdsearch import beside

def tell(connection):
    shared = "torch" in sys.modules and gc.get_freeze_count() > 100_000
    connection.send((shared, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())))

if __name__ == "__main__":
    beside.start_importing()
    assert "torch" not in sys.modules  # it is the other process that imports
    ours, theirs = beside.context().Pipe()
    with beside.without_interrupt():
        beside.context().Process(target=tell, args=(theirs,)).start()
    print(*ours.recv())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every worker imports by itself")
def test_a_worker_is_a_copy_of_what_has_imported_beside_and_ctrl_c_does_not_reach_it(tmp_path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    found = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "True"]


def test_what_is_blocked_is_freed_again() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with beside.without_interrupt():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
