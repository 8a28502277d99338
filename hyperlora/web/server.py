"""The web server of the page: plain HTTP on this machine alone, files of the package and a small JSON API.

Only requests that name this machine are answered, so that no page of another site can ask anything (DNS rebinding), and
only JSON is taken, which such a page cannot send without being asked for leave first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Lock
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from hyperlora.data.federation import DataError
from hyperlora.reporting.run_files import RunFilesError
from hyperlora.storage.files import StorageError
from hyperlora.web.workbench import Asked, Workbench
from models.adapters.adapter import AdapterError
from models.backbones.backbone import BackboneError

HOST = "127.0.0.1"
MOST_BYTES = 16 * 2**20
SECONDS = 30
PAGES = {
    "/": ("hyperlora.web", "page.html", "text/html"),
    "/page.js": ("hyperlora.web", "page.js", "text/javascript"),
    "/page.css": ("hyperlora.web", "page.css", "text/css"),
    "/report.css": ("hyperlora.reporting", "page.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request is not answered; the message is one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves the page of a workbench on 127.0.0.1; one adapter is made at a time.

    Args:
        workbench: what requests are answered from.
        port: to listen on; 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, workbench: Workbench, port: int) -> None:
        super().__init__((HOST, port), PageHandler)
        self.workbench, self.busy = workbench, Lock()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PageServer
    timeout = SECONDS
    server_version, sys_version = "hyperlora", ""
    protocol_version = "HTTP/1.0"
    GETS: ClassVar[dict[str, Callable[[PageHandler, dict[str, str]], Any]]] = {
        "/api/federation": lambda self, _: self.server.workbench.federation(),
        "/api/sample": lambda self, query: self.server.workbench.sample(query.get("style", "")),
    }

    def do_GET(self) -> None:
        """Answer with a file of the page or with JSON."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Make an adapter."""
        self._answer(self._post)

    def log_message(self, *words: Any) -> None:
        """Keep requests off the terminal."""
        log.debug(*words)

    def _get(self) -> None:
        place = urlsplit(self.path)
        if place.path in PAGES:
            package, name, kind = PAGES[place.path]
            self._send(HTTPStatus.OK, files(package).joinpath(name).read_bytes(), f"{kind}; charset=utf-8")
        elif place.path in self.GETS:
            query = {name: values[0] for name, values in parse_qs(place.query).items()}
            self._send_json(HTTPStatus.OK, self.GETS[place.path](self, query))
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is nothing at {place.path[:80]}")

    def _post(self) -> None:
        if urlsplit(self.path).path != "/api/personalize":
            raise RefusedError(HTTPStatus.NOT_FOUND, "only /api/personalize takes anything")
        asked = self._asked()
        if not self.server.busy.acquire(blocking=False):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "another adapter is being made: try again in a moment")
        try:
            made = self.server.workbench.personalize(asked)
        finally:
            self.server.busy.release()
        self._send_json(HTTPStatus.OK, made)

    def _asked(self) -> Asked:
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if int(length) > MOST_BYTES:
            sentence = f"the images are larger than {MOST_BYTES >> 20} MiB in all: send fewer"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
        try:
            return Asked.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the request"
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{where} cannot be used: {first['msg']}") from error

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            self._check_host()
            work()
        except RefusedError as error:
            self._send_json(error.status, {"error": str(error)})
        except (AdapterError, BackboneError, DataError, RunFilesError, StorageError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            log.exception("a request failed")
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "this failed: the terminal says why"})

    def _check_host(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host", "") not in (f"{HOST}:{port}", f"localhost:{port}"):
            raise RefusedError(HTTPStatus.FORBIDDEN, f"this page is answered as {self.server.url} only")

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
