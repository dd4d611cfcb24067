"""Learners in processes of their own that start fast: forked from one that has imported everything.

    Nursery ──(a line of JSON)──► process with torch, transformers, DeepSpeed ──fork──► asyncflow learn
            ◄──(its pid, later its exit code)──

A fork is a process like any other: it can be killed, and it is the command itself that runs in it.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import validate

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # cores are shared with the tests
    "OMP_WAIT_POLICY": "passive",
    "CUDA_VISIBLE_DEVICES": "",  # CUDA does not live through a fork
    "DS_ACCELERATOR": "cpu",
}
_LOOK_S = 0.02
_IMPORTED_BY_A_LEARNER = (
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "fsspec.implementations.local",
    "pipelines.cli.options",
    "prometheus_client",
    "safetensors.torch",
    "setuptools",
    "tokenizers",
    "trainers.federation.coordinator",
    "torch.distributed",
    "trainers.learn",
    "transformers.models.llama.modeling_llama",
    "transformers.core_model_loading",
)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The tiny model."""
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def _nursery():
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def nursery(_nursery):
    """Learners that start fast."""
    yield _nursery
    _nursery.end()


@pytest.fixture
def make_config(run_config, tmp_path, model_dir):
    """From changes of the learner's section to the configuration of the test's run."""
    return lambda **learner: learner_config(run_config, tmp_path, model_dir, **learner)


def learner_config(config, directory, model_dir, **learner):
    """A configuration for the tiny model in float32, whose files lie below a directory."""
    tree = config.model_dump()
    tree["model"] |= {"path": str(model_dir), "dtype": "float32"}
    tree["weights"] |= {"root": str(directory / "weights"), "keep": 100}
    tree["learner"] |= {"groups_per_step": 3, "steps": 4, "checkpoint_root": str(directory / "checkpoints"),
                        "checkpoint_every": 3, "learning_rate": 1e-3, **learner}  # fmt: skip
    return validate(tree, "test")


class Nursery:
    """Starts learners, one at a time.

    Args:
        place: from a command to what starts it where the learners belong.
    """

    def __init__(self, place=lambda command: command):
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            place([sys.executable, "-m", "tests.support.learners"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1, env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
        )  # fmt: skip

    def start(self, config, directory, verb="learn", **environment):
        """Starts ``asyncflow learn``, or ``federate``; returns when the process exists."""
        file, self._log = directory / "config.toml", directory / "learner.log"
        file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        self._log.touch()
        self._before_bytes = self._log.stat().st_size
        order = {"verb": verb, "config": str(file), "log": str(self._log), "environment": environment}
        self._process.stdin.write(json.dumps(order) + "\n")
        self.pid = int(self._process.stdout.readline())

    def said(self):
        """What the newest learner has printed so far."""
        return self._log.read_bytes()[self._before_bytes :].decode(errors="replace")

    def kill(self, number):
        """Sends it a signal, if it still lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wake(self):
        """Lets one go on that is about to stop itself, or has."""
        while self._state() not in "tT":
            time.sleep(0.005)
        self.kill(signal.SIGCONT)

    def _state(self):
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def has_ended(self, timeout_s=0.0):
        """Whether :meth:`wait` returns at once."""
        return bool(select.select([self._process.stdout], [], [], timeout_s)[0])

    def wait(self, timeout_s=120):
        """Its exit code, or minus the signal that ended it."""
        if not self.has_ended(timeout_s):
            raise TimeoutError(f"the learner did not end within {timeout_s} s: {self.said()[-4000:]}")
        code = int(self._process.stdout.readline())
        self.pid = None
        return code

    def learn(self, config, directory, **environment):
        """Runs one to its end."""
        self.start(config, directory, **environment)
        return self.wait()

    def __enter__(self):
        self.pid = None
        return self

    def __exit__(self, *_):
        self.end()
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def end(self):
        """Kills what a test that failed has left."""
        if self.pid:
            self.kill(signal.SIGKILL)
            self.wait()


def _serve():
    parent = os.getppid()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # DeepSpeed prints while it is imported
    for name in _IMPORTED_BY_A_LEARNER:
        importlib.import_module(name)
    import deepspeed

    assert deepspeed.ops.__compatible_ops__  # asks the compiler what it can do, which takes some tenths of a second
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_learner(order)
        replies.write(f"{pid}\n")
        replies.write(f"{os.waitstatus_to_exitcode(_wait_for(pid, parent))}\n")


def _wait_for(pid, parent):
    """How a process ended; it is killed if whoever wanted it has gone."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if os.getppid() != parent:
            os.kill(pid, signal.SIGKILL)
            sys.exit("the tests that wanted the learner have gone")
        time.sleep(_LOOK_S)


def _become_learner(order):
    from pipelines.cli.main import main

    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    code = 1
    try:
        code = main([order["verb"], "--config", order["config"]])
    except BaseException:  # noqa: BLE001 - whatever it is ends in the log, as an interpreter's last words would
        traceback.print_exc()
    os._exit(code)  # past the nursery's own loop and exit handlers


if __name__ == "__main__":
    _serve()
