"""The curriculum before a real broker: what it writes, reads, and does when it is killed, doubled or cut off."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
import tomli_w
from kafka import KafkaConsumer
from kafka.errors import KafkaTimeoutError

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.main import main
from pipelines.curriculum.report import Window
from pipelines.curriculum.settings import Selection
from pipelines.curriculum.source import Curriculum, Order, Source
from pipelines.curriculum.writer import Writer
from pipelines.local.broker import Broker
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, RunConfig
from schemas.crash_points import CURRICULUM_POINTS, VARIABLE, arm, hits
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, FencedError, RunError
from schemas.identity import GroupId
from schemas.transactions import open_producer
from tests.support.curriculum import Pipeline, make_pool, number_of
from tests.support.trajectories import wait_until


@pytest.fixture
def pipeline(run_config):
    with Pipeline(run_config) as pipeline:
        yield pipeline


def order(*pools, **changes):
    return Order(pools or (make_pool("a", 6), make_pool("b", 6, 3.0)), **{"ahead": 4, **changes})


@pytest.fixture
def open_source(run_config):
    """Sources of this process, closed at the end."""
    opened = []

    def opener(*pools, **changes):
        opened.append(Source(run_config, order(*pools, **changes), Window()))
        return opened[-1]

    yield opener
    for source in opened:
        source.close()


def numbers(pipeline):
    return [number_of(prompt) for _, prompt in pipeline.prompts()]


def names(pipeline):
    return [prompt.prompt_id for _, prompt in pipeline.prompts()]


def test_it_writes_what_may_wait_and_more_when_that_is_admitted(open_source, pipeline):
    source = open_source()
    assert [source.advance(), source.advance()] == [4, 0]
    assert numbers(pipeline) == [1, 2, 3, 4]
    places = [place for place, _ in pipeline.prompts()]
    assert {place.partition for place in places} == {0, 1}
    first, second = (min(p.offset for p in places if p.partition == each) for each in (0, 1))
    pipeline.admit(first + 1, second)  # one of four
    assert [source.advance(), source.advance()] == [1, 0]
    assert numbers(pipeline) == [1, 2, 3, 4, 5]


def test_a_prompt_is_as_its_task_made_it_and_says_why_it_was_drawn(open_source, pipeline):
    pool = make_pool("sums", 1)
    source = open_source(pool)
    source.advance()
    ((place, prompt),) = pipeline.prompts()
    assert prompt.model_dump(exclude={"metadata"}) == {
        "schema_version": 1, "prompt_id": "sums/0", "task": "sums", "text": "0+1=", "messages": None, "token_ids": None,
        "reward": {"name": "last_number", "args": {}}, "environment": None, "group_size": None, "sampling": None,
        "purpose": "train",
    }  # fmt: skip
    assert prompt.metadata == {"curriculum": {"number": 1, "pass_rate": None}}
    pipeline.answer(place, "sums/0", [1.0, 0.0, 0.0, 0.0])
    assert source.advance() == 1
    assert pipeline.prompts()[1][1].metadata == {"curriculum": {"number": 2, "pass_rate": 0.25}}


def test_what_is_answered_now_right_and_now_wrong_is_drawn_more_often(open_source, pipeline):
    """Of three prompts one is always right, one never, one half of the time; each is answered before the next."""
    source = open_source(make_pool("sums", 3), ahead=1, selection=Selection(floor=0.01))
    rewards = {"sums/0": [1.0] * 8, "sums/1": [1.0, 0.0] * 4, "sums/2": [0.0] * 8}
    for _ in range(30):
        assert source.advance() == 1
        place, prompt = pipeline.prompts()[-1]
        pipeline.answer(place, prompt.prompt_id, rewards[prompt.prompt_id])
        pipeline.admit_all()
    drawn = names(pipeline)
    assert drawn.count("sums/1") >= 20, "a third of them would be 10"
    assert set(drawn) == set(rewards), "those that teach nothing have been tried"


def test_a_successor_goes_on_as_the_first_would_have(open_source, run_config, pipeline):
    """The same log gives the same next draws, whoever reads it."""
    first = open_source(make_pool("a", 40), make_pool("b", 40), ahead=8, seed=5)
    first.advance()
    for place, prompt in pipeline.prompts()[:5]:
        pipeline.answer(place, prompt.prompt_id, [1.0, 0.0, 0.0, 0.0], version=40)
    pipeline.send(run_config.topics.dead_letters, letter(run_config, pipeline.prompts()[6][0]).encode())
    pipeline.admit_all()
    seen = pipeline.prompts()
    assert len(list(first._reader.read_on())) == 5
    expected = first._draw(8)
    second = open_source(make_pool("a", 40), make_pool("b", 40), ahead=8, seed=5)
    for mine, other in zip(first.pools, second.pools, strict=True):
        for field in ("passes", "answers", "era", "in_flight", "given_up", "draws"):
            assert getattr(mine, field).tolist() == getattr(other, field).tolist()
    assert second.advance() == 8
    written = [prompt.encode() for _, prompt in pipeline.prompts()[len(seen) :]]
    assert written == [each.value for each in expected]


def letter(config, place, stage="generate"):
    return DeadLetter.of(stage, "engine_lost", "", (config.topics.prompts, *place), b"")


def test_the_second_of_two_fences_the_first(open_source, pipeline):
    first = open_source()
    first.advance()
    second = open_source()
    pipeline.admit_all()
    with pytest.raises(FencedError, match="a newer curriculum draws for run 'test-"):
        first.advance()
    assert second.advance() == 4
    assert numbers(pipeline) == list(range(1, 9))


def test_what_a_killed_one_had_open_is_no_prompt(run_config, open_source, pipeline):
    """Its records are in the log, uncommitted, when the next one starts."""
    killed = open_producer(run_config.kafka, run_config.topics.curriculum_id)
    killed.begin_transaction()
    value = order().pools[0].lines[0].replace(b'"metadata":{}', b'"metadata":{"curriculum":{"number":1}}')
    killed.send(run_config.topics.prompts, value, partition=1)
    killed.flush()
    source = open_source()
    assert source.written == 0
    source.advance()
    assert numbers(pipeline) == [1, 2, 3, 4]
    killed.close(timeout=0)


def test_rubbish_of_others_is_passed_over(run_config, open_source, pipeline):
    topics = run_config.topics
    for topic in (topics.prompts, topics.trajectories, topics.admission, topics.dead_letters):
        pipeline.send(topic, b'not a record of a "curriculum"', partition=0)
    source = open_source()
    assert source.advance() == 4
    pipeline.send(topics.trajectories, b"\xff" * 100, partition=1)
    pipeline.answer(GroupId(0, 10**12), "nobody/1", [1.0])
    assert source.advance() == 0


def test_where_all_prompts_die_it_says_so(run_config, open_source, pipeline):
    source = open_source(make_pool("sums", 1))
    source.advance()
    assert source.advance() == 0  # it may still be answered
    pipeline.send(run_config.topics.dead_letters, letter(run_config, pipeline.prompts()[0][0]).encode())
    with pytest.raises(RunError, match="all prompts became dead letters"):
        source.advance()


def test_it_goes_on_when_kafka_did_not_take_a_batch(run_config, pipeline, monkeypatch):
    curriculum = Curriculum(run_config, order(ahead=6, prompts=6))
    real, failed = type(curriculum._source._writer).write, []

    def fail_once(self, prompts, partitions):
        places = real(self, prompts, partitions)
        if not failed:
            failed.append(places)
            raise BrokerError("the answer got lost")  # and yet the prompts are there
        return places

    monkeypatch.setattr(type(curriculum._source._writer), "write", fail_once)
    curriculum.run()
    assert curriculum.close()["prompts"] == 6
    assert failed
    assert numbers(pipeline) == list(range(1, 7))


def test_a_start_that_fails_half_way_is_tried_again(run_config, pipeline, monkeypatch):
    """The broker goes away between two questions of a reader that is being opened."""
    curriculum, faults = Curriculum(run_config, order(ahead=6, prompts=6)), [BrokerError("gone"), KafkaTimeoutError()]

    def failing_once(kind, name):
        real, fault = getattr(kind, name), faults.pop(0)

        def call(*arguments):
            monkeypatch.setattr(kind, name, real)
            raise fault

        monkeypatch.setattr(kind, name, call)

    failing_once(Writer, "write")
    failing_once(KafkaConsumer, "beginning_offsets")
    curriculum.run()
    assert curriculum.close()["prompts"] == 6
    assert numbers(pipeline) == list(range(1, 7))


def test_it_gives_up_where_kafka_answers_and_takes_nothing(run_config, monkeypatch):
    """Each new start succeeds, and each batch fails."""
    monkeypatch.setattr("pipelines.curriculum.source._PATIENCE_S", 2.0)
    monkeypatch.setattr("pipelines.curriculum.source._PAUSE_S", 0.1)
    curriculum, tried = Curriculum(run_config, order()), []

    def refuse(*_):
        tried.append(time.monotonic())
        raise BrokerError("not authorized")

    monkeypatch.setattr(Writer, "write", refuse)
    began = time.monotonic()
    with pytest.raises(BrokerError, match="not authorized"):
        curriculum.run()
    assert len(tried) > 1
    assert time.monotonic() - began > 2
    assert curriculum.close()["prompts"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_transaction_open(open_source, pipeline, monkeypatch, number):
    """It comes when the prompts are sent and not committed."""
    first = open_source()
    producer = first._writer._producer
    flush = producer.flush

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return flush(*arguments)

    monkeypatch.setattr(producer, "flush", interrupted)
    with sigterm_is_ctrl_c(), pytest.raises(KeyboardInterrupt):
        first.advance()
    assert numbers(pipeline) == [1, 2, 3, 4]
    assert first.written == 4


def test_it_goes_on_when_the_broker_comes_back(tmp_path):
    """Away for longer than a request may take, and started again on the same log."""
    with Broker(tmp_path / "kafka") as broker:
        port = int(broker.bootstrap.rpartition(":")[2])
        config = RunConfig(name="away", kafka=KafkaConfig(bootstrap=broker.bootstrap, request_timeout_s=3.0))
        create_topics(config)
        curriculum = Curriculum(config, order(make_pool("sums", 40), ahead=4, prompts=20))
        thread = threading.Thread(target=curriculum.run, daemon=True)
        thread.start()
        with Pipeline(config) as pipeline:
            wait_until(lambda: numbers(pipeline) == [1, 2, 3, 4])
    time.sleep(5)
    assert thread.is_alive()
    with Broker(tmp_path / "kafka", port), Pipeline(config) as pipeline:
        pipeline.admit_all()
        wait_until(lambda: numbers(pipeline) == list(range(1, 9)))
        pipeline.admit(1000, 1000)
        thread.join(60)
        assert not thread.is_alive()
        assert numbers(pipeline) == list(range(1, 21))
        assert curriculum.close()["prompts"] == 20


class Verb:
    """``asyncflow curriculum`` in a process of its own."""

    def __init__(self, config, directory, file, *arguments, **environment):
        (directory / "config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        given = ["--config", str(directory / "config.toml"), "--files", str(file), *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.main", "curriculum", *given],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip

    def end(self, timeout_s=60):
        """Exit code, standard output and error."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_bytes(b"".join(line + b"\n" for line in make_pool("sums", 30).lines))
    return file


