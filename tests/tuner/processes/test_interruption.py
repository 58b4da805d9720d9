"""Signals that arrive where Python drops what their handler raises."""

from __future__ import annotations

import os
import signal

import pytest

from tuner.processes.interruption import interruptible, stop_if_interrupted


class InterruptedFinalizer:
    def __init__(self, number: signal.Signals):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_in_a_finalizer_is_raised_at_the_next_step(number: signal.Signals):
    with interruptible():
        stop_if_interrupted()
        InterruptedFinalizer(number)
        with pytest.raises(KeyboardInterrupt):
            stop_if_interrupted()
    stop_if_interrupted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_elsewhere_is_raised_at_once_and_handlers_are_put_back(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was ignored")
    assert signal.getsignal(number) is before
