"""A worker that says it is healthy and answers rubbish, each time of another kind."""

import itertools
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from pipelines.local.ports import LOOPBACK

UNANNOUNCED: Final = 999_999_999
"""A weight version that no learner ever gave out."""


def _choice(index: int, **changes: Any) -> dict[str, Any]:
    tokens = [7, 8, 9]
    choice = {
        "index": index,
        "token_ids": tokens,
        "logprobs": {"content": [{"logprob": -1.0} for _ in tokens]},
        "finish_reason": "stop",
        "weight_versions": [{"version": str(UNANNOUNCED), "start": 0, "end": len(tokens)}],
    }
    return {**choice, **changes}


def _answer(count: int, **changes: Any) -> bytes:
    return json.dumps({"choices": [_choice(index, **changes) for index in range(count)]}).encode()


_KINDS: Final[dict[str, Callable[[int], bytes]]] = {
    "no JSON": lambda _: b"<html>502 Bad Gateway</html>",
    "cut off": lambda count: _answer(count)[:-20],
    "nothing": lambda _: b"",
    "too few answers": lambda count: _answer(count - 1),
    "token outside the vocabulary": lambda count: _answer(count, token_ids=[7, 8, 1 << 40]),
    "no number": lambda count: _answer(count, logprobs={"content": [{"logprob": float("nan")}] * 3}),
    "logprobs of another length": lambda count: _answer(count, logprobs={"content": [{"logprob": -1.0}]}),
    "version 0": lambda count: _answer(count, weight_versions=[{"version": "0", "start": 0, "end": 3}]),
    "spans out of order": lambda count: _answer(count, weight_versions=[{"version": "1", "start": 2, "end": 0}]),
    "a version that was never announced": _answer,
}


class Rogue:
    """The server; listens only while it is on.

    Attributes:
        url: what the pipeline is told.
        served: how many requests it answered, by kind of rubbish.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        self.served: dict[str, int] = {}
        self._port = port
        self._server: ThreadingHTTPServer | None = None
        self._kinds = itertools.cycle(_KINDS)

    def switch_on(self) -> None:
        """Begins to listen."""
        self._server = ThreadingHTTPServer((LOOPBACK, self._port), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="rogue", daemon=True).start()

    def switch_off(self) -> None:
        """Ends listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _rubbish(self, count: int) -> bytes:
        kind = next(self._kinds)
        self.served[kind] = self.served.get(kind, 0) + 1
        return _KINDS[kind](count)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        rogue = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(b"{}")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._reply(rogue._rubbish(int(body["sampling_params"]["n"])))

            def _reply(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        return Handler