def test_killed_at_its_worst_moments_it_writes_no_number_twice(run_config, pipeline, tmp_path, file):
    room = tmp_path / "room"
    room.mkdir()
    for point, there in zip(CURRICULUM_POINTS, (0, 8), strict=True):
        arm(room, point)
        with Verb(run_config, tmp_path, file, "--ahead", "8", **{VARIABLE: str(room)}) as verb:
            assert verb.end()[0] == -signal.SIGKILL
        assert len(hits(room, point)) == 1
        assert len(pipeline.prompts()) == there
    pipeline.admit_all()
    with Verb(run_config, tmp_path, file, "--ahead", "8", "--prompts", "12") as verb:
        code, out, err = verb.end()
    assert (code, json.loads(out)["prompts"]) == (0, 12), err
    assert numbers(pipeline) == list(range(1, 13))
    assert len(set(names(pipeline))) == 12, "none was answered, so all are in flight"


def test_it_ends_on_sigterm_and_says_what_it_did(run_config, pipeline, tmp_path, file):
    with Verb(run_config, tmp_path, file, "--ahead", "2", "--seed", "3") as verb:
        (place, prompt), _ = wait_until(lambda: len(pipeline.prompts()) == 2 and pipeline.prompts())
        pipeline.answer(place, prompt.prompt_id, [1.0, 1.0])
        pipeline.admit_all()
        wait_until(lambda: len(pipeline.prompts()) == 4)
        verb.process.send_signal(signal.SIGTERM)
        code, out, err = verb.end()
    assert code == 0, err
    told = json.loads(out)
    assert told["tasks"] == {
        str(file): {"weight": 1.0, "prompts": 30, "drawn": 4, "seen": 1, "given_up": 0, "pass_rate": 1.0,
                    "too_easy": 1.0, "too_hard": 0.0}
    }  # fmt: skip
    assert (told["run"], told["prompts"], told["seed"]) == (run_config.name, 4, 3)
    assert "Traceback" not in err
    assert "shares={" in err


