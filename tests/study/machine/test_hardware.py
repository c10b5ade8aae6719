"""What a machine is called in reports."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from study.machine import hardware as machine
from study.machine.hardware import cpu_name
from study.machine.paths import REPOSITORY


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("sse2 avx avx2", "Some CPU (AVX2)"),
        ("avx2 avx512f avx512_bf16", "Some CPU (AVX-512 with bfloat16)"),
        ("avx2 avx512f avx512_bf16 amx_bf16", "Some CPU (AMX)"),
        ("sse2", "Some CPU"),
    ],
)
def test_processors_of_one_name_are_told_apart(flags: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    core = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\n"
    file.write_text(core + core)
    assert cpu_name(file) == said


def test_a_machine_without_the_file_has_a_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "none") == (platform.processor() or platform.machine())


def test_torch_gets_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    for cores, threads in ((8, 3), (2, 2)):
        monkeypatch.setattr(machine, "n_cores", lambda cores=cores: cores)
        machine.use_no_more_threads()
        assert torch.get_num_threads() == threads


@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="needs unshare, as root")
def test_a_quota_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    command = f"mount --bind {tmp_path} /sys/fs/cgroup && exec {sys.executable} -c"
    inside = ["unshare", "--mount", "sh", "-c", f"{command} 'from study.machine.hardware import *; print(n_cores())'"]
    assert subprocess.run(inside, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.strip() == "1"
