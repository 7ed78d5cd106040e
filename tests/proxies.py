"""A forward proxy, a server that adds TLS, and certificates: what stands between a lake and its store in a company."""

import base64
import multiprocessing
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

NAME = "store.invalid"
"""A host that no resolver knows: only the proxy finds it, so nothing that goes round the proxy arrives."""


class _Listening:
    """A context: a process that accepts connections on a port of loopback, a thread for each.

    A process, as deltalake keeps the interpreter to itself during some of its requests.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])

    def __enter__(self) -> Self:
        self._process = multiprocessing.get_context("spawn").Process(target=_accept, args=(self, self._server))
        self._process.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.join()
        self._server.close()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_server", "_process")}

    def guarded(self, connection: socket.socket) -> None:
        try:
            self.serve(connection)
        except OSError:
            pass
        finally:
            connection.close()

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


def _accept(listening: _Listening, server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=listening.guarded, args=(connection,), daemon=True).start()


class Proxy(_Listening):
    """An HTTP proxy (forwarding and CONNECT) that leads every name to loopback, and remembers who asked for what."""

    def __init__(self, folder: Path, login: str | None = None) -> None:
        super().__init__()
        self._log = folder / "requests"
        self._login = login and f"Basic {base64.b64encode(login.encode()).decode()}"

    @property
    def requests(self) -> list[str]:
        """Of each connection the first request."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(65536)
            if not received:
                return
            head += received
        lines = head.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if self._login and headers.get("proxy-authorization") != self._login:
            refusal = "407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=proxy\r\nContent-Length: 0"
            connection.sendall(f"HTTP/1.1 {refusal}\r\n\r\n".encode())
            return
        verb, target, _ = lines[0].split(" ")
        with self._log.open("a") as log:
            log.write(f"{headers.get('user-agent', '')} {lines[0]}\n")
        port = int(target.rsplit(":", 1)[1]) if verb == "CONNECT" else urlsplit(target).port or 80
        with socket.create_connection(("127.0.0.1", port)) as outer:
            if verb == "CONNECT":
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                outer.sendall(head)
            _relay(connection, outer)


class Tls(_Listening):
    """TLS in front of a port."""

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        super().__init__()
        self._target, self._chain = port, (certificate, key)

    def serve(self, connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._chain)
        with (
            context.wrap_socket(connection, server_side=True) as inner,
            socket.create_connection(("127.0.0.1", self._target)) as outer,
        ):
            _relay(inner, outer)


def _relay(inner: socket.socket, outer: socket.socket) -> None:
    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
    back.start()
    pump(inner, outer)
    back.join()


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A private authority, and a certificate of its own for `NAME` and loopback with its key; made by openssl."""
    authority, authority_key = folder / "authority.pem", folder / "authority.key"
    certificate, key, request = folder / "store.pem", folder / "store.key", folder / "store.csr"
    extensions = folder / "extensions"
    extensions.write_text(f"subjectAltName=DNS:{NAME},DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    for command in (
        [*new, "-x509", "-subj", "/CN=private", "-keyout", authority_key, "-out", authority],
        [*new, "-subj", f"/CN={NAME}", "-keyout", key, "-out", request],
        ["openssl", "x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial",
         "-days", "2", "-extfile", extensions, "-out", certificate],
    ):  # fmt: skip
        subprocess.run([os.fspath(part) for part in command], check=True, capture_output=True)
    return authority, certificate, key
