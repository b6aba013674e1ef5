import signal

import pytest

from kdsearch import calling


def test_ctrl_c_in_the_middle_of_a_statement_is_heard_at_its_end() -> None:
    done = []

    def interrupted() -> None:
        with calling.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    with calling.uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
