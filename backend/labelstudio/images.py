"""URL to bytes: pictures from Label Studio, cloud storage and the web."""

from __future__ import annotations

import base64
import binascii
import logging
import posixpath
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from io import BytesIO
from string import whitespace
from types import TracebackType
from typing import TypeVar
from urllib.parse import parse_qs, unquote_to_bytes

import httpx
import tenacity

from backend.addresses import AllowedHosts
from backend.errors import (
    ImageError,
    ImageFault,
    ImageHostError,
    LabelStudioError,
    SettingsError,
)
from backend.labelstudio.decoding import ImageLimits
from backend.labelstudio.transport import PictureTransport
from backend.processes import give_way

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 5
# Each takes some seventy bytes while it is decoded.
_MOST_ESCAPED = 1_000_000
_REMEMBERED = 100_000
_LONGEST_REMEMBERED = 2_000
_FIRST_RETRY_AFTER = 0.2

Used = TypeVar("Used")

_CLOUD_SCHEMES = frozenset({"s3", "gs", "azure-blob", "azure-spi", "azure_spi"})
_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):")
_STORAGE_PROXY = re.compile(r"/tasks/\d+/(?:presign|resolve)/?")
# A small file of one of these can stand for any number of bytes.
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})
# A signature changes whenever an URL is signed anew; the picture stays the same.
_SIGNATURE = re.compile(r"(?i)(x-amz-|x-goog-)|(sig|signature)(=|$)")


class _TemporaryError(ImageError):
    """Another attempt may succeed at once."""

    def __init__(self, message: str, fault: ImageFault) -> None:
        super().__init__(message, permanent=False, fault=fault)


