"""A picture from the web, for a server that strangers talk to: nothing inside the operator's network is reached."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urljoin, urlsplit

import httpcore

MAX_REDIRECTS = 3
MAX_ADDRESS = 2048  # characters of a URL
CONNECT_SECONDS = 5.0  # for each of a host's addresses

# Not marked as private by Python 3.11, and still no place where a stranger's picture lies: protocol assignments (one
# of them is Oracle's metadata service), the 6to4 relays, and Azure's host of every virtual machine.
_NOT_PUBLIC = [ipaddress.ip_network(block) for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")]
# Of IPv6 only the global unicast space is public, without documentation, Teredo and 6to4, which carry IPv4 inside.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC_6 = [ipaddress.ip_network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(ValueError):
    """The picture cannot be had; one line with the address and the remedy, and nothing about the network here."""


def is_public(address: str) -> bool:
    """Whether a numeric IP address belongs to the public internet.

    Private, loopback, link-local, shared (100.64.0.0/10), multicast, reserved and unspecified addresses do not; an IPv4
    address inside an IPv6 one (mapped, NAT64) counts as itself.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6:
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        else:
            return ip in _GLOBAL_UNICAST and ip.is_global and not any(ip in block for block in _NOT_PUBLIC_6)
    special = ip.is_multicast or ip.is_reserved or any(ip in block for block in _NOT_PUBLIC)
    return ip.is_global and not special


async def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a host. Raises OSError or UnicodeError where it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public hosts only.

    The check stands where the connection is made, after the one look-up whose result is then connected to: a name that
    resolves differently the next time (DNS rebinding) and a redirect meet it like the first address. TLS still verifies
    the certificate against the host's name.
    """

    def __init__(
        self,
        resolve: Callable[[str, int], Awaitable[list[str]]] = resolve,
        wire: httpcore.AsyncNetworkBackend | None = None,
    ):
        self._resolve, self._wire = resolve, wire or httpcore.AnyIOBackend()

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        # One message for both, so that nobody can ask which names exist in the network here.
        if not addresses or not all(map(is_public, addresses)):
            raise FetchError(
                f"{_short(host)} is not a host on the public internet; send the picture as a data: address."
            )
        for address in addresses:
            try:
                return await self._wire.connect_tcp(address, port, CONNECT_SECONDS, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, path, timeout=None, socket_options=None):
        raise FetchError("pictures are fetched over http and https only; send it as a data: address.")

    async def sleep(self, seconds: float) -> None:
        await self._wire.sleep(seconds)


async def fetch_picture(
    url: str, max_bytes: int, seconds: float = 20.0, network: httpcore.AsyncNetworkBackend | None = None
) -> bytes:
    """The body behind an http or https address, followed over at most `MAX_REDIRECTS` redirects.

    Args:
        max_bytes: of the body; more is not read.
        seconds: for everything, redirects included.
        network: how hosts are reached; `PublicNetwork` unless given.

    Raises:
        FetchError: another scheme, a host that is not public, no answer in time, not a 200, or more than `max_bytes`.
    """
    name = _short(url)
    try:
        async with (
            asyncio.timeout(seconds),
            httpcore.AsyncConnectionPool(network_backend=network or PublicNetwork()) as pool,
        ):
            for _ in range(1 + MAX_REDIRECTS):
                target = _target(url)
                # Unpacked, a few bytes could become gigabytes; pictures are compressed already.
                headers = {"Host": _authority(target), "Accept": "image/*", "Accept-Encoding": "identity"}
                async with pool.stream("GET", target, headers=headers) as response:
                    location = _header(response, b"location")
                    if response.status not in (301, 302, 303, 307, 308) or location is None:
                        return await _body(response, name, max_bytes)
                    url = urljoin(url, location)
    except TimeoutError as error:
        raise FetchError(f"{name} was not there within {seconds:g} s; send the picture as a data: address.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
        raise FetchError(f"{name} cannot be reached; check it, or send the picture as a data: address.") from error
    except ValueError as error:  # urljoin on a malformed redirect
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{name} redirects to a malformed address; give the picture's own address.") from error
    raise FetchError(f"{name} redirects more than {MAX_REDIRECTS} times; give the picture's own address.")


def _target(url: str) -> httpcore.URL:
    """The URL taken apart once: what is checked is what is connected to. Raises FetchError where it is malformed."""
    name = _short(url)
    if len(url) > MAX_ADDRESS:
        raise FetchError(f"{name} has {len(url)} characters, at most {MAX_ADDRESS} are taken; give a shorter address.")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise FetchError(f"{name} holds a space, a backslash or a control character; write it percent-encoded.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        host = host and (host if host.isascii() else host.encode("idna").decode())
    except ValueError as error:  # UnicodeError is one
        raise FetchError(f"{name} is not a well-formed address; check its host and port.") from error
    if parts.scheme not in ("http", "https"):
        raise FetchError(f"{name} is no http or https address; send the picture as a data: address.")
    if "@" in parts.netloc:
        raise FetchError(f"{name} holds a user name or password, which is not sent; give an address without.")
    if not host or port == 0:
        raise FetchError(f"{name} names no {'port' if host else 'host'}; check it.")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
    return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=path + query)


def _authority(target: httpcore.URL) -> str:
    host = target.host.decode()
    host = f"[{host}]" if ":" in host else host
    return host if target.port is None else f"{host}:{target.port}"


async def _body(response: httpcore.Response, name: str, max_bytes: int) -> bytes:
    if response.status != 200:
        raise FetchError(f"{name} answered with status {response.status}; check it, or send a data: address.")
    too_large = FetchError(f"{name} has more than {max_bytes:,} bytes; give a smaller picture.")
    declared = _header(response, b"content-length") or "0"
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    async for piece in response.aiter_stream():
        body += piece
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


def _short(text: str) -> str:
    text = repr(text)
    return text if len(text) <= 120 else f"{text[:80]}…{text[-30:]}"
