"""The page of `study.predict --serve`: it answers this machine's own page, and nobody else."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.architecture import Architecture, Conv
from search_spaces.candidate import Candidate
from study import predict
from study.bundle.classifier import Classifier
from study.bundle.files import Bundle
from study.data.cifar10 import CLASSES
from study.errors import UserError
from study.model.network import build
from study.serving.server import ADDRESS, MOST_BYTES, Server, serve

CANDIDATE = Candidate(Architecture((Conv(8, stride=2),)))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    network = build(CANDIDATE.architecture, seed=3).eval()
    return Bundle(Path("</script>&best"), CANDIDATE, {"test_accuracy_shipped": 0.5}, network)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with Server(Classifier(bundle), bundle, 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    """Status, text, and headers of the answer."""
    connection = HTTPConnection(ADDRESS, server.server_port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers
    finally:
        connection.close()


def picture(kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), (200, 30, 90), np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def test_a_picture_gets_its_classes(server: Server, bundle: Bundle) -> None:
    status, text, _ = ask(server, "POST", "/predict", picture())
    answer = json.loads(text)
    assert status == 200
    image = torch.full((1, 3, 32, 32), 0.0) + torch.tensor([200.0, 30.0, 90.0]).view(3, 1, 1) / 255
    probabilities = Classifier(bundle)(image).softmax(1)[0]
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [name for name, _ in answer["top"]] == [CLASSES[label] for label in order]
    assert [value for _, value in answer["top"]] == pytest.approx(probabilities[order].tolist(), abs=1e-5)
    with Image.open(io.BytesIO(base64.b64decode(answer["seen"].split(",")[1]))) as seen:
        assert seen.size == (32, 32)
    assert answer["note"] == ""
    second = Image.new("RGB", (32, 32))
    assert (
        "several"
        in json.loads(ask(server, "POST", "/predict", picture("GIF", save_all=True, append_images=[second]))[1])["note"]
    )


def test_a_damaged_network_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.model, "forward", lambda images: torch.full((len(images), 10), torch.nan))
    status, text, _ = ask(server, "POST", "/predict", picture())
    assert (status, "answers with NaN" in json.loads(text)["error"]) == (500, True)


def test_the_page_is_whole_and_brings_nothing_from_elsewhere(server: Server) -> None:
    status, page, headers = ask(server, "GET", "/")
    assert status == 200
    assert "//" not in page.replace("// a format", "").replace("\\u003c/script", "")
    assert page.count("</script>") == 1  # the name of the bundle holds another
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:{port}"},
        {"Host": ADDRESS},
        {"Origin": "https://stranger.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "localhost:{port}", "Origin": "http://127.0.0.1:{port}"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/predict")])
def test_strangers_pages_get_nothing(server: Server, headers: dict[str, str], method: str, path: str) -> None:
    headers = {name: value.format(port=server.server_port) for name, value in headers.items()}
    status, text, _ = ask(server, method, path, picture() if method == "POST" else None, **headers)
    assert status == 403
    assert "top" not in text


def test_browsers_leave_out_the_usual_port(bundle: Bundle) -> None:
    try:
        made = Server(Classifier(bundle), bundle, 80)
    except OSError:
        pytest.skip("port 80 is taken or not allowed")
    with made:
        assert made.hosts == {ADDRESS, "localhost"}


@pytest.mark.parametrize("host", [ADDRESS, "localhost"])
def test_its_own_page_may_ask(server: Server, host: str) -> None:
    own = f"{host}:{server.server_port}"
    assert ask(server, "POST", "/predict", picture(), Host=own, Origin=f"http://{own}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("GET", "/../../etc/passwd", None, {}, 404, "nothing here"),
        ("GET", "/predict", None, {}, 404, "nothing here"),
        ("POST", "/", b"x", {}, 404, "nothing here"),
        ("POST", "/predict", b"no picture", {}, 422, "it is no image"),
        ("POST", "/predict", b"", {}, 422, "it is no image"),
        ("POST", "/predict", None, {"Content-Length": str(MOST_BYTES + 1)}, 413, "larger than 20 MiB"),
        ("POST", "/predict", None, {"Content-Length": "9" * 5000}, 413, "larger than 20 MiB"),
        ("POST", "/predict", None, {"Content-Length": "-1"}, 411, "with its length"),
        ("POST", "/predict", None, {"Content-Length": "²"}, 411, "with its length"),
        ("POST", "/predict", None, {"Transfer-Encoding": "chunked"}, 411, "with its length"),
    ],
)
def test_what_cannot_be_answered_is_said(
    server: Server, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, words: str
) -> None:
    found, text, _ = ask(server, method, path, body, **headers)
    assert found == status
    assert words in json.loads(text)["error"]


def test_a_page_that_was_closed_is_no_error(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    for error, told in ((BrokenPipeError(), False), (ConnectionResetError(), False), (ValueError("a bug"), True)):
        try:
            raise error
        except Exception:
            server.handle_error(None, (ADDRESS, 1))
        assert ("Traceback" in capfd.readouterr().err) == told


def test_it_listens_to_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(server: Server, bundle: Bundle) -> None:
    with pytest.raises(UserError, match=f"Port {server.server_port} cannot be used: .* Name another"):
        serve(Classifier(bundle), bundle, server.server_port)


def test_the_command_serves(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    (tmp_path / "candidate.json").write_text(json.dumps(CANDIDATE.to_json()))
    (tmp_path / "metrics.json").write_text("{}")
    torch.save(bundle.network.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr("study.serving.server.serve", lambda model, bundle, port: asked.append(port))
    assert predict.main([str(tmp_path), "--serve"]) == 0
    assert predict.main([str(tmp_path), "--serve", "0"]) == 0
    assert asked == [8000, 0]
