"""The client and the command line, towards a real broker."""

import json
import os
import subprocess
import sys
import time

import pytest
import tomli_w

from pipelines.cli.main import main
from pipelines.client import Client
from schemas.errors import BrokerError, RecordError
from schemas.feedback import Feedback
from schemas.identity import RolloutId
from schemas.prompts import Message, Prompt, RewardSpec
from schemas.receipts import Receipts
from tests.support.trajectories import read_all


@pytest.fixture
def client(run_config):
    with Client(run_config.kafka.bootstrap, run_config.name) as open_client:
        yield open_client


@pytest.fixture
def config_file(run_config, tmp_path):
    file = tmp_path / "config.toml"
    file.write_bytes(tomli_w.dumps(run_config.model_dump(mode="json", exclude_none=True)).encode())
    return file


def test_prompts_that_wait_for_feedback(client, run_config):
    sent = client.send_prompt("What is 2+3?", task="sums", group_size=4)
    spoken = client.send_prompt([Message(role="system", content="Be brief."), Message(role="user", content="Hi")])
    whole = client.send_prompt(Prompt(text="2+3=", reward=RewardSpec(name="exact_match"), prompt_id="p"))
    records = {(record.partition, record.offset): record for record in read_all(run_config, run_config.topics.prompts)}
    first = Prompt.decode(records[sent.group].value)
    assert (first.reward.name, first.task, first.group_size) == ("feedback", "sums", 4)
    assert first.messages == (Message(role="user", content="What is 2+3?"),)
    assert [each.role for each in Prompt.decode(records[spoken.group].value).messages] == ["system", "user"]
    assert records[whole.group].key == b"p"
    assert sent.rollout(3) == RolloutId(run_config.name, sent.partition, sent.offset, 3)


def test_a_prompt_goes_on_with_the_trace_of_whoever_sent_it(client, run_config):
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.send_prompt("What is 2+3?", traceparent=traceparent)
    client.send_prompt("What is 2+3?")
    records = read_all(run_config, run_config.topics.prompts)
    assert sorted(list(record.headers) for record in records) == [[], [("traceparent", traceparent.encode())]]
    with pytest.raises(RecordError, match="traceparent 'mine': expected 00-TRACE-SPAN-FLAGS"):
        client.send_prompt("What is 2+3?", traceparent="mine")


def test_judgements_lie_where_the_client_says(client, run_config):
    rollout = RolloutId(run_config.name, 0, 38, 3)
    sent = client.send_feedback(rollout, "score", 0.5, user="ann", receipt="r", feedback_id="f-1")
    more = [Feedback(**{**json.loads(sent.feedback.encode()), "feedback_id": f"f-{number}"}) for number in range(2, 50)]
    many = client.send_all_feedback(more)
    records = {(each.partition, each.offset): each for each in read_all(run_config, run_config.topics.feedback)}
    for one in (sent, *many):
        record = records.pop((one.partition, one.offset))
        assert Feedback.decode(record.value) == one.feedback
        assert record.key == str(rollout).encode()
    assert not records


def test_what_is_no_record_is_not_sent(client, run_config):
    rollout = f"{run_config.name}/0/38/3"
    with pytest.raises(RecordError, match="expected a number from -1 to 1"):
        client.send_feedback(rollout, "score", 2, user="ann")
    with pytest.raises(RecordError, match="of another run"):
        client.send_feedback("other/0/38/3", "thumb", 1, user="ann")
    with pytest.raises(RecordError, match="group_size"):
        client.send_prompt("Hi", group_size=0)
    assert read_all(run_config, run_config.topics.feedback) == []


def test_a_run_that_is_not_there_is_said(broker):
    with (
        Client(broker, "no-such-run", {"max_block_ms": 1000}) as client,
        pytest.raises(BrokerError, match="no-such-run"),
    ):
        client.send_prompt("Hi")


