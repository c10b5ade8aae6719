"""A wish to stop is noted once, passed on where it must be, and leaves no handler behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from study.errors import Interrupted
from study.machine import interrupts
from study.machine.interrupts import SIGNALS, InterruptFlag


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """None of them may end the tests, and all must be back at the end."""

    def unexpected(signum: int, frame: object) -> None:
        raise AssertionError(f"signal {signum} was not taken")

    before = {number: signal.signal(number, unexpected) for number in SIGNALS}
    yield
    found = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert all(handler in (unexpected, signal.SIG_IGN) for handler in found)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_only_raises_the_flag(number: int) -> None:
    flag = InterruptFlag()
    with flag:
        assert not flag.raised
        signal.raise_signal(number)
        assert flag.raised
        signal.raise_signal(number)  # the same wish, passed on as well
    assert flag.raised


class AtOnce(Exception):
    """In place of the end of this process."""


def test_a_second_wish_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def end(code: int) -> None:
        raise AtOnce(code)

    monkeypatch.setattr(interrupts.os, "_exit", end)
    monkeypatch.setattr(InterruptFlag, "TOGETHER_S", -1.0)  # any later signal is another wish
    with InterruptFlag():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(AtOnce) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.args == (143,)
    assert capfd.readouterr().err == "Ended at once; the same command goes on from what is saved.\n"


def test_a_second_wish_is_heard_however_often_it_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise AtOnce(code)

    def hammer() -> None:
        while time.monotonic() < began + 5.0:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)

    monkeypatch.setattr(interrupts.os, "_exit", end)
    monkeypatch.setattr(InterruptFlag, "TOGETHER_S", 0.2)  # longer than from one to the next
    began = time.monotonic()
    with InterruptFlag(), pytest.raises(AtOnce):
        hammer()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_end_says_which_signal_it_was(number: int) -> None:
    flag = InterruptFlag()
    with flag:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        flag.end()
    assert caught.value.signum == number


def test_output_that_nobody_reads_is_a_wish_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = InterruptFlag()
    flag.say("heard")
    assert not flag.raised
    assert capsys.readouterr().out == "heard\n"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        flag.say("not heard")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    assert flag.raised
    with pytest.raises(BrokenPipeError):
        flag.end()


def test_another_thread_changes_no_handler() -> None:
    found = []

    def enter() -> None:
        flag = InterruptFlag()
        with flag:
            found.append([signal.getsignal(number) for number in SIGNALS])
        found.append(flag.raised)

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before, False]


def test_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flag = InterruptFlag()
    with flag:
        signal.raise_signal(signal.SIGHUP)
    assert not flag.raised
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_flag_may_be_entered_again() -> None:
    flag = InterruptFlag()
    for _ in range(2):
        with flag:
            signal.raise_signal(signal.SIGTERM)
    assert flag.raised