class ImageFetcher:
    """Fetches the pictures that task data names, from Label Studio, cloud storage or the web.

    Credentials go to Label Studio's own origin (scheme, host and port) and nowhere else. Task data
    may name any address; apart from that origin, only what is `allowed` is connected to.
    Safe to use from several threads; close it, or use it as a context manager.
    """

    def __init__(
        self,
        *,
        label_studio_url: str | None,
        authorization: Callable[[], Mapping[str, str]] | None,
        allowed: AllowedHosts,
        limits: ImageLimits,
        connections: int,
    ) -> None:
        """Take `authorization` as what gives the headers for each request to Label Studio."""
        self._label_studio = (
            _without_credentials(httpx.URL(label_studio_url.rstrip("/")))
            if label_studio_url
            else None
        )
        self._authorization = authorization
        self._limits = limits
        # Each refresh asks for the same addresses again, and taking one apart costs as much as
        # predicting it.
        self._locate = lru_cache(maxsize=_REMEMBERED)(self._locate_uncached)
        self._threads = ThreadPoolExecutor(connections, "image", give_way)
        self._client = httpx.Client(
            headers={"User-Agent": "label-studio-clip-backend", "Accept-Encoding": "identity"},
            transport=PictureTransport(
                allowed, trusted=self._is_label_studio, connections=connections
            ),
            # Label Studio answers a token with a session cookie, and a cookie knows no port: kept,
            # it would go to every other server on Label Studio's host.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def __enter__(self) -> ImageFetcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and close all connections."""
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def locate(self, source: str) -> str:
        """Name the picture: equal for all spellings of one place, and free of credentials.

        Web addresses and paths on Label Studio become absolute URLs; cloud storage and data URIs
        stay as they are, also where Label Studio has put its proxy before them.

        Raises ImageError for a source that is not supported.
        """
        source = _cleaned(source)
        if _scheme(source) in _CLOUD_SCHEMES | {"data"}:
            return source
        if len(source) > _LONGEST_REMEMBERED:
            return self._locate_uncached(source)
        return self._locate(source)

    def _locate_uncached(self, source: str) -> str:
        url = self._absolute(source)
        if self._is_label_studio(url) and _STORAGE_PROXY.search(url.path):
            stored = _decoded_file_uri(url)
            if stored is not None:
                return stored
        query = b"&".join(
            part for part in url.query.split(b"&") if not _SIGNATURE.match(part.decode("latin-1"))
        )
        return str(_without_credentials(url).copy_with(fragment=None, query=query or None))

    def fetch(self, source: str, task_id: int | None) -> bytes:
        """Fetch one picture's bytes; `task_id` is needed for cloud storage alone.

        The time limit holds for all attempts, redirects and the reading of the answer together.

        Raises ImageError; `permanent` is false where the picture may be had later. ImageHostError
        where IMAGE_HOSTS does not allow its host, or one that it redirects to.
        """
        source = _cleaned(source)
        if _scheme(source) == "data":
            return self._from_data_uri(source)
        url = self._target(source, task_id)
        deadline = time.monotonic() + self._limits.timeout
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._limits.attempts)
            | tenacity.stop_before_delay(self._limits.timeout),
            wait=tenacity.wait_exponential(multiplier=_FIRST_RETRY_AFTER),
            retry=tenacity.retry_if_exception_type(_TemporaryError),
            reraise=True,
        )
        try:
            return retrying(self._download, url, deadline)
        except ImageHostError as error:
            raise ImageHostError(f"{_shown(source)}: {error}") from error
        except ImageError as error:
            raise ImageError(
                f"{_shown(source)}: {error}", permanent=error.permanent, fault=error.fault
            ) from error

    def fetch_all(
        self,
        wanted: Iterable[tuple[str, int | None]],
        use: Callable[[bytes], Used],
        *,
        ahead: int,
    ) -> Iterator[Used | ImageError]:
        """Fetch (source, task id) pairs in parallel and yield what `use` makes of them, in order.

        `use` is called in the threads that fetch, so that pictures can be decoded while the caller
        does other work. No more than `ahead` are held or on their way at a time.
        """
        pending: deque[Future[Used | ImageError]] = deque()
        try:
            for source, task_id in wanted:
                pending.append(self._threads.submit(self._outcome, source, task_id, use))
                if len(pending) == ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _outcome(
        self, source: str, task_id: int | None, use: Callable[[bytes], Used]
    ) -> Used | ImageError:
        try:
            return use(self.fetch(source, task_id))
        except ImageError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a picture does, it costs its own task
            name = type(error).__name__
            log.warning("a picture fails in a way that nothing else is known to: %s", name)
            return ImageError(f"the picture cannot be had or read ({name})")

    def _target(self, source: str, task_id: int | None) -> httpx.URL:
        is_cloud = _scheme(source) in _CLOUD_SCHEMES
        if is_cloud and task_id is None:
            raise ImageError(
                f"{_shown(source)}: cloud storage is read through Label Studio, by the id of a "
                "task, and this task has none; import it into Label Studio first",
                fault=ImageFault.SOURCE,
            )
        if (is_cloud or source.startswith("/")) and self._authorization is None:
            raise _not_configured(source)
        if is_cloud:
            uri = base64.urlsafe_b64encode(source.encode()).decode()
            return self._absolute(f"/tasks/{task_id}/presign/?fileuri={uri}")
        return self._absolute(source)

    def _absolute(self, source: str) -> httpx.URL:
        is_path = source.startswith("/") and not source.startswith("//")
        if not is_path and _scheme(source) not in {"http", "https"}:
            raise ImageError(
                f"{_shown(source)}: not a supported image source; task data can name http:// and "
                "https:// URLs, paths on Label Studio such as /data/upload/…, s3://, gs:// and "
                "azure-blob:// URIs, and data: URIs",
                fault=ImageFault.SOURCE,
            )
        if is_path and self._label_studio is None:
            raise _not_configured(source)
        try:
            url = self._on_label_studio(source) if is_path else httpx.URL(source)
            is_web_address = _is_web_address(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise _not_a_url(source) from error
        if not is_web_address:
            raise _not_a_url(source)
        return url

    def _on_label_studio(self, path: str) -> httpx.URL:
        base = str(self._label_studio).rstrip("/")
        prefix = httpx.URL(base).path.rstrip("/")
        # A Label Studio under a sub-path writes it into the paths of some uploads, not of all.
        if prefix and path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
        return httpx.URL(base + path)

    def _is_label_studio(self, url: httpx.URL) -> bool:
        return self._label_studio is not None and _origin(url) == _origin(self._label_studio)

    def _is_api(self, url: httpx.URL) -> bool:
        # With our token, whoever writes task data could have Label Studio export a project or give
        # out a task. Paths are read decoded, and by some web servers without doubled slashes.
        prefix = self._label_studio.path.rstrip("/") if self._label_studio else ""
        path = posixpath.normpath(f"/{url.path.lstrip('/')}").removeprefix(prefix)
        return f"{path}/".startswith("/api/")

    def _download(self, url: httpx.URL, deadline: float) -> bytes:
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                headers: Mapping[str, str] = {}
                if self._is_label_studio(url):
                    if self._is_api(url):
                        raise ImageError(
                            "Label Studio's API has no pictures", fault=ImageFault.SOURCE
                        )
                    url = _without_credentials(url)
                    headers = self._authorization() if self._authorization else {}
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise self._timed_out(url)
                with self._client.stream("GET", url, headers=headers, timeout=remaining) as answer:
                    if not answer.has_redirect_location:
                        self._check_status(answer)
                        return self._read(answer)
                    url = url.join(answer.headers["location"])
                    if not _is_web_address(url):
                        raise ImageError(
                            "redirected to something that is not a web address",
                            fault=ImageFault.ANSWER,
                        )
        except httpx.TimeoutException as error:
            raise self._timed_out(url) from error
        except httpx.TransportError as error:
            raise _TemporaryError(
                f"{url.host} cannot be reached: {error}", ImageFault.UNREACHABLE
            ) from error
        except UnicodeError as error:
            raise ImageError(
                "redirected to a host that is no name", fault=ImageFault.ANSWER
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ImageError(
                f"{url.host} sent an answer that cannot be read", fault=ImageFault.ANSWER
            ) from error
        except (LabelStudioError, SettingsError) as error:
            raise ImageError(str(error), permanent=False, fault=ImageFault.UNREACHABLE) from error
        raise ImageError(f"redirected more than {_MAX_REDIRECTS} times", fault=ImageFault.ANSWER)

    def _check_status(self, answer: httpx.Response) -> None:
        status = answer.status_code
        host = answer.url.host
        if status == httpx.codes.OK:
            return
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise _TemporaryError(f"{host} answered {status}", ImageFault.ANSWER)
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            advice = (
                "check LABEL_STUDIO_API_KEY and that its user may see the project"
                if self._is_label_studio(answer.url)
                else "the picture is not public, or its signature has run out"
            )
            raise ImageError(
                f"{host} answered {status}; {advice}", permanent=False, fault=ImageFault.REFUSED
            )
        if status == httpx.codes.NOT_FOUND and self._is_label_studio(answer.url):
            raise ImageError(
                f"{host} answered 404; it has no such file, or its project no storage for it",
                fault=ImageFault.MISSING,
            )
        gone = status in {httpx.codes.NOT_FOUND, httpx.codes.GONE}
        raise ImageError(
            f"{host} answered {status}", fault=ImageFault.MISSING if gone else ImageFault.ANSWER
        )

    def _read(self, answer: httpx.Response) -> bytes:
        encodings = answer.headers.get("content-encoding", "").lower().replace(" ", "").split(",")
        if not _COMPRESSED.isdisjoint(encodings):
            raise ImageError(
                f"{answer.url.host} sent it compressed, though asked not to",
                fault=ImageFault.ANSWER,
            )
        declared = answer.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limits.max_bytes:
            raise self._too_large()
        body = BytesIO()
        for chunk in answer.iter_raw():
            body.write(chunk)
            if body.tell() > self._limits.max_bytes:
                raise self._too_large()
        return body.getvalue()

    def _from_data_uri(self, source: str) -> bytes:
        header, comma, payload = source.partition(",")
        if not comma:
            raise ImageError("data: URI without a comma before its data")
        is_base64 = header.lower().endswith(";base64")
        # Base64 has four characters for three bytes, percent-encoding three for one.
        if len(payload) > (2 if is_base64 else 3) * self._limits.max_bytes:
            raise self._too_large()
        if payload.count("%") > _MOST_ESCAPED:
            raise ImageError(f"data: URI with more than {_MOST_ESCAPED} escaped bytes; use base64")
        data = unquote_to_bytes(payload)
        if is_base64:
            compact = data.translate(None, whitespace.encode()).rstrip(b"=")
            try:
                data = base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
            except binascii.Error as error:
                raise ImageError("data: URI with broken base64") from error
        if len(data) > self._limits.max_bytes:
            raise self._too_large()
        return data

    def _too_large(self) -> ImageError:
        return ImageError(
            f"larger than the limit of {self._limits.max_bytes} bytes", fault=ImageFault.TOO_LARGE
        )

    def _timed_out(self, url: httpx.URL) -> _TemporaryError:
        return _TemporaryError(
            f"{url.host} did not send the picture within {self._limits.timeout:g} s",
            ImageFault.TIMEOUT,
        )


def _cleaned(source: str) -> str:
    try:
        source.encode()
    except UnicodeEncodeError:
        # JSON can smuggle in half a surrogate pair, which no URL can be made of.
        raise ImageError(
            "the image source has characters that cannot be encoded", fault=ImageFault.SOURCE
        ) from None
    return source.strip()


def _scheme(source: str) -> str:
    match = _SCHEME.match(source)
    return match.group(1).lower() if match else ""


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_web_address(url: httpx.URL) -> bool:
    # A port past the last one would be connected to as another, or not be a number for C at all.
    has_port = url.port is None or 0 < url.port < 65_536
    return url.scheme in {"http", "https"} and bool(url.host) and has_port


def _without_credentials(url: httpx.URL) -> httpx.URL:
    return url.copy_with(userinfo=b"")


def _decoded_file_uri(url: httpx.URL) -> str | None:
    encoded = parse_qs(url.query.decode("latin-1")).get("fileuri", [""])[0]
    try:
        uri = base64.urlsafe_b64decode(encoded).decode()
    except ValueError:
        return None
    return uri if _scheme(uri) in _CLOUD_SCHEMES else None


def _not_a_url(source: str) -> ImageError:
    return ImageError(f"{_shown(source)}: not a valid URL", fault=ImageFault.SOURCE)


def _not_configured(source: str) -> ImageError:
    return ImageError(
        f"{_shown(source)}: this picture is read through Label Studio; "
        "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY",
        fault=ImageFault.SOURCE,
    )


def _shown(source: str) -> str:
    """Name a source in a message, without userinfo, signatures and whole data URIs."""
    if _scheme(source) == "data":
        return "data: URI"
    # Of Label Studio's own paths this one has the file's name in its query.
    if source.startswith("/data/local-files/"):
        name = parse_qs(source.partition("?")[2]).get("d", [""])[0]
        return f"/data/local-files/?d={name}"[:200]
    place = source.partition("?")[0].partition("#")[0]
    if "@" in place and (not place.startswith("/") or place.startswith(("//", "/\\"))):
        # Mistyped in whatever way, a password ends there at the latest.
        scheme = _scheme(source)
        place = (f"{scheme}://" if scheme else "//") + place.rpartition("@")[2]
    before, slashes, rest = place.partition("//")
    host, slash, path = rest.partition("/")
    name, colon, port = host.rpartition(":")
    if colon and "]" not in port and not port.isdecimal():
        host = name  # no port, but the beginning of a password with a slash in it
    return f"{before}{slashes}{host}{slash}{path}"[:200]
