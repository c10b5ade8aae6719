"""The page of `study.predict --serve` in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from study.bundle.classifier import Classifier
from study.bundle.files import Bundle
from study.model.network import build
from study.serving.server import MOST_BYTES, Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    candidate = Candidate(Architecture((Conv(8, stride=2),)))
    bundle = Bundle(Path("<b>best<i>"), candidate, {}, build(candidate.architecture, seed=3).eval())
    with Server(Classifier(bundle), bundle, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def choose(browser: Any, address: str, tmp_path: Path) -> Callable[[str, bytes | Image.Image], dict[str, Any]]:
    """Chooses a file on a fresh page; what stands there once it has answered."""
    browser.get(address)

    def chosen(name: str, content: bytes | Image.Image) -> dict[str, Any]:
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            content.save(file)
        browser.find_element("id", "file").send_keys(str(file))
        return settled(browser)

    return chosen


def settled(browser: Any) -> dict[str, Any]:
    wait(browser, lambda: shown(browser)["error"] or shown(browser)["bars"])
    return shown(browser)


def wait(browser: Any, condition: Callable[[], Any]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(lambda _: condition())


def shown(browser: Any) -> dict[str, Any]:
    return dict(
        browser.execute_script(
            """
            const text = (id) => document.getElementById(id).innerText;
            return {error: text("error"), best: text("best"), model: text("model"), file: text("file-name"),
                bars: [...document.querySelectorAll("#bars b")].map((b) => b.offsetWidth / b.parentNode.offsetWidth),
                values: [...document.querySelectorAll("#bars div span:last-child")].map((cell) => cell.innerText),
                answer: document.getElementById("answer").checkVisibility(),
                given: document.getElementById("given").checkVisibility(),
                fits: document.documentElement.scrollWidth <= innerWidth,
                ground: getComputedStyle(document.body).backgroundColor};
            """
        )
    )


def test_a_chosen_picture_gets_its_bars(browser: Any, choose: Callable[..., dict[str, Any]]) -> None:
    found = choose("red.png", Image.new("RGB", (64, 48), "red"))
    assert found["answer"]
    assert found["model"].startswith("<b>best<i>: ")
    assert found["file"] == "red.png"
    assert len(found["bars"]) == 5
    for width, value in zip(found["bars"], found["values"], strict=True):
        assert 100 * width == pytest.approx(float(value.rstrip("%")), abs=1)
    assert found["best"].endswith(found["values"][0])
    assert not browser.get_log("browser")
    choose("page.tif", Image.new("RGB", (64, 48)))
    wait(browser, lambda: not shown(browser)["given"])  # what browsers do not show


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("text.png", b"no picture", "cannot be read: it is no image"), ("big.png", bytes(MOST_BYTES + 1), "too large")],
)
def test_what_is_no_picture_is_said(
    choose: Callable[..., dict[str, Any]], name: str, content: bytes, words: str
) -> None:
    found = choose(name, content)
    assert words in found["error"]
    assert not found["answer"]


def test_a_picture_can_be_dropped(browser: Any, address: str) -> None:
    browser.get(address)
    browser.execute_script(
        """
        document.createElement("canvas").toBlob((blob) => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([blob], "dropped.png"));
            dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, cancelable: true}));
        });
        """
    )
    assert settled(browser)["file"] == "dropped.png"


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_the_night(browser: Any, choose: Callable[..., dict[str, Any]], dark: bool) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    found = choose(f"{'long' * 40}.png", Image.new("RGB", (64, 48), "red"))
    assert found["fits"]
    assert (sum(map(int, found["ground"][4:-1].split(","))) < 200) == dark
