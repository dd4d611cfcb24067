"""An evaluation that follows a run: real broker and reward processes, the simulated engine, no learner."""

import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch
from kafka import KafkaProducer

from pipelines.cli.main import main
from pipelines.evaluation.announcements import read_results
from pipelines.evaluation.follow import Evaluator
from pipelines.evaluation.prompts import HeldOut
from pipelines.evaluation.relay import Relay
from pipelines.log import TopicReader
from schemas.config import validate
from schemas.errors import ConfigError, EngineError
from schemas.ledger import StartEntry, StepEntry
from schemas.prompts import Prompt, RewardSpec
from schemas.weights import WeightVersion, held_versions
from schemas.workers import WorkerEntry
from tests.support.simulated_engine import SimulatedEngine
from tests.support.weights import write_version
from trainers.log import read_topic
from trainers.publish import WeightStore

REWARDS = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.7}


@pytest.fixture
def engine():
    with SimulatedEngine(obliging=True, vocabulary=(6, 16)) as engine:
        yield engine


@pytest.fixture
def configure(run_config, model_dir, engine, tmp_path):
    def configured(*, keep=1, steps=3, **evaluation):
        tree = run_config.model_dump()
        tree["model"]["path"] = str(model_dir)
        tree["weights"] |= {"root": str(tmp_path / "weights"), "keep": keep}
        tree["learner"]["steps"] = steps
        tree["rollout"] |= {"workers": (engine.url,), "discover": False, "attempts": 2}
        tree["rollout"]["sampling"]["max_tokens"] = 6
        tree["rewards"] |= {"modules": ("tests.support.version_reward",), "timeout_s": 0.5}
        tree["evaluation"] |= evaluation
        return validate(tree, "test")

    return configured


def held_out(count=3, rewards=REWARDS):
    reward = RewardSpec(name="by_version", args={"by_version": {str(key): value for key, value in rewards.items()}})
    return HeldOut(tuple(Prompt(token_ids=(7, 6 + index), task="sums", reward=reward) for index in range(count)))


class Learner:
    """What a learner would have written, and the store that it would have pruned."""

    def __init__(self, config):
        self._config = config
        self._producer = KafkaProducer(**config.kafka.producer_options())
        self._store = WeightStore(config.weights)
        self.version = 0
        self._write(config.topics.ledger, StartEntry(generation=1))
        self.step()

    def close(self):
        self._producer.close()

    def step(self):
        """Announces the next version; the first one is the untrained weights."""
        self.version += 1
        probe = {"token_ids": [1, 2], "logprobs": [-1.0]}
        tensors = {"w": torch.full((4,), float(self.version))}
        announced = write_version(self._config.weights.root, self.version, tensors, probe=probe)
        if self.version > 1:
            entry = StepEntry(generation=1, step=self.version - 1, version=self.version, trained=(), dropped=(),
                              metrics={})  # fmt: skip
            self._write(self._config.topics.ledger, entry)
        self._write(self._config.topics.weights, announced)
        self._store.prune(self.version)
        return announced

    def _write(self, topic, record):
        self._producer.send(topic, record.encode()).get(timeout=60)


@pytest.fixture
def start():
    """A learner, and an evaluator that looks when it is told to."""
    with ExitStack() as opened:

        def started(config, prompts=None):
            learner = opened.enter_context(closing(Learner(config)))
            return learner, Evaluator(config, prompts or held_out(), opened)

        yield started


def stored(config):
    return sorted(int(path.name) for path in Path(config.weights.root).iterdir() if path.name.isdigit())


def in_short(config):
    return [(each.version, round(each.value, 3), each.best) for each in read_results(config)]


def test_every_version_is_measured_the_best_is_marked_and_stays_in_the_store(configure, start, engine):
    config = configure(steps=3)
    learner, evaluator = start(config)
    assert not evaluator.advance()
    for _ in range(3):
        learner.step()
        evaluator.advance()
    assert evaluator.advance()  # the run is over, and so is the evaluation
    assert in_short(config) == [(1, 0.2, True), (2, 0.9, True), (3, 0.5, False), (4, 0.7, False)]
    assert stored(config) == [2, 4]
    assert all(asked.body["sampling_params"]["temperature"] == 0 for asked in engine.requests)
    assert [asked.min_version for asked in engine.requests] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    first = read_results(config)[0]
    assert (first.prompts, first.samples, first.version_max, first.temperature) == (3, 3, 1, 0)


