"""A page on this machine alone that classifies the pictures dropped on it; nothing is stored."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from PIL import Image

from study.bundle.classifier import Classifier, most_likely
from study.bundle.files import Bundle
from study.command_line.wording import percent
from study.data.image_files import UnreadableImageError, read_picture
from study.errors import StudyFailed, UserError

ADDRESS = "127.0.0.1"
MOST_BYTES = 20 * 2**20
_TOP = 5
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    """The page's server, bound to the loopback address.

    Raises:
        OSError: The port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, model: Classifier, bundle: Bundle, port: int) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.model, self.at_work = model, threading.Lock()
        suffix = "" if self.server_port == 80 else f":{self.server_port}"  # browsers leave that one out
        self.hosts = {f"{name}{suffix}" for name in (ADDRESS, "localhost")}
        facts = {
            "name": bundle.folder.resolve().name,
            "params": bundle.candidate.architecture.params,
            "accuracy": percent(bundle.metrics.get("test_accuracy_shipped"), 2),
            "data": model.preprocessing.data,
            "size": model.preprocessing.image_size,
            "classes": model.classes,
            "most_bytes": MOST_BYTES,
        }
        text = files("study.serving").joinpath("page.html").read_text(encoding="utf-8")
        # In a script's text only this character could end it.
        self.page = text.replace("FACTS", json.dumps(facts).replace("<", "\\u003c"), 1).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a page that was closed waits for no answer
            super().handle_error(request, client_address)


def serve(model: Classifier, bundle: Bundle, port: int) -> None:
    """Serves until it is interrupted.

    Args:
        model: Of `bundle`.
        bundle: What the page tells of.
        port: On the loopback address; 0 takes any free one.

    Raises:
        UserError: The port cannot be used.
    """
    try:
        server = Server(model, bundle, port)
    except OSError as error:
        raise UserError(
            f"Port {port} cannot be used: {error.strerror}. Name another, or 0 for any free one."
        ) from error
    with server:
        print(f"Open http://{ADDRESS}:{server.server_port} in a browser of this machine; Ctrl-C ends it.", flush=True)
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """One request. Its path is compared and never looked for."""

    server: Server
    timeout = 30

    def do_GET(self) -> None:
        if not self._is_ours():
            self._say(403, "This page is for this machine alone.")
        elif self.path != "/":
            self._say(404, "There is nothing here.")
        else:
            self._send(200, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        if not self._is_ours():
            return self._say(403, "Only this machine's own page may ask.")
        if self.path != "/predict":
            return self._say(404, "There is nothing here.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._say(411, "The picture must come with its length.")
        if len(length) > 10 or int(length) > MOST_BYTES:
            return self._say(413, f"The picture is larger than {MOST_BYTES // 2**20} MiB.")
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            return self._say(400, "The picture has not come whole.")
        try:
            with self.server.at_work:  # one at a time: a picture of few bytes may take much memory
                self._send_json(200, _answer(self.server.model, content))
        except UnreadableImageError as error:
            self._say(422, f"This cannot be read: {error}.")
        except StudyFailed as error:
            self._say(500, str(error))

    def _is_ours(self) -> bool:
        """Whether it was asked for by this name, and by our own page or no page: a stranger's page that a browser here
        shows could ask too, even under a name of its own that leads to this address."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        return host in self.server.hosts and origin in (None, f"http://{host}")

    def _say(self, status: int, words: str) -> None:
        self._send_json(status, {"error": words})

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: who looks at the page sees what happens."""


def _answer(model: Classifier, content: bytes) -> dict[str, Any]:
    picture = read_picture(io.BytesIO(content), model.preprocessing.image_size)
    seen = io.BytesIO()
    Image.fromarray(picture.pixels).save(seen, "PNG")
    return {
        "top": most_likely(model, picture.pixels[None], _TOP)[0],
        "seen": f"data:image/png;base64,{base64.b64encode(seen.getvalue()).decode()}",
        "note": "It holds several pictures; this is the first one." if picture.several else "",
    }
