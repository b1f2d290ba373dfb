"""An inference child without torch: `-m fake_inference --data-dir DIR --fd N`. Answers with what it was sent."""

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SAMPLE = {"prompt_token_ids": [1, 2], "token_ids": [3], "logprobs": [-0.5], "weight_version": 0, "finished": True}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"status": "ok"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer = {"body": body, "path": self.headers["X-Model-Path"], "id": self.headers["X-Model-Id"]}
        answer["endpoint"] = self.path
        if self.headers["X-Capture"]:
            answer["captured"] = [SAMPLE]
        self._answer(answer)

    def _answer(self, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    server.serve_forever()
