"""Signals that are deferred, and those that are not."""

import os
import signal

import pytest

from pixelsail_mm.engine import stop_signals
from pixelsail_mm.engine.stop_signals import StopRequest


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def request_():
    with StopRequest().listening() as asked:
        yield asked


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_is_noted_and_the_second_acts(request_, number, monkeypatch):
    request_.deferred = True
    send(number)
    assert request_.signal is number
    send(number)  # the launcher passes on what the terminal has told already
    monkeypatch.setattr(stop_signals, '_ONE_REQUEST', 0.0)
    ended = []
    signal_before = signal.getsignal(signal.SIGTERM)
    try:
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                send(number)
        else:  # it would end this process: what comes next is looked at in a child
            child = os.fork()
            if child == 0:
                request_._owner = os.getpid()
                send(number)
                os._exit(0)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            assert ended == [-signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal_before)


def test_before_the_training_signals_act(request_):
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert request_.signal is None


def test_workers_outlive_ctrl_c_and_end_with_sigterm(request_):
    """A forked worker has the handler of its parent."""
    request_.deferred = True
    child = os.fork()
    if child == 0:
        send(signal.SIGINT)
        if request_.signal is not None:
            os._exit(1)
        send(signal.SIGTERM)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in stop_signals.SIGNALS]
    with StopRequest().listening():
        pass
    assert [signal.getsignal(number) for number in stop_signals.SIGNALS] == before
