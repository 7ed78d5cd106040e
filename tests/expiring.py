"""A store whose clients' credentials expire at some request."""

import http.client
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
_HOP = ("connection", "transfer-encoding", "keep-alive", "expect")


class Expiring(ThreadingHTTPServer):
    """A context: a server on loopback that passes requests on to a store until one fits `last`, an expression.

    That one and all after it are answered with ExpiredToken. `expired_at` is when, by `time.monotonic`.
    """

    daemon_threads = True

    def __init__(self, store: str, last: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store, self.last = urlsplit(store).netloc, last
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.expired_at: float | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Expiring

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.expired_at is None and re.match(self.server.last, f"{self.command} {self.path}"):
            self.server.expired_at = time.monotonic()
        if self.server.expired_at is not None:
            self.answer(400, [("content-type", "application/xml")], _EXPIRED)
        else:
            self.pass_on(body)

    def pass_on(self, body: bytes) -> None:
        store = http.client.HTTPConnection(self.server.store, timeout=60)
        # The name of the host is part of what clients sign.
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                store.putheader(name, value)
        store.endheaders(body)
        found = store.getresponse()
        self.answer(found.status, found.getheaders(), found.read())
        store.close()

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        for name, value in headers:
            if name.lower() not in _HOP and (is_head or name.lower() != "content-length"):
                self.send_header(name, value)
        if not is_head:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = serve

    def log_message(self, *_: object) -> None:
        pass
