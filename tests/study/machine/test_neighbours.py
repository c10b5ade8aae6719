"""Other processes are told apart from this one and its children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study.machine import neighbours
from study.machine.neighbours import Neighbours

BUSY = "import os, time; os.sched_setaffinity(0, {{{core}}}); end = time.monotonic() + {s}\n"
BUSY += "while time.monotonic() < end: pass"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux says who is busy")
def test_others_are_counted_and_own_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(neighbours, "_cores", lambda: {core})
    shares = []
    for waited_for in (True, False):  # a child counts as ours once it was waited for
        watched = Neighbours()
        process = subprocess.Popen([sys.executable, "-c", BUSY.format(core=core, s=1.0 if waited_for else 60.0)])
        if waited_for:
            process.wait()
        else:
            time.sleep(1.0)
        shares.append(watched.share())
        process.kill()
        process.wait()
    assert shares[1] > shares[0] + 0.1
    assert 0 <= shares[0] <= shares[1] <= 1


def test_where_the_system_does_not_say_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_busy_seconds", lambda: None)
    assert Neighbours().share() == 0.0
