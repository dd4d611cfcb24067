"""The Helm chart, by its renderings: valid for Kubernetes and its operators, and one with the code."""

import json
import re
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.acls import as_json
from schemas.config import load
from schemas.topics import MIN_IN_SYNC, copies_that_agree
from tests.support.deploy import DEPLOY, ROOT, manifests, script

render, crds = script("helm/render.py"), script("helm/crds.py")
VERSIONS = ["1.30", "1.34"]
EXAMPLES = [pytest.param(example, id=example.stem) for example in render.EXAMPLES]
HELM = ROOT / ".tools/bin/helm"  # of the version that made the renderings: another may order them otherwise
with_helm = pytest.mark.skipif(not HELM.exists(), reason="there is no helm; make charts gets one")
OF_OPERATORS = {"FlinkDeployment", "KafkaTopic", "KafkaUser", "PyTorchJob", "ScaledObject"}


@cache
def rendered(example):
    return manifests(render.GOLDEN / example.name)


def of_kind(example, kind):
    return {each["metadata"]["name"]: each for each in rendered(example) if each["kind"] == kind}


def containers(example):
    """Every container of a rendering, by kind and name of what holds it."""
    for each in rendered(example):
        for pod in pods(each):
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                yield each, pod, container


def pods(thing):
    """The templates of pods anywhere in an object."""
    if isinstance(thing, list):
        return [pod for each in thing for pod in pods(each)]
    if not isinstance(thing, dict):
        return []
    own = [thing] if isinstance(thing.get("spec"), dict) and "containers" in thing["spec"] else []
    return own + [pod for each in thing.values() for pod in pods(each)]


# ----------------------------------------------------------------------- renderings


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_rendering_is_of_this_chart(example):
    head = (render.GOLDEN / example.name).read_text().splitlines()[0]
    assert head == render.head(example), "the chart has changed since: make charts renders it again"


@with_helm
@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_renders_it_so(example):
    golden = (render.GOLDEN / example.name).read_text().split("\n", 1)[1]
    assert render.render(str(HELM), example) == golden


@with_helm
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("kafka.auth=foo", "one of 'none', 'scram', 'tls'"),
        ("worker.replica=3", "'replica' not allowed"),
        ("learner.gpus=3", "learner.gpus = 3, but learner.processes = 1"),
        ("learner.nodes=2", "give [ReadWriteMany]"),
        (
            "kafka.strimzi.topics=true,kafka.strimzi.partitions=7",
            "kafka.strimzi.partitions = 7, but kafka.partitions = 2",
        ),
        ("kafka.strimzi.users=true", "needs kafka.auth scram or tls"),
        ("config=broken[", "config is not TOML"),
        ('config=include=["x"]', "asyncflow config show"),
    ],
)
def test_values_that_cannot_work_are_told(values, told):
    command = [HELM, "template", "demo", render.CHART, "--set", values]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode
    assert told in done.stderr


