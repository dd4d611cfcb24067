"""The Flex Template: parameters from the configuration, and a configuration from parameters."""

import json
import re
import shutil
import subprocess

import pytest

from schemas.config import RunConfig, load
from tests.support.deploy import DEPLOY, script

DATAFLOW = DEPLOY / "dataflow"
METADATA = json.loads((DATAFLOW / "metadata.json").read_text())
PARAMETERS = {each["name"]: each for each in METADATA["parameters"]}

main = script("dataflow/main.py")


def value_of(key):
    found = RunConfig()
    for name in key.split("."):
        found = getattr(found, name)
    return found


def written(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_default_is_a_value_that_dataflow_lets_through():
    assert len(PARAMETERS) == len(METADATA["parameters"]) > 50
    for each in METADATA["parameters"][2:]:
        default = value_of(each["label"])
        if default is not None:
            assert all(re.search(pattern, written(default)) for pattern in each.get("regexes", [])), each["name"]


def test_every_parameter_tells_what_it_is():
    for name, each in PARAMETERS.items():
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
        assert each["helpText"].endswith(".")
        assert len(each["label"]) <= 64


def test_what_has_to_be_given():
    required = {name for name, each in PARAMETERS.items() if not each["isOptional"]}
    assert required == {"pipeline", "name", "kafka__bootstrap", "model__path"}


def test_parameters_become_a_configuration(tmp_path):
    (tmp_path / "run.toml").write_text('name = "file"\n[rollout]\nshares = 2\ngroup_size = 4\n')
    own, beam = main.divide(
        [
            "--pipeline=rollout", f"--config_file={tmp_path / 'run.toml'}", "--name=007", "--kafka__bootstrap=a:1,b:2",
            "--rollout__shares=1", "--rollout__discover=false", "--rollout__sampling__temperature=0.5",
            "--rewards__sandbox=required", "--runner=DataflowRunner", "--temp_location=gs://x/y", "--streaming",
        ]
    )  # fmt: skip
    assert beam == ["--runner=DataflowRunner", "--temp_location=gs://x/y", "--streaming"]
    (tmp_path / "template.toml").write_text(main.to_toml(own, tmp_path))
    config = load(tmp_path / "template.toml")
    assert (config.name, config.kafka.bootstrap, config.rewards.sandbox) == ("007", "a:1,b:2", "required")
    assert (config.rollout.shares, config.rollout.group_size, config.rollout.discover) == (1, 4, False)
    assert config.rollout.sampling.temperature == 0.5


def test_a_configuration_of_another_file_system_is_fetched(tmp_path):
    (tmp_path / "run.toml").write_text('name = "far"\n')
    own, _ = main.divide(["--pipeline=rollout", f"--config_file=file://{tmp_path / 'run.toml'}"])
    (tmp_path / "room").mkdir()
    (tmp_path / "template.toml").write_text(main.to_toml(own, tmp_path / "room"))
    assert load(tmp_path / "template.toml").name == "far"


def test_terraform_gives_parameters_that_there_are():
    text = (DATAFLOW / "terraform/main.tf").read_text()
    given = re.search(r"\n  parameters = \{\n(.*?)\n  \}", text, re.DOTALL)[1]
    assert set(re.findall(r"^\s+(\w+)\s+=", given, re.MULTILINE)) <= PARAMETERS.keys()
    declared = set(re.findall(r'^variable "(\w+)"', (DATAFLOW / "terraform/variables.tf").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared


@pytest.mark.skipif(shutil.which("terraform") is None, reason="there is no terraform")
def test_terraform_reads_it():
    command = ["terraform", "fmt", "-check", "-recursive", str(DATAFLOW / "terraform")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
