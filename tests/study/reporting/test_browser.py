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
    from selenium.webdriver.support.wait import WebDriverWait

    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forgets what an earlier page did
    # Asked for the page that it shows already, a busy browser may answer before the page's last script has run.
    browser.get("about:blank")
    browser.get(page)
    there = "return location.href === arguments[0] && document.readyState === 'complete'"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(there, page))


def said(browser: Any) -> list[Any]:
    """What the page's own scripts reported: without a GPU the browser warns of its way to draw parallel coordinates."""
    return [entry for entry in browser.get_log("browser") if entry["source"] != "rendering"]


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
    assert said(browser) == []
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
    browser.execute_script("window.heard = 0; addEventListener('beforeprint', () => { window.heard += 1; })")
    assert len(browser.print_page()) > 100_000
    assert browser.execute_script("return window.heard") == 1

    # The same event once more, with a look at the page when all its listeners have run.
    look = """
    dispatchEvent(new Event(arguments[0]));
    return {
      widths: [...document.querySelectorAll(".js-plotly-plot")]
        .map(each => [each.id, +each.querySelector(".main-svg").getAttribute("width")]),
      folded: document.querySelectorAll("details:not([open])").length,
      unfolded: document.querySelectorAll("details[open]").length,
    };
    """
    paper = browser.execute_script(look, "beforeprint")
    assert said(browser) == []
    assert len(paper["widths"]) > 10
    assert [plot for plot in paper["widths"] if plot[1] > PRINT_WIDTH] == []
    assert paper["folded"] == 0
    # Afterwards it is as it was.
    screen = browser.execute_script(look, "afterprint")
    assert screen["unfolded"] == 0
    assert dict(screen["widths"])["curves"] > PRINT_WIDTH
