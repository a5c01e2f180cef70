"""REDIS_URL to a client: the URLs of redis-py, and one for Sentinel, of which redis-py has none.

`redis+sentinel://user:password@host:26379,host:26379/service/0?sentinel_password=...` asks the
Sentinels for the service's master, again after each failover; `rediss+sentinel://` speaks TLS with
both. The query's other options are redis-py's own, as in `redis://` URLs.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from backend.errors import QueueError

_PORT = 26379

# Seconds to connect, to answer, and after which an idle connection is tried before it is used.
# redis-py's ten attempts would outlast the time that a worker has to stop.
_OPTIONS = {
    "socket_connect_timeout": 5,
    "socket_timeout": 5,
    "health_check_interval": 30,
    "retry": Retry(ExponentialWithJitterBackoff(base=0.1, cap=1), retries=1),
}


def connect(url: str) -> redis.Redis:
    """Return a client that connects when it is used. Raises QueueError for what is no URL."""
    try:
        if urlsplit(url).scheme in ("redis+sentinel", "rediss+sentinel"):
            return _master_of(url)
        return redis.Redis.from_url(url, **_OPTIONS)
    except ValueError:
        raise QueueError(
            "REDIS_URL: must be a URL such as redis://localhost:6379/0, rediss://host:6379/0, "
            "unix:///path or redis+sentinel://host:26379,host:26379/service/0"
        ) from None


def check(client: redis.Redis) -> None:
    """Raise QueueError where Redis does not answer, or is a cluster."""
    try:
        client.ping()
        mode = client.info("cluster")
    except redis.RedisError as error:
        raise away(error) from None
    if isinstance(mode, dict) and mode.get("cluster_enabled"):
        raise QueueError(
            "REDIS_URL: is a Redis Cluster, which RQ cannot use, since it changes several keys at "
            "once: use a single Redis, or Sentinel (redis+sentinel://host:26379/service/0)"
        )


def away(error: redis.RedisError) -> QueueError:
    """Return what to raise when Redis does not answer."""
    return QueueError(
        f"Redis does not answer ({type(error).__name__}): start it with "
        "`clip-backend up`, or check REDIS_URL"
    )


def _master_of(url: str) -> redis.Redis:
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.lstrip("/").partition("/")
    sentinels = [_address(host) for host in hosts.split(",")]
    if not service:
        raise ValueError("no service is named")
    # redis-py knows the options and their types.
    scheme = parts.scheme.removesuffix("+sentinel")
    as_usual = f"{scheme}://{login}{'@' if login else ''}host/{database}?{parts.query}"
    options = parse_url(as_usual)  # type: ignore[no-untyped-call]
    options.pop("host")
    options.pop("connection_class", None)
    options = _OPTIONS | options | {"ssl": scheme == "rediss"}
    sentinel_options: dict[str, Any] = {
        name.removeprefix("sentinel_"): options.pop(name)
        for name in ("sentinel_username", "sentinel_password")
        if name in options
    }
    sentinel_options |= {
        name: value for name, value in options.items() if name.startswith("ssl") or name in _OPTIONS
    }
    sentinel = Sentinel(sentinels, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    master: redis.Redis = sentinel.master_for(service, **options)  # type: ignore[no-untyped-call]
    return master


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("no host is named")
    return parts.hostname, parts.port or _PORT
