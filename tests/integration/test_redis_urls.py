"""Every kind of REDIS_URL: TCP, TLS, a socket, Sentinel; and what is refused."""

from __future__ import annotations

import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from backend.errors import QueueError
from backend.jobs.queue import JobQueue
from backend.jobs.services import Services
from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import (
    data_uri,
    free_port,
    redis_program,
    wait_until,
    work_until,
)
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

REQUEST = Request(PROJECT, Kind.TRAIN)

# Starts a Redis with these options and returns its process.
StartRedis = Callable[..., "subprocess.Popen[bytes]"]


def answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    with ExitStack() as stack:

        def start(port: int, *options: str, config: Path | None = None) -> subprocess.Popen[bytes]:
            folder = tmp_path / str(port)
            folder.mkdir()
            command = [redis_program(), *([str(config)] if config else [])]
            command += ["--port", str(port), "--dir", str(folder), "--save", "", *options]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)

            def is_up() -> bool:
                assert process.poll() is None, f"Redis refuses {command}"
                return answers(port)

            wait_until(is_up, f"Redis answers on port {port}")
            return process

        yield start


class TLSProxy(socketserver.ThreadingTCPServer):
    """TLS before a Redis: not every build of the server speaks it itself."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, context: ssl.SSLContext, target: Path) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    suppress(OSError),
                    context.wrap_socket(self.request, server_side=True) as outside,
                    socket.socket(socket.AF_UNIX) as inside,
                ):
                    inside.connect(str(target))
                    back = threading.Thread(target=pump, args=(inside, outside), daemon=True)
                    back.start()
                    pump(outside, inside)

        super().__init__(("127.0.0.1", 0), Handler)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def tls_redis(redis_url: str, redis_socket: Path, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A Redis behind TLS: its port and the certificate that proves it."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    openssl = shutil.which("openssl")
    assert openssl is not None, "this test makes a certificate with openssl: install it"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with TLSProxy(context, redis_socket) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        yield proxy.server_address[1], certificate
        proxy.shutdown()
        thread.join()


def test_a_queue_behind_tls_is_used(tls_redis: tuple[int, Path]) -> None:
    port, certificate = tls_redis
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"

    with closing(JobQueue(url)) as queue:
        queue.check()
        queue.enqueue(REQUEST)

        assert queue.lengths()["train"] == 1


def test_a_certificate_that_proves_nothing_is_refused(tls_redis: tuple[int, Path]) -> None:
    port, _ = tls_redis

    with (
        closing(JobQueue(f"rediss://localhost:{port}/0")) as queue,
        pytest.raises(QueueError, match="check REDIS_URL"),
    ):
        queue.check()


def test_tcp_with_a_password_and_another_database(start_redis: StartRedis) -> None:
    port = free_port()
    start_redis(port)
    with redis.Redis(port=port) as client:
        client.config_set("requirepass", "pass/word")

    with closing(JobQueue(f"redis://:pass%2Fword@127.0.0.1:{port}/3")) as queue:
        queue.check()
        queue.enqueue(REQUEST)

        with redis.Redis(port=port, password="pass/word", db=3) as client:
            assert client.dbsize() > 0


def test_a_cluster_is_refused_with_the_reason(start_redis: StartRedis) -> None:
    port = free_port()
    if port > 55535:  # A cluster's second port lies 10,000 higher.
        port -= 10_000
    start_redis(port, "--cluster-enabled", "yes")

    with (
        closing(JobQueue(f"redis://127.0.0.1:{port}/0")) as queue,
        pytest.raises(QueueError, match="is a Redis Cluster, which RQ cannot use"),
    ):
        queue.check()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "localhost:6379",
        "redis://localhost:port",
        "redis+sentinel://localhost:26379",
        "redis+sentinel:///service",
        "redis+sentinel://localhost:port/service",
    ],
)
def test_what_is_no_url_of_a_redis_is_refused_with_examples(url: str) -> None:
    with pytest.raises(QueueError, match="REDIS_URL: must be a URL such as"):
        JobQueue(url)


class Replicated:
    """A master, a replica, and a Sentinel that puts the replica in its place."""

    def __init__(self, start_redis: StartRedis, folder: Path) -> None:
        ports = [free_port() for _ in range(3)]
        self.master = start_redis(ports[0], "--requirepass", "secret", "--masterauth", "secret")
        start_redis(
            ports[1],
            *("--replicaof", "127.0.0.1", str(ports[0])),
            *("--requirepass", "secret", "--masterauth", "secret"),
            *("--repl-diskless-sync-delay", "0"),
        )
        config = folder / "sentinel.conf"
        config.write_text(
            f"sentinel monitor jobs 127.0.0.1 {ports[0]} 1\n"
            "sentinel auth-pass jobs secret\n"
            "sentinel down-after-milliseconds jobs 1000\n"
            "sentinel failover-timeout jobs 2000\n"
        )
        start_redis(ports[2], "--sentinel", config=config)
        # Of two Sentinels one is away.
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{ports[2]}"
        self.url = f"redis+sentinel://:secret@{hosts}/jobs/1"
        with redis.Redis(port=ports[2]) as sentinel:
            wait_until(lambda: is_replicated(sentinel), "the Sentinel knows a replica in step")


def is_replicated(sentinel: Any) -> bool:
    replicas = sentinel.sentinel_slaves("jobs")
    return any(
        not replica["is_sdown"] and replica["master-link-status"] == "ok" for replica in replicas
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_master_that_dies_under_a_job_is_replaced_and_no_job_is_lost(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    start_redis: StartRedis,
    tmp_path: Path,
) -> None:
    replicated = Replicated(start_redis, tmp_path)
    ids = label_studio.add_tasks(*(data_uri(name) for name in ("red", "green", "blue")))
    label_studio.annotate(ids[0], "red")

    def before(method: str, path: str) -> None:
        if path == "/api/tasks" and replicated.master.poll() is None:
            replicated.master.kill()
            replicated.master.wait()

    def is_done() -> bool:
        version = store.versions.active(PROJECT)
        return version is not None and label_studio.predicted(version.name).keys() == {*ids[1:]}

    label_studio.before = before
    store.requests.add_all([Request(PROJECT, kind) for kind in (Kind.TRAIN, Kind.SYNC)])
    with closing(JobQueue(replicated.url)) as queue:
        work_until(services, queue, is_done)

    assert replicated.master.poll() is not None
    assert label_studio.predicted() == dict.fromkeys(ids[1:], 1)
    assert len(store.versions.names(PROJECT)) == 1
