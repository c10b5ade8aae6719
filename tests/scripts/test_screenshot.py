"""Pictures of a page by a headless browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import screenshot
from study.errors import UserError


@pytest.mark.slow
def test_it_shows_the_first_screen(tmp_path: Path) -> None:
    if screenshot.browser() is None:
        pytest.skip("needs Chromium installed")
    page, png = tmp_path / "a page.html", tmp_path / "page.png"
    style = "<style>body { margin: 0; height: 3000px; background: rgb(0, 114, 178) }</style>"
    page.write_text(f"<!DOCTYPE html>{style}<p id=words><script>words.textContent = 'drawn'</script>")
    assert screenshot.main([str(page), str(png), "--size", "640x400"]) == 0
    with Image.open(png) as found:
        assert found.size == (640, 400)
        assert found.convert("RGB").getpixel((630, 390)) == (0, 114, 178)
        assert len(found.convert("RGB").getcolors(10**6)) > 2  # words


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="There is no report"):
        screenshot.main([str(tmp_path / "none.html"), str(tmp_path / "page.png")])
    page = tmp_path / "page.html"
    page.write_text("")
    with pytest.raises(UserError, match="WIDTHxHEIGHT"):
        screenshot.main([str(page), str(tmp_path / "page.png"), "--size", "wide"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs one of chromium"):
        screenshot.main([str(page), str(tmp_path / "page.png")])
