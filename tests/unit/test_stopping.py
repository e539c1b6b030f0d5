"""Signals as requests: what they do before, while and after a run can end well."""

import os
import signal
import time

import pytest

from dirl.stopping import Stopped, StopRequest


def wait_until_taken(request: StopRequest) -> None:
    until = time.monotonic() + 5
    while request.signum is None:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_before_training_a_signal_ends_at_once(number: int, code: int) -> None:
    request = StopRequest()
    with request.listening(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.code == code


def test_while_training_it_waits_to_be_looked_at_and_others_are_told_once() -> None:
    request, told = StopRequest(), []
    with request.listening():
        request.deferred, request.tell_others = True, told.append
        request.check()
        os.kill(os.getpid(), signal.SIGINT)
        wait_until_taken(request)
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, sent on by another process
        time.sleep(0.2)
        with pytest.raises(Stopped) as caught:
            request.check()
    assert caught.value.code == 130 and told == [signal.SIGINT]
    request.check()  # a later run of this process is not told by an earlier signal


def test_handlers_of_before_are_put_back_and_inner_listening_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    request = StopRequest()
    with request.listening():
        inside = signal.getsignal(signal.SIGTERM)
        with request.listening():
            pass
        assert signal.getsignal(signal.SIGTERM) == inside != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_fork_does_not_pass_its_signals_to_the_run() -> None:
    from dirl.stopping import request

    with request.listening():
        request.deferred = True
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.1)
        request.check()


def test_a_command_may_take_interrupts_itself_and_sigterm_still_ends_it() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a script
    stop, taken = StopRequest(), []
    with stop.listening(), stop.interrupts_by(lambda signum, frame: taken.append(signum)):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        assert taken == [signal.SIGINT] * 3 and stop.signum is None
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
