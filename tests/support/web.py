"""A web server for MTA-STS policies, in threads of the test's process."""

from __future__ import annotations

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def policy(*mx: str, mode: str = "enforce", max_age: int = 86_400) -> bytes:
    """The text of a policy."""
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {name}" for name in mx), f"max_age: {max_age}", ""]
    return "\r\n".join(lines).encode()


class PolicyServer:
    """Answers every request with `body`, or as the other fields say; `hosts` are the names that were asked for."""

    def __init__(self, certificate: str, body: bytes = b"") -> None:
        self.body, self.status, self.kind, self.delay = body, 200, "text/plain", 0.0
        self.location = ""
        self.hosts: list[str] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self._server = _Server(("127.0.0.3", 0), _handler(self))
        self._server.context = self.context
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> PolicyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests want."""


def _handler(told: PolicyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told.hosts.append(self.headers["Host"])
            time.sleep(told.delay)
            self.send_response(told.status if self.path == "/.well-known/mta-sts.txt" else 404)
            self.send_header("Content-Type", told.kind)
            self.send_header("Content-Length", str(len(told.body)))
            if told.location:
                self.send_header("Location", told.location)
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