def test_the_command_line_sends_one_judgement(config_file, run_config, capsys):
    rollout, other = f"{run_config.name}/0/38/3", f"{run_config.name}/0/38/1"
    flags = (["--thumb", "up"], ["--score", "-0.5"], ["--prefer", other], ["--correct", "5"], ["--retract"])
    for given in flags:
        assert main(["feedback", rollout, *given, "--config", str(config_file), "--user", "ann"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    values = {"thumb": 1.0, "score": -0.5, "preference": other, "correction": "5", "retract": None}
    assert {each["kind"]: each["value"] for each in told} == values
    records = {(each.partition, each.offset): each for each in read_all(run_config, run_config.topics.feedback)}
    for each in told:
        assert Feedback.decode(records[each["partition"], each["offset"]].value).feedback_id == each["feedback_id"]


def test_the_command_line_issues_a_receipt(config_file, run_config, tmp_path, capsys):
    (tmp_path / "key").write_text("0123456789abcdef")
    rollout = f"{run_config.name}/0/38/3"
    where = ["--config", str(config_file), "--user", "ann"]
    assert main(["feedback", rollout, "--thumb", "down", *where, "--key-file", str(tmp_path / "key")]) == 0
    receipt = json.loads(capsys.readouterr().out)["receipt"]
    receipts = Receipts.load(str(tmp_path / "key"))
    assert receipts.find_fault(receipt, RolloutId.parse(rollout), "ann", time.time()) is None
    assert receipts.find_fault(receipt, RolloutId.parse(rollout), "bob", time.time()) == "bad_receipt"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "exactly one of"),
        (["--thumb", "up", "--retract"], "exactly one of"),
        (["--score", "7"], "expected a number from -1 to 1"),
        (["--prefer", "nothing"], "expected RUN/PARTITION/OFFSET/SAMPLE"),
        (["--thumb", "up", "--key-file", "/none"], "openssl rand"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(given, reason, config_file, run_config, capsys):
    assert main(["feedback", f"{run_config.name}/0/38/3", *given, "--config", str(config_file)]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "Traceback" not in told


def test_a_rollout_of_another_run_is_a_mistake(config_file, capsys):
    assert main(["feedback", "other/0/38/3", "--retract", "--config", str(config_file)]) == 2
    assert "is of the run 'other'" in capsys.readouterr().err
    assert main(["feedback", "demo/38", "--retract", "--config", str(config_file)]) == 2
    assert "RUN/PARTITION/OFFSET/SAMPLE" in capsys.readouterr().err


def test_the_gateway_is_a_process_that_ends_in_good_order(make_config, tmp_path, capsys):
    config = make_config()
    (tmp_path / "run.toml").write_bytes(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode())
    command = [sys.executable, "-m", "pipelines.cli.main", "gateway", "--config", str(tmp_path / "run.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy()) as process:
        try:
            _wait_until_serving(config, process)
            assert main(command[3:]) == 2
            assert "in use" in capsys.readouterr().err
        finally:
            process.terminate()
        assert process.wait(60) == 0


def _wait_until_serving(config, process):
    import httpx

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if httpx.get(f"http://127.0.0.1:{config.gateway.port}/health").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise TimeoutError


def test_a_gateway_that_cannot_work_says_why_at_once(make_config, tmp_path, capsys):
    config = make_config()
    file = tmp_path / "run.toml"
    file.write_bytes(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode())
    for given, reason in (
        (["--model.path", ""], "model.path is empty"),
        (["--model.path", str(tmp_path)], "vocab_size"),
        (["--feedback.key-file", "/none"], "openssl rand"),
        (["--name", "no-such-run"], "no-such-run.outcomes does not exist"),
        (["--kafka.bootstrap", "127.0.0.1:1"], "cannot be reached"),
        (["--gateway.prot", "1"], "--gateway.port"),
    ):
        try:
            code = main(["gateway", "--config", str(file), *given])
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2, given
        assert reason in capsys.readouterr().err
