"""Pictures from URLs of clients, which may try to reach what only this machine can: every address is checked, then used."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from lvlm_guard.errors import InputError, quote

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
OK = 200
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Return whether an address is one of the open internet, also where it carries another one inside."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64 or address.teredo is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


@dataclass(frozen=True)
class RemotePictures:
    """Fetches pictures.

    Args:
        largest: Bytes of a picture, at most.
        seconds: For one picture, redirects included.
        redirects: How many are followed.
        allows: Whether an address may be connected to.
        ports: Ports that URLs may name.
    """

    largest: int = 20 * 2**20
    seconds: float = 10.0
    redirects: int = 3
    allows: Callable[[Address], bool] = is_public
    ports: tuple[int, ...] = (80, 443)

    def fetch(self, url: str) -> bytes:
        """Return the content at a URL.

        Raises:
            InputError: It leads to an address that is not public, or cannot be fetched within the limits.
        """
        deadline = time.monotonic() + self.seconds
        for _ in range(self.redirects + 1):
            try:
                content, target = self._request(url, deadline)
            except (OSError, http.client.HTTPException, UnicodeError):
                raise InputError(f"The picture at {quote(url)} cannot be fetched.") from None
            if target is None:
                return content
            url = urllib.parse.urljoin(url, target)
        raise InputError(f"The picture's URL leads through more than {self.redirects} redirects.")

    def _request(self, url: str, deadline: float) -> tuple[bytes, str | None]:
        """Return the content at a URL, or where it redirects to."""
        parts, host, port = self._split(url)
        connection = self._connect(parts.scheme, host, port, deadline)
        timer = threading.Timer(_left(deadline), _hang_up, [connection.sock])
        timer.start()
        try:
            _greet(connection.sock)
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", path, headers={"User-Agent": "lvlm-guard", "Accept": "image/*"})
            response = connection.getresponse()
            if response.status in REDIRECTS and response.getheader("Location"):
                return b"", response.getheader("Location")
            if response.status != OK:
                raise InputError(f"The picture at {quote(url)} cannot be fetched: status {response.status}.")
            content = self._read(response, url)
            _left(deadline)
            return content, None
        finally:
            timer.cancel()
            connection.close()

    def _split(self, url: str) -> tuple[urllib.parse.SplitResult, str, int]:
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise InputError(f"{quote(url)} is no URL of a picture; it begins with http or https.") from None
        if not parts.hostname or parts.username is not None or port not in self.ports:
            raise InputError(f"The picture's URL {quote(url)} has no host, a user, or a port that is not allowed.")
        return parts, parts.hostname, port

    def _connect(self, scheme: str, host: str, port: int, deadline: float) -> http.client.HTTPConnection:
        """Return a connection to an address of the host that was checked: its name is not looked up again."""
        connected = socket.create_connection((str(self._resolve(host, port)), port), timeout=_left(deadline))
        if scheme == "https":
            connected = ssl.create_default_context().wrap_socket(
                connected, server_hostname=host, do_handshake_on_connect=False
            )
        connection = http.client.HTTPConnection(host, port)
        connection.sock = connected
        return connection

    def _resolve(self, host: str, port: int) -> Address:
        """Return an address of a host; all of its addresses have to be allowed."""
        found_addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found_addresses]
        if not addresses or not all(map(self.allows, addresses)):
            raise InputError(
                "The picture's URL leads to an address that is not public, which this server does not fetch."
            )
        return addresses[0]

    def _read(self, response: http.client.HTTPResponse, url: str) -> bytes:
        content = response.read(self.largest + 1)
        if len(content) > self.largest:
            raise InputError(f"The picture at {quote(url)} has more than {self.largest} bytes.")
        return content


def _greet(connected: socket.socket) -> None:
    """Shake hands where the connection is encrypted."""
    if isinstance(connected, ssl.SSLSocket):
        connected.do_handshake()


def _hang_up(connected: socket.socket) -> None:
    """End a connection whose time is over, whatever is being read from it, byte by byte."""
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    """Return the seconds that are left."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
