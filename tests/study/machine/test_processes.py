"""Children end with their parent, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