@with_helm
@pytest.mark.parametrize(("values", "copies"), [("", 3), ("replicas=5", 5), ("replicas=2", 2), ("replicas=1", 1)])
def test_topics_of_any_number_of_copies_ask_for_as_many_as_the_code_does(values, copies):
    settings = ",".join(f"kafka.strimzi.{each}" for each in ("topics=true", values) if each)
    done = subprocess.run([HELM, "template", "demo", render.CHART, "--set", settings], capture_output=True, check=True)
    topics = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == "KafkaTopic"]
    assert {each["spec"]["config"][MIN_IN_SYNC] for each in topics} == {str(copies_that_agree(copies))}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_kubernetes_takes_it(example, version):
    for each in rendered(example):
        if each["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.fixture(scope="module")
def of_operators():
    return crds.schemas()


@pytest.mark.parametrize("example", EXAMPLES)
def test_operators_take_it(example, of_operators):
    if not of_operators:
        pytest.skip("the operators' definitions are not here; make charts fetches them")
    for each in rendered(example):
        if each["kind"] in OF_OPERATORS - {"KafkaTopic", "KafkaUser"}:
            jsonschema.validate(each, of_operators[each["apiVersion"], each["kind"]])


def test_the_examples_have_every_kind():
    kinds = {each["kind"] for example in render.EXAMPLES for each in rendered(example)}
    assert kinds >= OF_OPERATORS | {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Job", "NetworkPolicy", "PersistentVolumeClaim",
        "PodDisruptionBudget", "Service", "StatefulSet",
    }  # fmt: skip


def test_the_values_have_a_schema():
    schema = yaml.safe_load((render.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((render.CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate({**values, "worker": {"replica": 2}}, schema)


# ----------------------------------------------------------------------- one with the code


@pytest.fixture
def config_of():
    """The configuration that the processes of a rendering read."""

    def read(example):
        (files,) = of_kind(example, "ConfigMap").values()
        with tempfile.TemporaryDirectory() as directory:
            for name, text in files["data"].items():
                (Path(directory) / name).write_text(text)
            return load(Path(directory) / "asyncflow.toml")

    return read


@pytest.mark.parametrize("example", EXAMPLES)
def test_processes_can_read_their_configuration(example, config_of):
    config = config_of(example)
    given = yaml.safe_load(example.read_text())
    assert config.name in given["config"]
    assert config.kafka.bootstrap == given["kafka"]["bootstrap"]
    assert config.worker.host == config.gateway.host == "0.0.0.0"
    assert not config.rollout.workers
    assert config.rollout.metrics_host == config.learner.metrics_host == config.feedback.metrics_host == "0.0.0.0"
    assert bool(config.worker.api_key) is bool(given.get("worker", {}).get("keySecret"))


def named_ports(example):
    return {
        (each["metadata"]["labels"]["app.kubernetes.io/component"], port["name"]): port["containerPort"]
        for each, _, container in containers(example)
        for port in container.get("ports", [])
    }


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_ports_of_pods_are_those_of_the_configuration(example, config_of):
    config, ports = config_of(example), named_ports(example)
    said = {
        ("worker", "http"): config.worker.port,
        ("gateway", "http"): config.gateway.port,
        ("learner", "metrics"): config.learner.metrics_port,
        ("learner", "weights"): config.weights.port,
        ("rollout", "metrics"): config.rollout.metrics_port,
        ("join-feedback", "metrics"): config.feedback.metrics_port,
    }
    undeclared = {("learner", "rendezvous"), ("flink", "worker-pool")}  # of torchrun and of Beam
    assert {key: port for key, port in ports.items() if key not in undeclared}.items() <= said.items()


def test_flink_is_awaited_and_has_the_pool_that_pipelines_ask():
    example = next(each for each in render.EXAMPLES if each.stem == "flink")
    found = {container["name"]: container for _, _, container in containers(example)}
    pool = found["sdk-harness"]
    assert pool["command"] == ["asyncflow", "beam-worker", "--port", str(pool["ports"][0]["containerPort"])]
    (submits,) = of_kind(example, "Job").values()
    (waits,) = submits["spec"]["template"]["spec"]["initContainers"]
    arguments = dict(each[2:].partition("=")[::2] for each in found["pipeline"]["args"])
    assert arguments["environment_config"] == f"127.0.0.1:{pool['command'][-1]}"
    assert f"healthy http://{arguments['flink_master']}/overview" in waits["command"][-1]


def test_the_topics_are_those_that_the_code_creates(config_of):
    for example in render.EXAMPLES:
        topics = of_kind(example, "KafkaTopic")
        config = config_of(example)
        made = {
            each["spec"]["topicName"]: (each["spec"]["partitions"], each["spec"]["replicas"], each["spec"]["config"])
            for each in topics.values()
        }
        expected = {
            spec.name: (
                spec.partitions,
                config.kafka.replication,
                {"cleanup.policy": "delete", **spec.settings},
            )
            for spec in config.topics.specs(config.kafka.partitions, config.kafka.replication)
        }
        assert made in ({}, expected)
        assert all(name == each["spec"]["topicName"] for name, each in topics.items())


def test_the_autoscaler_asks_for_figures_that_vllm_serves():
    served = (Path(find_spec("vllm").origin).parent / "v1/metrics/loggers.py").read_text()
    queries = [
        trigger["metadata"]["query"]
        for example in render.EXAMPLES
        for scaled in of_kind(example, "ScaledObject").values()
        for trigger in scaled["spec"]["triggers"]
    ]
    asked = {name for query in queries for name in re.findall(r"vllm:\w+", query)}
    assert asked == {"vllm:num_requests_running", "vllm:num_requests_waiting"}
    assert all(f'"{name}"' in served for name in asked)


def test_users_may_do_what_their_roles_need(config_of):
    for example in render.EXAMPLES:
        config = config_of(example)
        users = {name: user["spec"]["authorization"]["acls"] for name, user in of_kind(example, "KafkaUser").items()}
        roles = json.loads(as_json(config))
        assert users in ({}, {f"{config.name}-{role}": told["acls"] for role, told in roles.items()})


def test_the_users_are_of_kinds_that_strimzi_knows():
    for example in render.EXAMPLES:
        for user in of_kind(example, "KafkaUser").values():
            assert user["spec"]["authentication"]["type"] in ("scram-sha-512", "tls")
            assert user["spec"]["authorization"]["type"] == "simple"
            assert user["metadata"]["labels"]["strimzi.io/cluster"] == "asyncflow"


# ----------------------------------------------------------------------- locked down


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_container_of_ours_has_rights(example):
    for _, pod, container in containers(example):
        if container["name"] == "flink-main-container":
            continue
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["spec"].get("securityContext", {"runAsNonRoot": True})["runAsNonRoot"] is True


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_pod_is_behind_a_network_policy(example):
    covered = {
        policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for policy in of_kind(example, "NetworkPolicy").values()
    }
    components = {each["metadata"]["labels"]["app.kubernetes.io/component"] for each, _, _ in containers(example)}
    assert components <= covered


def test_secrets_are_only_referred_to():
    for example in render.EXAMPLES:
        assert not of_kind(example, "Secret")
        for _, _, container in containers(example):
            for variable in container.get("env", []):
                assert "valueFrom" in variable or variable["name"] == "KAFKA_USER"


def test_what_a_drain_may_take_is_said_of_every_deployed_service():
    for example in render.EXAMPLES:
        budgets = set(of_kind(example, "PodDisruptionBudget"))
        served = {"demo-worker", "demo-learner"} | set(of_kind(example, "Deployment")) & {"demo-gateway"}
        assert budgets == served


def test_the_chart_is_of_this_version():
    chart = yaml.safe_load((render.CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    assert DEPLOY in render.CHART.parents
