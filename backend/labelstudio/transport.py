"""Connections to where pictures are: to addresses that are allowed, and within the time limit."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from backend.addresses import Address, AllowedHosts
from backend.errors import ImageHostError, SettingsError

_PORTS = {"http": 80, "https": 443}
_KEEP_IDLE = 5.0
_RESOLVABLE = re.compile(r"[A-Za-z0-9_.-]{1,255}")


class PictureTransport(httpx.BaseTransport):
    """Sends requests to allowed addresses, and lets no answer take longer than its timeout.

    A name is resolved here, and connected to at the very addresses that were checked: one that
    stands for another address the next time (DNS rebinding) gains nothing. The Host header and
    TLS go by the name. What is `trusted` is not checked.

    The proxies of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) are used. What a
    host's name or address means here is checked before the proxy is asked; names that only the
    proxy can resolve are left to its own policy, where public hosts are allowed.

    The timeout that httpx gives for a read is that for the whole answer: name, connection,
    headers and body, however slowly they drip in.
    """

    def __init__(
        self, allowed: AllowedHosts, *, trusted: Callable[[httpx.URL], bool], connections: int
    ) -> None:
        self._allowed = allowed
        self._trusted = trusted
        self._lookups = ThreadPoolExecutor(connections, thread_name_prefix="lookup")
        tls = httpx.create_ssl_context()

        def pool(
            checked_by: AllowedHosts | None, proxy: httpcore.Proxy | None = None
        ) -> httpcore.ConnectionPool:
            return httpcore.ConnectionPool(
                ssl_context=tls,
                proxy=proxy,
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=_KEEP_IDLE,
                network_backend=_Network(checked_by, self._lookups),
            )

        self._to_trusted = pool(None)
        self._to_others = pool(allowed)
        self._by_proxy = {
            scheme: pool(None, proxy) for scheme, proxy in _environment_proxies().items()
        }

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; raises ImageHostError where it would go to what is not allowed."""
        seconds = request.extensions["timeout"]["read"]
        # httpcore hands the timeouts on as they are, so that `_Stream` can take points of time.
        deadline = time.monotonic() + seconds
        timeouts = dict.fromkeys(("connect", "read", "write"), deadline) | {"pool": seconds}
        with _as_httpx_errors():
            answer = self._pool(request.url, deadline).handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions | {"timeout": timeouts},
                )
            )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close all connections; a name that is still looked up is not waited for."""
        self._lookups.shutdown(wait=False, cancel_futures=True)
        for pool in (self._to_trusted, self._to_others, *self._by_proxy.values()):
            pool.close()

    def _pool(self, url: httpx.URL, deadline: float) -> httpcore.ConnectionPool:
        host = url.raw_host.decode("ascii")
        is_trusted = self._trusted(url)
        by_proxy = self._by_proxy.get(url.scheme)
        if by_proxy is None or proxy_bypass(url.netloc.decode("ascii")):
            return self._to_trusted if is_trusted else self._to_others
        if not is_trusted:
            self._check_ahead_of_proxy(host, url.port or _PORTS[url.scheme], deadline)
        return by_proxy

    def _check_ahead_of_proxy(self, host: str, port: int, deadline: float) -> None:
        try:
            addresses = _resolve(host, port, deadline, self._lookups)
        except OSError:
            if self._allowed.allows_unresolved(host, port):
                return
            raise _refused(host, port) from None
        # The proxy may take any of them.
        if not all(self._allowed.allows(host, port, address) for address in addresses):
            raise _refused(host, port)


class _Network(httpcore.NetworkBackend):
    """Connects to the allowed addresses of a name; each `timeout` is a point of monotonic time."""

    def __init__(self, allowed: AllowedHosts | None, lookups: ThreadPoolExecutor) -> None:
        """Take None as `allowed` for a network that may connect anywhere."""
        self._allowed = allowed
        self._lookups = lookups
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first allowed address that answers."""
        addresses = self._addresses(host, port, timeout)
        problem: Exception = httpcore.ConnectError("no address")
        for tried, address in enumerate(addresses):
            # The time is shared, so that an address that does not answer leaves some for the next.
            share = _remaining(timeout, httpcore.ConnectTimeout) / (len(addresses) - tried)
            try:
                return _Stream(
                    self._sockets.connect_tcp(
                        str(address), port, share, local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    def _addresses(self, host: str, port: int, deadline: float | None) -> list[Address]:
        try:
            addresses = _resolve(host, port, deadline, self._lookups)
        except OSError as error:
            known = self._allowed is None or self._allowed.names_host(host, port)
            if known or error.errno == socket.EAI_AGAIN:
                raise httpcore.ConnectError(str(error)) from error
            # The same answer as for a private name: which of those exist is nobody's business.
            raise _refused(host, port) from None
        if self._allowed is None:
            return addresses
        allowed = [each for each in addresses if self._allowed.allows(host, port, each)]
        if not allowed:
            raise _refused(host, port)
        return allowed


class _Stream(httpcore.NetworkStream):
    """A connection whose `timeout` is a point of monotonic time, not a number of seconds."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _remaining(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        seconds = _remaining(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx_errors():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


def _resolve(
    host: str, port: int, deadline: float | None, lookups: ThreadPoolExecutor
) -> list[Address]:
    """Return what a name stands for; raises OSError where that is not known."""
    try:
        return [ip_address(host)]
    except ValueError:
        pass
    if not _RESOLVABLE.fullmatch(host):
        raise socket.gaierror(socket.EAI_NONAME, "not a host name")
    # As bytes: a str would go through Python's IDNA, which raises on long and empty labels. In a
    # thread: a lookup has no time limit of its own.
    lookup = lookups.submit(socket.getaddrinfo, host.encode("ascii"), port, type=socket.SOCK_STREAM)
    if not wait([lookup], _remaining(deadline, httpcore.ConnectTimeout)).done:
        lookup.cancel()
        raise httpcore.ConnectTimeout(f"{host} is still looked up")
    found = [ip_address(place[0]) for *_, place in lookup.result()]
    return list(dict.fromkeys(found))


def _remaining(deadline: float | None, late: type[Exception]) -> float:
    # One that is missing counts as past: a connection without an end could hang for ever.
    seconds = 0.0 if deadline is None else deadline - time.monotonic()
    if seconds <= 0:
        raise late("the time is up")
    return seconds


def _refused(host: str, port: int) -> ImageHostError:
    return ImageHostError(
        f"IMAGE_HOSTS allows no picture from {host}:{port}, or there is no such host; "
        "where its pictures are wanted, add it to IMAGE_HOSTS"
    )


def _environment_proxies() -> dict[str, httpcore.Proxy]:
    addresses = getproxies()
    proxies = {}
    for scheme in _PORTS:
        address = addresses.get(scheme) or addresses.get("all")
        if address:
            if urlsplit(address).scheme.startswith("socks"):
                raise SettingsError(
                    "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY name a SOCKS proxy: pictures are fetched "
                    "through http:// and https:// proxies alone"
                )
            proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
            proxies[scheme] = httpcore.Proxy(
                httpcore.URL(
                    scheme=proxy.url.raw_scheme,
                    host=proxy.url.raw_host,
                    port=proxy.url.port,
                    target=proxy.url.raw_path,
                ),
                auth=proxy.raw_auth,
                headers=proxy.headers.raw,
            )
    return proxies


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException(str(error)) from error
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise httpx.TransportError(str(error)) from error
