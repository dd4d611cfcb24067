"""The Dockerfile: clean for its linter, locked down, and of the versions that the project has."""

import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from schemas.config import RunConfig
from tests.support.deploy import DEPLOY, ROOT, tool

DOCKER = DEPLOY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
TARGETS = ["worker-cpu", "worker-cuda", "learner", "pipeline", "gateway", "dataflow"]


def stage(name):
    """The text of one stage."""
    return re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE)[1]


@pytest.mark.skipif(tool("hadolint") is None, reason="there is no hadolint")
def test_the_linter_finds_nothing():
    command = [tool("hadolint"), "--config", DOCKER / "hadolint.yaml", DOCKER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_without_rights_and_says_how_it_is(target):
    assert re.search(r"^USER 10001$", stage(target), re.MULTILINE)
    assert "HEALTHCHECK" in stage(target)
    assert "ENTRYPOINT" in stage(target)


def test_the_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    beam = next(each for each in project["dependencies"] if each.startswith("apache-beam"))
    assert beam == f"apache-beam=={re.search(r'^ARG BEAM_VERSION=(.+)$', DOCKERFILE, re.MULTILINE)[1]}"
    uv = re.search(r"^ARG UV_VERSION=(.+)$", DOCKERFILE, re.MULTILINE)[1]
    assert f"UV_VERSION := {uv}\n" in (ROOT / "Makefile").read_text()


def test_what_is_copied_is_there_and_let_through():
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)  # of the checkout
        for source in line.replace("${REQUIREMENTS}", "core").split()[:-1]
        if not source.startswith("--")
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(source == each or source.startswith(f"{each}/") for each in allowed), source


def test_ports_are_the_usual_ones_of_the_configuration():
    config = RunConfig()
    assert f"EXPOSE {config.worker.port}\n" in stage("worker-cpu")
    assert f"EXPOSE {config.worker.port}\n" in stage("worker-cuda")
    assert f"EXPOSE {config.gateway.port}\n" in stage("gateway")


def pinned(file):
    """Versions by package, of a file with requirements."""
    text = (DEPLOY / "requirements" / file).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[\S+\])?==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("image", "lock"),
    [("core", "cpu"), ("worker-cpu", "cpu"), ("worker-cuda", "cuda"), ("learner", "cuda")],
)
def test_images_have_the_versions_that_are_tested(image, lock):
    tested, installed = pinned(f"{lock}.txt"), pinned(f"images/{image}.txt")
    assert {"apache-beam", "pydantic"} <= installed.keys()
    assert not {"pytest", "mypy", "ruff"} & installed.keys()
    differing = {name: version for name, version in installed.items() if tested.get(name, version) != version}
    assert not differing


def test_health_is_that_of_an_address():
    def asked(url):
        return subprocess.run([sys.executable, DOCKER / "healthy.py", url], check=False, timeout=60).returncode

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert asked(f"{url}/well") == 0
            assert asked(f"{url}/ill") == 1
        finally:
            server.shutdown()
            thread.join()
    assert asked(url) == 1


class Answering(BaseHTTPRequestHandler):
    """Well at one address, ill everywhere else."""

    def do_GET(self):
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()

    def log_message(self, *arguments):
        pass