def test_a_later_evaluator_goes_on_where_the_last_one_ended(configure, start):
    config = configure(steps=9)
    learner, evaluator = start(config)
    learner.step()
    evaluator.advance()
    with ExitStack() as opened:
        later = Evaluator(config, held_out(), opened)
        later.advance()  # nothing new: nothing is asked again
        learner.step()
        later.advance()
        learner.step()
    assert in_short(config) == [(2, 0.9, True), (3, 0.5, False)]
    assert held_versions(WeightStore(config.weights)._files, config.weights.root) == {"held-out": {2}}
    assert stored(config) == [2, 4]


def test_between_turns_nothing_is_asked_but_the_last_version_always_is(configure, start):
    config = configure(every=2, steps=3)
    learner, evaluator = start(config)
    for _ in range(3):
        evaluator.advance()
        learner.step()
    evaluator.advance()
    assert [version for version, *_ in in_short(config)] == [1, 3, 4]


def test_the_version_that_is_asked_stays_while_it_is(configure, start, engine):
    config = configure(steps=9)
    learner, evaluator = start(config)
    engine.slow_s[7] = 0.5
    asking = threading.Thread(target=evaluator.advance, daemon=True)
    asking.start()
    while not engine.requests:
        time.sleep(0.01)
    for _ in range(3):
        learner.step()
    assert stored(config) == [1, 4]
    asking.join()
    assert in_short(config) == [(1, 0.2, True)]


def test_answers_of_two_versions_are_told_and_never_the_best(configure, start, engine):
    config = configure(steps=9)
    learner, evaluator = start(config)
    evaluator.advance()
    learner.step()
    engine.slow_s[7] = 0.5
    engine.mean_tokens = 50
    asking = threading.Thread(target=evaluator.advance, daemon=True)
    asking.start()
    while len(engine.requests) < 6:
        time.sleep(0.01)
    engine.version = 3
    asking.join()
    second = read_results(config)[1]
    assert (second.version, second.version_max, second.value, second.best) == (2, 3, pytest.approx(0.9), False)


def test_a_version_that_is_in_no_store_is_never_the_best(configure, start, engine):
    config = configure(steps=9)
    _, evaluator = start(config, held_out(rewards=REWARDS | {7: 1.0}))
    engine.version = 7
    evaluator.advance()
    assert in_short(config) == [(7, 1.0, False)]


def test_pass_at_k_is_written_beside_the_greedy_answers(configure, start, engine):
    config = configure(samples=4, pass_at=(1, 4), temperature=0.8, success_reward=0.2)
    _, evaluator = start(config)
    evaluator.advance()
    results = read_results(config)
    assert [(each.metric, each.temperature, each.samples, each.value) for each in results] == [
        ("mean_reward", 0, 3, pytest.approx(0.2)),
        ("mean_reward", 0.8, 12, pytest.approx(0.2)),
        ("pass@1", 0.8, 12, 1),
        ("pass@4", 0.8, 12, 1),
    ]
    assert [asked.body["sampling_params"]["n"] for asked in engine.requests] == [1] * 3 + [4] * 3


def test_a_reward_that_hangs_is_null_and_counted_and_a_refused_prompt_is_unanswered(configure, start, engine):
    config = configure()
    engine.always[9] = "refuse"
    hanging = held_out(1, {1: None}).prompts[0]
    refused = held_out(1).prompts[0].model_copy(update={"token_ids": (9,)})
    _, evaluator = start(config, HeldOut((*held_out(2).prompts, hanging, refused)))
    evaluator.advance()
    (found,) = read_results(config)
    assert (found.prompts, found.samples, found.null_rewards, found.unanswered) == (4, 2, 1, 1)
    assert found.value == pytest.approx(0.2)


