"""The report in a real browser: figures drawn, nothing said to be wrong, nothing loaded, nothing cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from test_report import made_study, rich_trials

from study.reporting import report
from study.reporting.page import PRINT_WIDTH

pytestmark = pytest.mark.slow

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, made_bundle: Callable[..., None]) -> str:
    """The address of a report with everything that there is to show."""
    out = tmp_path_factory.mktemp("browser")
    made_bundle(out / "best", trial_candidate_id=rich_trials()[1].user_attrs["candidate_id"])
    html, _ = report.write_report(made_study(rich_trials()), out)
    return html.as_uri()


def opened(browser: Any, page: str, size: str, dark: bool) -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forgets what an earlier page did
    browser.get(page)


LOOK = """
const box = each => each.getBoundingClientRect();
const colour = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
const card = colour(getComputedStyle(document.querySelector("section")).backgroundColor);
return {
  width: document.documentElement.scrollWidth,
  plots: [...document.querySelectorAll(".js-plotly-plot")].map(each => ({
    id: each.id,
    right: box(each.querySelector(".main-svg")).right - box(each.parentElement.parentElement).right,
    empty: box(each.parentElement.parentElement).width - box(each.querySelector(".main-svg")).width,
    scrolls: getComputedStyle(each.parentElement.parentElement).overflowX === "auto",
    drawn: each.querySelectorAll(".trace, .points path, .bars path, canvas, .parcoords").length,
    words: [...each.querySelectorAll("text")].filter(word => word.textContent)
      .map(word => colour(getComputedStyle(word).fill)),
  })),
  card, ink: colour(getComputedStyle(document.body).color),
  pictures: [...document.images].map(each => each.naturalWidth),
  unreachable: [...document.querySelectorAll(".scroll")].filter(each => each.tabIndex < 0).length,
  verdict: box(document.querySelector(".verdict .gauges")).bottom,
  history: box(document.getElementById("history")).bottom,
};
"""


def luminance(colour: list[float]) -> float:
    """Relative luminance of sRGB in [0, 255], as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everything_is_drawn_and_nothing_loaded(browser: Any, page: str, size: str, dark: bool) -> None:
    opened(browser, page, size, dark)
    seen = browser.execute_script(LOOK)
    # Without a GPU the browser itself warns of its own way to draw the parallel coordinates.
    assert [entry for entry in browser.get_log("browser") if entry["source"] != "rendering"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {address for address in asked if not address.startswith(("data:", "blob:"))} == {page}

    assert seen["width"] <= SIZES[size][0]
    names = {plot["id"] for plot in seen["plots"]}
    assert {"history", "trained-loss", "classes", "reliability", "curves", "size", "parallel", "slice-5"} <= names
    for plot in seen["plots"]:
        assert plot["drawn"], plot["id"]
        assert plot["right"] <= 1 or plot["scrolls"], plot["id"]
        assert plot["empty"] <= 1, plot["id"]  # it fills its place
        assert min(contrast(ink, seen["card"]) for ink in plot["words"]) >= 4.5, plot["id"]
    assert (luminance(seen["card"]) < 0.1) == dark
    assert contrast(seen["ink"], seen["card"]) >= 7
    assert len(seen["pictures"]) == 41
    assert min(seen["pictures"]) > 0
    assert seen["unreachable"] == 0
    if size == "desktop":
        assert max(seen["verdict"], seen["history"]) <= SIZES[size][1]  # one screen


def test_nothing_is_cut_in_print(browser: Any, page: str) -> None:
    opened(browser, page, "desktop", dark=True)
    browser.execute_script("""
        addEventListener("beforeprint", () => {
          window.printed = [...document.querySelectorAll(".main-svg")].map(each => each.getAttribute("width"));
          window.open_ = document.querySelectorAll("details:not([open])").length;
        });
    """)
    # On a busy machine plots may still be drawing, and are not told a new width meanwhile.
    browser.execute_async_script("""
        const done = arguments[arguments.length - 1];
        const plots = [...document.querySelectorAll(".js-plotly-plot")];
        Promise.all(plots.map(each => Plotly.relayout(each, {}))).then(() => requestAnimationFrame(() => done()));
    """)
    pdf = browser.print_page()
    assert len(pdf) > 100_000
    printed = [float(width) for width in browser.execute_script("return window.printed")]
    assert len(printed) > 30
    assert max(printed) <= PRINT_WIDTH
    assert browser.execute_script("return window.open_") == 0
    # Afterwards it is as it was.
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
    width = browser.execute_script("return document.querySelector('#curves .main-svg').getAttribute('width')")
    assert float(width) > PRINT_WIDTH
