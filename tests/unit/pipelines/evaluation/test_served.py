"""Who answers an evaluation, and what is said where nobody does."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.evaluation.served import Served, _alone, model_served, run_served, while_served
from pipelines.local.ports import free_ports
from schemas.config import RunConfig, validate
from schemas.errors import EngineError, ModelError, ProcessDied, RunError


@contextmanager
def serving(version):
    """The url of a server that has a worker's status route and nothing else."""

    class Status(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/asyncflow/status" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"version": version}).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Status) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def config_of(*urls, **evaluation):
    tree = RunConfig(name="sums").model_dump()
    tree["rollout"] |= {"workers": urls, "discover": False}
    tree["evaluation"] |= evaluation
    return validate(tree, "test")


def test_a_worker_of_its_own_follows_nobody_and_keeps_what_was_said_of_answers(tmp_path):
    tree = RunConfig().model_dump()
    tree["model"] = {"path": "other", "dtype": "float32"}
    tree["worker"] |= {"max_num_seqs": 17, "host": "0.0.0.0", "advertise": "http://gpu-7:8000"}
    tree["learner"]["lora"]["rank"] = 4
    tree["evaluation"] |= {"max_tokens": 9, "worker_run": "apart"}
    alone = _alone(validate(tree, "test"), tmp_path / "model")
    assert alone.model.path == str(tmp_path / "model")
    assert (alone.worker.alone, alone.worker.host, alone.worker.max_num_seqs) == (True, "127.0.0.1", 17)
    assert alone.rollout.workers == (f"http://127.0.0.1:{alone.worker.port}",)
    assert (alone.rollout.discover, alone.learner.lora.trains_adapter) == (False, False)
    assert (alone.evaluation.max_tokens, alone.evaluation.worker_run) == (9, "")


def test_a_model_directory_that_is_none_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ModelError, match=r"no such directory.*--model DIR"), model_served(RunConfig(), tmp_path / "no"):
        pass
    with pytest.raises(ModelError, match=r"lacks config\.json"), model_served(RunConfig(), tmp_path):
        pass


def test_a_run_answers_with_the_newest_version_that_a_worker_serves():
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    with serving(3) as older, serving(5) as newer:
        served = run_served(config_of(older, gone, newer, worker_run="apart"))
    assert (served.version, served.exported) == (5, None)
    assert served.config.evaluation.worker_run == ""


def test_a_run_without_a_worker_is_told_with_what_to_do():
    with pytest.raises(RunError, match=r"no worker of run 'sums' answers \(asked: http://127.*--version newest"):
        run_served(config_of(f"http://127.0.0.1:{free_ports(1)[0]}"))


@pytest.mark.timed
def test_a_worker_that_dies_ends_the_asking_at_once():
    released = threading.Event()

    def die():
        raise ProcessDied("worker ended")

    started = time.monotonic()
    with pytest.raises(ProcessDied, match="worker ended"):
        while_served(Served(RunConfig(), 1, die), lambda: released.wait(60))
    assert time.monotonic() - started < 5
    released.set()


def test_what_the_asking_comes_to_is_returned_or_raised():
    served = Served(RunConfig(), 1)
    assert while_served(served, lambda: 7) == 7

    def fail():
        raise EngineError("no answer")

    with pytest.raises(EngineError, match="no answer"):
        while_served(served, fail)
