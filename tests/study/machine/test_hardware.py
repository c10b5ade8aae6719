"""What a machine is called in reports."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from study.machine.hardware import cpu_name


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
