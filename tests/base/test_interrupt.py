"""Signals become a flag while an Interrupt is entered, and are what they were before and after."""

import os
import signal
import threading

import pytest

from aimfair.base.errors import prefixed
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted, Terminated, terminable


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noticed_where_asked(number, code, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        interrupt.check()
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        with pytest.raises(Interrupted, match=number.name) as caught:
            interrupt.check()
        assert caught.value.exit_code == code
    assert signal.getsignal(number) == before
    assert "Ctrl-C again" in capfd.readouterr().err


def test_a_second_sigint_stops_at_once():
    with Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_waits_like_the_first():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            interrupt.check()


def test_sigterm_raises_outside_of_an_interrupt():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with terminable():
            with Interrupt() as interrupt:
                os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.signal == signal.SIGTERM
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_never():
    NEVER.check()
    assert not NEVER.requested


def test_another_thread_may_enter_but_gets_no_signals():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_interruption_keeps_its_exit_code_under_a_prefix():
    with pytest.raises(Interrupted, match="the arm: stopped by SIGINT") as stopped, prefixed("the arm"):
        raise Interrupted(signal.SIGINT)
    assert stopped.value.exit_code == 130
