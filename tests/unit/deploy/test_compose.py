"""The compose files: valid for docker compose, and one with configuration, Dockerfile and metrics."""

import os
import subprocess

import pytest
import yaml

from schemas.config import load
from schemas.limits import MAX_TRAJECTORY_BYTES
from schemas.topics import Topics
from tests.support.deploy import DEPLOY, tool

COMPOSE = DEPLOY / "compose"
OURS = {"topics", "learner", "worker", "rollout", "join-feedback", "gateway", "asyncflow"}


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """What the containers read."""
    directory = tmp_path_factory.mktemp("etc")
    (directory / "run.toml").write_text('name = "mine"\n')
    (directory / "cluster.toml").write_text((COMPOSE / "cluster.toml").read_text())
    told = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["configs"]["asyncflow"]["content"]
    (directory / "asyncflow.toml").write_text(told)
    return load(directory / "asyncflow.toml")


@pytest.mark.skipif(tool("docker-compose") is None, reason="there is no docker-compose")
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "cuda.yaml"]], ids=["cpu", "cuda"])
def test_docker_compose_takes_it(files, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x\n")
    given = {"RUN_TOML": str(secret), "MODEL": str(tmp_path), "GRAFANA_PASSWORD_FILE": str(secret)}
    command = [tool("docker-compose"), *(part for name in files for part in ("--file", str(COMPOSE / name)))]
    done = subprocess.run(
        [*command, "--profile", "tools", "config", "--quiet"],
        env={**os.environ, **given}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_our_containers_have_no_rights(services):
    for name in OURS:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_nothing_is_published_beyond_this_host(services):
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_is_built_are_targets_of_the_dockerfile(services):
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    cuda = yaml.safe_load((COMPOSE / "cuda.yaml").read_text())["services"]
    built = [each["build"]["target"] for each in [*services.values(), *cuda.values()] if "build" in each]
    assert {"pipeline", "learner", "worker-cpu", "worker-cuda", "gateway"} == set(built)
    assert all(f" AS {target}\n" in dockerfile for target in built)


def test_the_broker_takes_the_largest_record(services):
    largest = max(int(spec.settings.get("max.message.bytes", 0)) for spec in Topics("x").specs(1))
    taken = services["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"]
    assert taken == services["kafka"]["environment"]["KAFKA_REPLICA_FETCH_MAX_BYTES"]
    assert taken >= largest > MAX_TRAJECTORY_BYTES


def test_what_is_scraped_and_asked_is_where_processes_listen(services, config):
    scraped = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for each in job.get("static_configs", []) for target in each["targets"]}
    (workers,) = (each for job in scraped for each in job.get("dns_sd_configs", []))
    assert (workers["names"], workers["port"]) == (["worker"], config.worker.port)
    assert targets == {
        f"rollout:{config.rollout.metrics_port}",
        f"learner:{config.learner.metrics_port}",
        f"join-feedback:{config.feedback.metrics_port}",
        f"gateway:{config.gateway.port}",
    }
    assert config.rollout.metrics_host == config.learner.metrics_host == config.feedback.metrics_host == "0.0.0.0"
    local = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    elsewhere = {"asyncflow-federate"}  # a federation's coordinator is no part of a run
    assert {job["job_name"] for job in scraped} == {job["job_name"] for job in local} - elsewhere
    assert {target.partition(":")[0] for target in targets} <= services.keys()
