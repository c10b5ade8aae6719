"""Children end with their parent, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.machine.paths import REPOSITORY

PARENT = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.managers import SyncManager
from study.machine.processes import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    pool = ProcessPoolExecutor(1, context, end_with_parent)
    pool.submit(os.getpid).result()
    print(len(multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_children_of_a_killed_parent_end(tmp_path: Path) -> None:
    """They hold its standard output, which is read to its end."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "2\n", done.stderr


INTERRUPTED = """
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from study.machine.processes import begin, without_ctrl_c

def main():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), begin) as pool:
        with without_ctrl_c():
            first = pool.submit(os.getpid)
        if sys.argv[1] == "idle":
            first.result()
        time.sleep(0.1)
        os.killpg(0, signal.SIGINT)
        time.sleep(60)

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("when", ["starting", "idle"])
def test_children_of_a_pool_say_nothing_of_ctrl_c(when: str, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), when]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, start_new_session=True, check=False
    )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
