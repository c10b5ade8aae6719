"""A picture of the first screen of a report, taken by a headless Chromium.

python scripts/screenshot.py results/runs/dilated/report.html report.png
python scripts/screenshot.py report.html phone.png --size 390x844
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evidence
from study.command_line.parser import run_command
from study.errors import StudyFailed, UserError
from study.machine.files import is_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (1280, 800)
TIMEOUT_S = 60


def browser() -> str | None:
    """The browser that is installed, if one is."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def take(html: Path, png: Path, size: tuple[int, int] = SIZE) -> None:
    """Writes what a window of `size` pixels shows of `html`.

    Raises:
        UserError: There is no browser.
        StudyFailed: It makes no picture.
    """
    program = browser()
    if program is None:
        raise UserError(f"A picture needs one of {', '.join(BROWSERS)} installed, and there is none.")
    with tempfile.TemporaryDirectory(prefix="screenshot-") as profile:
        made = Path(profile) / "screen.png"
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={profile}/profile", "--window-size={},{}".format(*size), "--virtual-time-budget=10000",
            f"--screenshot={made}", html.resolve().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise StudyFailed(f"{program} took no picture within {TIMEOUT_S} s") from error
        if not is_file(made):
            raise StudyFailed(f"{program} took no picture: {done.stderr.strip().splitlines()[-1:]}")
        shutil.copyfile(made, png)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if not found:
        raise UserError(f"--size must be WIDTHxHEIGHT in pixels, like 1280x800: {text!r}.")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    parser = evidence.parser("screenshot.py", __doc__)
    parser.add_argument("html", type=Path, metavar="REPORT", help="a report.html")
    parser.add_argument("png", type=Path, metavar="PNG", help="the picture to write")
    parser.add_argument("--size", default="1280x800", metavar="WxH", help="of the window (default: 1280x800)")
    options = parser.parse_args(argv)
    if not is_file(options.html):
        raise UserError(f"There is no report at {str(options.html)!r}. Write one with python -m study.report.")
    take(options.html, options.png, _size(options.size))
    return 0


if __name__ == "__main__":
    run_command(main)
