"""A small HTTP server that answers as a test tells it to, for those who ask judges and reward models.

with ServiceServer(says("Score: 7")) as server:
    server.url, server.requests            # where it listens, what it was asked
    server.behaviour = status(503)         # from now on
"""

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict
    body: bytes
    at_s: float

    @property
    def json(self):
        return json.loads(self.body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """With the 5 that are usual some of many clients at once are only heard after a second."""


class ServiceServer:
    """Listens while it is open. A behaviour is called with the handler and the request, in a thread of its own."""

    def __init__(self, behaviour, port=0):
        self.behaviour = behaviour
        self.requests = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients go away on purpose
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer._serve(self)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_):
                pass

        return Handler

    def _serve(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        asked = Asked(handler.path, dict(handler.headers), body, time.monotonic())
        with self._lock:
            self.requests.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            behaviour = self.behaviour
        try:
            behaviour(handler, asked)
        finally:
            with self._lock:
                self._at_once -= 1
        handler.close_connection = True


def sends(body, code=200, **headers):
    """This body."""

    def behave(handler, _asked):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(raw)

    return behave


def completion(text, finish_reason="stop"):
    """What OpenAI's route answers."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"id": "1", "object": "chat.completion", "model": "judge", "choices": [choice]}


def says(text, finish_reason="stop"):
    """A judge's words."""
    return sends(completion(text, finish_reason))


def status(code, body=b"no", **headers):
    """Another status than 200."""
    return sends(body, code, **headers)


def resets(handler, _asked):
    """Breaks the connection off, with a reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def drips(handler, _asked):
    """A byte from time to time, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.05)


def first(*behaviours):
    """One after the other; the last one goes on."""
    left = list(behaviours)

    def behave(handler, asked):
        chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(handler, asked)

    return behave


def slowly(seconds, behaviour):
    """After a while."""

    def behave(handler, asked):
        time.sleep(seconds)
        behaviour(handler, asked)

    return behave


def write_classifier(directory, *, seed=1, labels=1):
    """A directory with a tiny sequence classifier, whose tokenizer is that of the tiny model; returns it."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from pipelines.local.tiny_model import build_tiny_model

    build_tiny_model(directory)
    config = LlamaConfig.from_pretrained(directory, num_labels=labels)
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config).to(torch.float32)
    with torch.no_grad():
        model.score.weight.mul_(30)  # numbers that differ from answer to answer
    model.save_pretrained(directory)
    return directory