def test_a_version_that_nobody_answers_is_passed_over_unless_it_is_the_last(configure, start, engine):
    config = configure(steps=1, patience_s=0.4)
    learner, evaluator = start(config)
    engine.slow_s[7] = 30
    assert not evaluator.advance()
    learner.step()
    with pytest.raises(
        EngineError, match=r"3 held-out prompts were not answered by version 2 or newer .*patience_s = 0.4 s"
    ):
        evaluator.advance()
    assert in_short(config) == []
    assert held_versions(WeightStore(config.weights)._files, config.weights.root) == {}


def test_answers_of_older_weights_than_were_asked_for_are_refused(configure, start, engine):
    config = configure(steps=1)
    engine.obliging = False
    learner, evaluator = start(config)
    learner.step()
    with pytest.raises(EngineError, match="answered with version 1, asked for 2 or newer"):
        evaluator.advance()
    assert in_short(config) == []


# ------------------------------------------------------------------------------ workers of their own


def test_workers_of_evaluations_alone_get_each_version_when_its_turn_comes(configure, engine, run_config):
    name = f"{run_config.name}-eval"
    config = configure(steps=2, every=2, worker_run=name)
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"workers": ()})})
    apart = config.model_copy(update={"name": name})
    with ExitStack() as opened:
        learner = opened.enter_context(closing(Learner(config)))
        evaluator = Evaluator(config, held_out(), opened)
        entry = WorkerEntry(url=engine.url, state="up", version=0, max_num_seqs=64)
        learner._write(apart.topics.workers, entry)
        for _ in range(2):
            evaluator.advance()
            learner.step()
        evaluator.advance()
        assert evaluator.advance()
    announced = [WeightVersion.decode(record.value) for record in read_topic(apart, apart.topics.weights)]
    assert [each.version for each in announced] == [1, 3]
    assert announced[1] == WeightVersion.decode(read_topic(config, config.topics.weights)[-1].value)
    assert in_short(config) == [(1, 0.2, True), (3, 0.5, True)]


def test_workers_are_told_of_a_version_once_and_never_of_another_runs(configure, run_config):
    config = configure(worker_run=f"{run_config.name}-eval")
    with closing(Learner(config)) as learner:
        first, second = (WeightVersion.decode(read_topic(config, config.topics.weights)[0].value), learner.step())
    for announced in (first, first, second):
        Relay(config).announce(announced)
    with pytest.raises(ConfigError, match="were given version 2 of generation 1 before"):
        Relay(config).announce(first)
    topic = config.model_copy(update={"name": config.evaluation.worker_run}).topics.weights
    assert [record.value for record in read_topic(config, topic)] == [first.encode(), second.encode()]


def test_the_workers_of_a_run_that_trains_are_never_given_other_weights(configure, start, run_config):
    config = configure()
    learner, _ = start(config)
    other = config.model_copy(
        update={"name": "other", "evaluation": config.evaluation.model_copy(update={"worker_run": config.name})}
    )
    from pipelines.local.topics import create_topics

    create_topics(other)
    with ExitStack() as opened, pytest.raises(ConfigError, match="is a run with a learner"):
        Evaluator(other, held_out(), opened)
    reader = TopicReader(config.kafka, config.topics.weights)
    assert len(list(reader.read_on())) == learner.version
    reader.close()


# ----------------------------------------------------------------------------------- command line


def test_the_command_ends_when_the_run_has(configure, tmp_path, capsys):
    import tomli_w

    config = configure(steps=1)
    with closing(Learner(config)) as learner:
        learner.step()
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    (tmp_path / "held-out.jsonl").write_bytes(b"\n".join(each.encode() for each in held_out().prompts))
    assert (
        main(["evaluate", "--config", str(tmp_path / "config.toml"), "--prompts", str(tmp_path / "held-out.jsonl")])
        == 0
    )
    assert in_short(config) == [(2, 0.9, True)]
    assert main(["evaluate", "--config", str(tmp_path / "config.toml")]) == 2
    assert "--prompts FILE is missing" in capsys.readouterr().err