def test_a_fenced_one_ends_with_one_message(run_config, pipeline, tmp_path, file, open_source):
    with Verb(run_config, tmp_path, file, "--ahead", "2") as verb:
        wait_until(pipeline.prompts)
        with closing(Source(run_config, order(), Window())):
            pipeline.admit(1000, 1000)
            code, out, err = verb.end()
    assert (code, out) == (1, "")
    assert err.count("a newer curriculum draws for run") == 1
    assert "Traceback" not in err


def test_a_stranger_is_told_what_is_wrong(run_config, tmp_path, capsys, file):
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps({"name": "nowhere", "kafka": {"bootstrap": run_config.kafka.bootstrap}}))
    for arguments, message in (
        (["--files", str(file)], "exactly one of --run and --config"),
        (["--config", str(config)], "nothing to draw from"),
        (["--config", str(config), "--files", str(file), "--ahead", "0"], "--ahead 0: expected 1 or more"),
        (["--config", str(config), "--files", str(file), "--reward-low", "1"], "is not below reward_high"),
        (["--config", str(config), "--files", str(file)], "topic nowhere.admission does not exist"),
    ):
        assert main(["curriculum", *arguments]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1, "one message"


def test_two_threads_of_draws_leave_one_line(run_config, pipeline):
    """However two curricula are started, every number is in the log once."""
    ended = []

    def draw():
        try:
            curriculum = Curriculum(run_config, order(ahead=3, prompts=9))
            curriculum.run()
            curriculum.close()
        except FencedError:
            ended.append("fenced")

    threads = [threading.Thread(target=draw, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for offsets in ((4, 4), (8, 8), (1000, 1000)):
        wait_until(pipeline.prompts)
        pipeline.admit(*offsets)
    for thread in threads:
        thread.join(60)
    assert numbers(pipeline) == list(range(1, 10))
