"""A chat model that answers at once, or after a wait, with three actions: `python -m benchmarks.chat_standin --fd N`.

It is a bare asyncio protocol, so that it costs little beside what is measured.

    POST /v1/chat/completions             a tool call, at once
    POST /wait/<ms>/v1/chat/completions   after so many milliseconds
    GET  /bodies                          the last requests, as a JSON list
    GET  anything else                    200
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import socket
from collections import deque

import orjson

from crafter_pipeline.processes import exit_with_parent

ACTIONS = (
    ("move_left", "do", "move_up"),
    ("move_right", "do", "do"),
    ("move_down", "move_down", "do"),
    ("move_up", "place_table", "noop"),
)
_WAIT = re.compile(rb"/wait/(\d+)/")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def completion(actions: tuple[str, ...]) -> bytes:
    """A chat completion that plays these actions, as an HTTP answer."""
    arguments = orjson.dumps({"actions": actions}).decode()
    call = {"id": "call_1", "type": "function", "function": {"name": "interact_many", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stand-in",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 30, "total_tokens": 730},
    }
    return _http(orjson.dumps(answer))


def _http(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


class ChatModel(asyncio.Protocol):
    """One connection."""

    answers = itertools.cycle([completion(actions) for actions in ACTIONS])
    bodies: deque[bytes] = deque(maxlen=32)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.received) < whole:
                return
            body, self.received = self.received[end + 4 : whole], self.received[whole:]
            self.answer(head[: head.find(b"\r\n")], body)

    def answer(self, line: bytes, body: bytes) -> None:
        """Answer one request."""
        if line.startswith(b"GET"):
            self.say(_http(b"[" + b",".join(self.bodies) + b"]" if b"/bodies" in line else b"{}"))
            return
        self.bodies.append(body)
        wait = _WAIT.search(line)
        if wait is None:
            self.say(next(self.answers))
        else:
            asyncio.get_running_loop().call_later(int(wait[1]) / 1000.0, self.say, next(self.answers))

    def say(self, answer: bytes) -> None:
        """Send, unless the other side has gone."""
        if not self.transport.is_closing():
            self.transport.write(answer)  # type: ignore[attr-defined]


async def serve(fd: int) -> None:
    """Serve on a listening socket until stopped."""
    server = await asyncio.get_running_loop().create_server(ChatModel, sock=socket.socket(fileno=fd), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    exit_with_parent()
    asyncio.run(serve(parser.parse_args().fd))
