"""A vLLM worker as a process of its own, with a tiny model, and a client for its routes."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import tomli_w

_MAIN = """
import sys
from pathlib import Path
from schemas.config import load
from transforms.generation.worker.server import run
sys.exit(run(load(Path(sys.argv[1]))))
"""


class WorkerProcess:
    """Started on construction; ``log`` is what it wrote so far."""

    def __init__(self, directory: Path, config, environment: dict[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.toml").write_bytes(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode())
        self.url = f"http://{config.worker.host}:{config.worker.port}"
        self._log = directory / "worker.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(directory / "run.toml")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_log(self, text: str, timeout_s: float) -> None:
        """Returns when the worker has written ``text``; fails if it ends before."""
        self._wait(lambda: text in self.log, timeout_s, f"no {text!r}")

    def wait_until_serving(self, version: int, timeout_s: float) -> dict:
        """Returns the status that shows at least this version."""
        self._wait(lambda: (self.status() or {"version": 0})["version"] >= version, timeout_s, f"not at {version}")
        return self.status()

    def _wait(self, reached, timeout_s: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            ended = self.process.poll()
            assert ended is None, f"{complaint}: the worker ended with {ended}\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"{complaint} within {timeout_s} s\n{self.log[-3000:]}"
            time.sleep(0.05)

    def status(self) -> dict | None:
        """The body of the status route; None while the port refuses connections."""
        try:
            with urllib.request.urlopen(f"{self.url}/asyncflow/status", timeout=60) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            return None

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            return answer.read().decode()

    def generate(self, token_ids, *, min_version=None, **sampling) -> tuple[int, dict]:
        """HTTP status and body of one request to the token route."""
        body = json.dumps({"token_ids": list(token_ids), "sampling_params": {"logprobs": 0, **sampling}}).encode()
        headers = {"Content-Type": "application/json"}
        if min_version is not None:
            headers["X-AsyncFlow-Min-Version"] = str(min_version)
        request = urllib.request.Request(f"{self.url}/inference/v1/generate", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def descendants(self) -> set[int]:
        """Process numbers of everything that the worker started."""
        import psutil

        return {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 40) -> int:
        """Sends a signal and returns the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(timeout_s)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
