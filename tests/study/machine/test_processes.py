"""Children end with their parent, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from study.machine.paths import REPOSITORY

PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.managers import SyncManager
from study.machine.processes import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    pool = ProcessPoolExecutor(1, context, end_with_parent)
    print(pool.submit(os.getpid).result(), manager._process.pid, flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_children_of_a_killed_parent_end(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    assert all(alive(pid) for pid in children)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while any(alive(pid) for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)
