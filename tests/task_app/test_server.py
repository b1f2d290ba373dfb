"""The task app behind real sockets: clients that are slow, too loud, or go away."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

import task_app.requests
import task_app.server
from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.processes import listen, url_of
from crafter_pipeline.settings import Settings
from task_app.app import make_app
from task_app.server import server_config

LIMIT = 0.2
HEAD = b"POST /rollout HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"


@pytest.fixture
def served(make_chat, tmp_path, monkeypatch) -> Iterator:
    """served(chat) -> (host, port) of a task app whose limits of time are `LIMIT`."""
    monkeypatch.setattr(task_app.server, "HEAD_SECONDS", LIMIT)
    monkeypatch.setattr(task_app.requests, "BODY_SECONDS", LIMIT)
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(chat) -> tuple[str, int]:
        client = ChatClient(Settings(_env_file=None), transport=chat.transport(), first_wait_seconds=0.001)
        app = make_app(trace_db=tmp_path / "traces" / "t.db", chat=client, settings=Settings(_env_file=None))
        server, sock = uvicorn.Server(server_config(app)), listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        running.append((server, thread))
        httpx.get(url_of(sock) + "/livez")
        return sock.getsockname()

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


def exchange(address: tuple[str, int], *parts: bytes, pause: float = 0.0) -> bytes:
    """Send the parts and read until the server closes."""
    with socket.create_connection(address, timeout=10) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(pause)
        received = b""
        while piece := sock.recv(65_536):
            received += piece
        return received


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTT", HEAD])
def test_half_a_head_is_hung_up_on(served, make_chat, sent):
    started = time.monotonic()
    assert exchange(served(make_chat("do")), sent) == b""
    assert time.monotonic() - started >= LIMIT


def test_a_slow_second_request_of_a_connection_is_hung_up_on(served, make_chat):
    answer = exchange(served(make_chat("do")), b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n", b"GET /li", pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1


def test_half_a_body_is_408_and_leaves_nothing(served, make_chat, trace_rows):
    address = served(make_chat("do"))
    sent = HEAD + b"Connection: close\r\nContent-Length: 1000\r\n\r\n" + b'{"run_id": "half", '
    assert exchange(address, sent).startswith(b"HTTP/1.1 408")
    assert trace_rows("SELECT count(*) FROM session_traces") == trace_rows("SELECT count(*) FROM rollout_attempts")


@pytest.mark.parametrize("name", ["X-Long", "Cookie"])
def test_a_head_without_end_is_400(served, make_chat, name):
    sent = HEAD + f"{name}: ".encode() + b"x" * (task_app.server.MAX_HEAD_BYTES + 1)
    assert exchange(served(make_chat("do")), sent).startswith(b"HTTP/1.1 400")


def test_what_is_no_http_is_400(served, make_chat):
    assert exchange(served(make_chat("do")), b"\x16\x03\x01\x02\x00\x01\xff\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_large_body_is_413_before_it_is_sent(served, make_chat):
    sent = HEAD + b"Connection: close\r\nContent-Length: 3000000\r\n\r\n"
    assert exchange(served(make_chat("do")), sent).startswith(b"HTTP/1.1 413")


def test_a_connection_that_rests_between_requests_stays(served, make_chat):
    host, port = served(make_chat("do"))
    with httpx.Client(base_url=f"http://{host}:{port}") as client:
        client.get("/livez")
        time.sleep(2 * LIMIT)
        assert client.get("/livez").status_code == 200


def test_a_client_that_goes_away_finds_its_rollout_later(served, make_chat, make_body, trace_rows):
    chat = make_chat("do", latency_s=0.1)
    host, port = served(chat)
    body = json.dumps(make_body("left")).encode()
    with socket.create_connection((host, port)) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while not chat.requests:
            time.sleep(0.01)
    answer = httpx.post(f"http://{host}:{port}/rollout", json=make_body("left"))
    assert answer.status_code == 200 and len(chat.requests) == 4, "it was played once"
    assert trace_rows("SELECT session_id FROM session_traces") == [("left",)]
