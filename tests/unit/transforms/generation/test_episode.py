"""Conversations: what is asked in each turn, what becomes of it, where it ends, and what faults cost."""

import asyncio
import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import aiohttp
import pytest

from pipelines.local.tiny_model import build_tiny_model
from schemas import traces
from schemas.config import EnvironmentsConfig, RolloutConfig, RunConfig, WorkerConfig
from schemas.errors import EngineError, EnvironmentFault
from schemas.identity import GroupId
from schemas.prompts import EnvironmentSpec, Message, Prompt
from schemas.trajectories import Group, Span, find_fault
from tests.support.samples import SAMPLE
from tests.support.simulated_engine import SimulatedEngine
from tests.support.spans import tracing
from tests.unit.transforms.environments import bad_environments
from transforms.environments import registry as environments
from transforms.environments.registry import Step
from transforms.generation import workers as workers_module
from transforms.generation.answer import Answerer
from transforms.generation.episode import Episodes, Turn
from transforms.generation.request import PromptRecord, Request
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import Workers
from transforms.rewards import registry

registry.load()
environments.load(EnvironmentsConfig(modules=(bad_environments.MODULE,)))
ALL_OF_4 = (Span(4, 0),)
SPEC = EnvironmentSpec(name="scripted", args={"says": ()})
END, USER, ASSISTANT = 2, 3, 4
"""Marks of the tiny model; its digits 0 to 9 are the tokens 6 to 15."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(str(build_tiny_model(tmp_path_factory.mktemp("model"))))


# ---- with literal answers ---------------------------------------------------------------------------


class Talk:
    """A table of answers and steps: what is asked for is recorded, what is said was given before.

    Args:
        answers: of the model, turn by turn: token ids, or a Sample.
        steps: of the environment, turn by turn; an exception is raised.
    """

    def __init__(self, answers, steps, group_size=1):
        self.answers, self.steps, self.group_size = answers, steps, group_size
        self.asked, self.preferred, self.told = [], [], []

    async def ask(self, request, prefer):
        turn = len(self.asked)
        self.asked.append(request)
        self.preferred.append(prefer)
        return Turn(tuple(self._answer(turn, index) for index in range(request.group_size)), 1.0)

    def _answer(self, turn, index):
        given = self.answers[turn]
        if isinstance(given, Exception):
            raise given
        if isinstance(given, tuple):
            given = answer(*given)
        return replace(given, sample_index=index, attempt_id=f"attempt {turn}", worker=f"http://worker-{turn}")

    @contextlib.asynccontextmanager
    async def opened(self, spec):
        yield SimpleNamespace(step=self._step)

    async def _step(self, answer):
        self.told.append(answer)
        given = self.steps[answer.turn - 1]
        if isinstance(given, Exception):
            raise given
        return given

    async def play(self, tokenizer, context_tokens=2048, sampling=None, trace=None, **limits):
        config = RunConfig(
            worker=WorkerConfig(max_model_len_tokens=context_tokens),
            rollout=RolloutConfig(environments=EnvironmentsConfig(**limits)),
        )
        episodes = Episodes(config, tokenizer)
        episodes._environments = self
        return await episodes.play(self._request(sampling or {}).below(trace), SPEC, self.ask)

    def _request(self, sampling):
        prompt = Prompt(token_ids=(7, 8), reward={"name": "environment"}, environment=SPEC)
        parameters = {"n": self.group_size, "logprobs": 0, "max_tokens": 20, **sampling}
        record = PromptRecord(GroupId(0, 38), b"{}", datetime.now(UTC))
        return Request(record, prompt, (7, 8), self.group_size, parameters, min_version=4)


def answer(*token_ids, spans=ALL_OF_4, finish_reason="stop"):
    versions = [span.version for span in spans]
    return replace(
        SAMPLE, prompt_token_ids=(7, 8), response_token_ids=token_ids, loss_mask=(True,) * len(token_ids),
        response_logprobs=(-0.5,) * len(token_ids), weight_version_spans=spans, weight_version_min=min(versions),
        weight_version_max=max(versions), finish_reason=finish_reason, reward=None, reward_parts={},
        response_text="".join(str(token - 6) for token in token_ids if token >= 6),
    )  # fmt: skip


def says(*texts, **given):
    return Step(messages=tuple(Message(role="user", content=text) for text in texts), **given)


DONE = Step(done=True, reward=1.0)


async def test_every_step_of_an_environment_is_a_span(tokenizer, tmp_path):
    talk = Talk([(7, END), (8, END), (9, END)], [says("2"), DONE], group_size=2)
    with tracing(tmp_path) as read:
        trace = traces.begin("demo/0/38", None, "test")
        await talk.play(tokenizer, trace=trace)
        found = read()
    assert {(span.name, span.parent_id) for span in found} == {("environment", trace.span_id)}
    steps = [(span.attributes["asyncflow.sample"], span.attributes["asyncflow.turn"]) for span in found]
    assert sorted(steps) == [(0, 1), (0, 2), (1, 1), (1, 2)]


async def test_turns_become_one_row(tokenizer):
    """Every number of it: ids as given, what the environment says masked, spans shifted, neighbours joined."""
    answers = [
        answer(6, 7, END, spans=(Span(4, 0), Span(5, 1))),
        answer(8, END, spans=(Span(5, 0),)),
        answer(9, 10, END, spans=(Span(5, 0), Span(7, 2))),
    ]
    talk = Talk(answers, [says("1", reward=-0.25, parts={"a": 1.0}), says("2"), DONE])
    (sample,) = await talk.play(tokenizer)
    assert sample.prompt_token_ids == (7, 8)
    assert list(sample.response_token_ids) == [6, 7, END, USER, 7, ASSISTANT, 8, END, USER, 8, ASSISTANT, 9, 10, END]
    own = [True, True, True, False, False, False, True, True, False, False, False, True, True, True]
    assert list(sample.loss_mask) == own
    assert list(sample.response_logprobs) == [-0.5 if said else 0.0 for said in own]
    assert sample.weight_version_spans == (Span(4, 0), Span(5, 1), Span(7, 13))
    assert (sample.weight_version_min, sample.weight_version_max) == (4, 7)
    assert (sample.reward, sample.reward_parts, sample.reward_error) == (0.75, {"a": 1.0}, None)
    assert (sample.finish_reason, sample.response_text) == ("stop", "34")
    assert (sample.worker, sample.attempt_id) == ("http://worker-2", "attempt 0")
    assert find_fault(sample) is None


async def test_every_turn_is_asked_with_all_that_was_said_and_of_the_last_ones_worker(tokenizer):
    talk = Talk([(6, END), (7, END), (8, END)], [says("1"), says("2", "3"), DONE])
    (sample,) = await talk.play(tokenizer)
    _, second, third = talk.asked
    assert second.token_ids == (7, 8, 6, END, USER, 7, ASSISTANT)
    assert third.token_ids == (*second.token_ids, 7, END, USER, 8, USER, 9, ASSISTANT)
    assert third.token_ids == (7, 8, *sample.response_token_ids[:-2])
    assert talk.preferred == [None, "http://worker-0", "http://worker-1"]
    assert [asked.min_version for asked in talk.asked] == [4, 4, 4]
    assert [(told.turn, told.text, told.token_ids) for told in talk.told] == [
        (1, "0", (6, END)), (2, "1", (7, END)), (3, "2", (8, END)),
    ]  # fmt: skip


async def test_the_first_turn_is_one_request_and_then_samples_go_their_own_way(tokenizer):
    talk = Talk([(6, END)] * 4, [says("1"), DONE], group_size=3)
    samples = await talk.play(tokenizer, sampling={"seed": 5})
    assert [sample.sample_index for sample in samples] == [0, 1, 2]
    assert len({sample.attempt_id for sample in samples}) == 1
    assert [asked.group_size for asked in talk.asked] == [3, 1, 1, 1]
    assert [asked.sampling_params["n"] for asked in talk.asked] == [3, 1, 1, 1]
    assert [asked.sampling_params["seed"] for asked in talk.asked] == [5, 8, 9, 10], "no two draw the same numbers"


@pytest.mark.parametrize(
    ("limits", "steps", "ended"),
    [
        ({"max_turns": 2}, [says("1", reward=0.5), says("2", reward=0.25)], ("turns", 2, 0.75)),
        ({"max_turns": 2}, [says("1"), DONE], ("stop", 2, 1.0)),
        ({"episode_timeout_s": 1.5}, [says("1", reward=0.5), says("2")], ("time", 2, 0.5)),
        ({"max_tokens": 7}, [says("1", reward=0.5), says("2"), DONE], ("length", 2, 0.5)),
        ({"max_tokens": 10}, [says("1", reward=0.5), says("2"), DONE], ("length", 2, 0.5)),
        ({"max_tokens": 11}, [says("1"), says("2"), DONE], ("stop", 3, 1.0)),
        ({"context_tokens": 12}, [says("1", reward=0.5), says("2"), DONE], ("length", 2, 0.5)),
        ({"context_tokens": 13}, [says("1"), says("2"), DONE], ("stop", 3, 1.0)),
    ],
)
async def test_a_limit_ends_a_sample_with_what_the_environment_gave_so_far(tokenizer, limits, steps, ended):
    """Two tokens an answer and three of the environment between them: 10 before the third answer."""
    talk = Talk([(6, END), (7, END), (8,)], steps)
    (sample,) = await talk.play(tokenizer, **limits)
    assert (sample.finish_reason, len(talk.asked), sample.reward) == ended
    assert sample.loss_mask[-1], "a row ends with what the model said"
    assert find_fault(sample) is None


async def test_no_answer_may_be_longer_than_what_is_left(tokenizer):
    talk = Talk([(6, END), (7, END), (8, END)], [says("1"), says("2"), DONE])
    await talk.play(tokenizer, max_tokens=15, sampling={"max_tokens": 12, "min_tokens": 9})
    assert [asked.sampling_params["max_tokens"] for asked in talk.asked] == [12, 10, 5]
    assert [asked.sampling_params["min_tokens"] for asked in talk.asked] == [9, 9, 5]
    talk = Talk([(6, END)], [DONE])
    await talk.play(tokenizer, context_tokens=9)
    assert talk.asked[0].sampling_params["max_tokens"] == 7


async def test_an_answer_that_was_cut_off_is_the_last_and_is_still_rewarded(tokenizer):
    talk = Talk([answer(6, 7, finish_reason="length")], [says("1", reward=0.25)])
    (sample,) = await talk.play(tokenizer)
    assert (sample.finish_reason, sample.reward, list(sample.response_token_ids)) == ("length", 0.25, [6, 7])


async def test_an_environment_that_gives_no_reward_leaves_it_null_with_a_reason(tokenizer):
    (sample,) = await Talk([(6, END)], [Step(done=True, parts={"a": 1.0})]).play(tokenizer)
    assert (sample.reward, sample.reward_parts) == (None, {})
    assert sample.reward_error == "environment_error: no step gave a reward in 1 turns"
    assert sample.finish_reason == "stop"


async def test_a_fault_in_a_later_turn_keeps_what_was_said(tokenizer):
    talk = Talk([(6, END), (7, END)], [says("1", reward=1.0), EnvironmentFault("environment_timeout", "too late")])
    (sample,) = await talk.play(tokenizer)
    assert (sample.reward, sample.reward_error) == (None, "environment_timeout: too late")
    assert (sample.finish_reason, list(sample.response_token_ids)) == ("error", [6, END, USER, 7, ASSISTANT, 7, END])


async def test_messages_that_cannot_be_tokenised_are_the_environments_fault(tokenizer):
    small = Tokenizer(tokenizer._tokenizer, 16)
    (sample,) = await Talk([(6, END)], [says("z", reward=1.0)]).play(small)
    assert sample.reward is None
    assert "beyond the model's vocabulary of 16" in sample.reward_error


async def test_an_engine_that_fails_ends_the_whole_group(tokenizer):
    talk = Talk([(6, END), EngineError("all attempts failed"), (7, END)], [says("1"), DONE], group_size=2)
    with pytest.raises(EngineError, match="all attempts failed"):
        await talk.play(tokenizer)


# ---- with simulated engines and environments in their processes -------------------------------------


def prompt(spec, reward=None, **more):
    reward = reward or {"name": "environment"}
    return {"token_ids": [7, 8], "reward": reward, "environment": spec, "group_size": 2, **more}


def scripted(*lines, rewards=()):
    return {"name": "scripted", "args": {"says": lines, "rewards": rewards}}


@contextlib.asynccontextmanager
async def answering(tokenizer, *engines, **limits):
    limits = EnvironmentsConfig(**{"modules": (bad_environments.MODULE,), "step_timeout_s": 5.0, **limits})
    urls = tuple(engine.url for engine in engines)
    config = RunConfig(rollout=RolloutConfig(workers=urls, attempts=2, environments=limits))
    async with aiohttp.ClientSession() as session:
        workers = Workers(urls, session, 0)
        answerer = Answerer(config, tokenizer, session, workers)

        async def answer(value, min_version=0):
            record = PromptRecord(GroupId(0, 3), json.dumps(value).encode(), datetime.now(UTC))
            return await asyncio.wait_for(answerer.answer(record, min_version), 30)

        yield answer
        await answerer.close()
        workers.close()


@pytest.fixture
def engine():
    with SimulatedEngine() as engine:
        yield engine


async def test_a_conversation_over_http_holds_together(tokenizer, engine):
    engine.version = 4
    async with answering(tokenizer, engine) as answer:
        group = await answer(prompt(scripted("1", "2", rewards=(0.5, None, 0.25))), min_version=4)
    assert isinstance(group, Group)
    assert [asked.body["sampling_params"]["n"] for asked in engine.requests] == [2, 1, 1, 1, 1]
    assert [asked.min_version for asked in engine.requests] == [4] * 5
    sent = sorted(tuple(asked.body["token_ids"]) for asked in engine.requests)
    for sample in group.samples:
        whole = [*sample.prompt_token_ids, *sample.response_token_ids]
        turns = [asked for asked in sent if whole[: len(asked)] == list(asked)]
        assert len(turns) == 3
        assert all(asked[-1] == ASSISTANT for asked in turns[1:])
        heard = [token for token, own in zip(sample.response_token_ids, sample.loss_mask, strict=True) if not own]
        assert heard == [USER, 7, ASSISTANT, USER, 8, ASSISTANT]
        assert (sample.reward, sample.finish_reason) == (0.75, "stop")
        assert find_fault(sample) is None


async def test_turns_of_one_conversation_go_to_one_worker(tokenizer):
    with SimulatedEngine(seed=1) as one, SimulatedEngine(seed=2) as other:
        async with answering(tokenizer, one, other) as answer:
            group = await answer(prompt(scripted("1", "2", "3"), group_size=1))
        assert sorted((len(one.requests), len(other.requests))) == [0, 4]
        assert group.samples[0].worker in (one.url, other.url)


async def test_a_worker_that_is_lost_between_turns_costs_only_the_turn(tokenizer, monkeypatch):
    monkeypatch.setattr(workers_module, "_LONGEST_PAUSE_S", 0.2)
    with SimulatedEngine(seed=1) as one, SimulatedEngine(seed=2) as other:
        async with answering(tokenizer, one, other) as answer:
            answered = asyncio.ensure_future(answer(prompt(scripted("1", "2", "3"), group_size=1)))
            while not (first := next((engine for engine in (one, other) if engine.requests), None)):
                await asyncio.sleep(0.001)
            first.die()
            group = await answered
        second = other if first is one else one
        assert group.samples[0].worker == second.url
        good = [asked.body["token_ids"] for asked in second.requests]
        assert len(good) in (3, 4), "the first turn, if it was answered, was not asked again"
        whole = [7, 8, *group.samples[0].response_token_ids]
        assert all(whole[: len(asked)] == asked for asked in good)


@pytest.mark.parametrize(("manner", "reason"), [("raises", "environment_error"), ("awaits", "environment_timeout")])
async def test_a_bad_environment_is_a_null_reward_whatever_reward_was_asked_for(tokenizer, engine, manner, reason):
    spec = {"name": "misbehaving", "args": {"manner": manner}}
    async with answering(tokenizer, engine, step_timeout_s=0.3) as answer:
        group = await answer(prompt(spec, reward={"name": "last_number", "args": {"answer": "5"}}))
    assert isinstance(group, Group)
    assert [sample.reward_error.split(":")[0] for sample in group.samples] == [reason] * 2
    assert [sample.finish_reason for sample in group.samples] == ["error"] * 2


async def test_engines_that_fail_are_a_dead_letter_as_ever(tokenizer, engine):
    engine.faults.extend([None, "error", "error", "error", "error"])
    async with answering(tokenizer, engine) as answer:
        letter = await answer(prompt(scripted("1")))
    assert (letter.stage, letter.reason) == ("generate", "engine_failed")


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (prompt({"name": "guess_numbr"}), "unknown_environment", "did you mean 'guess_number'"),
        (prompt({"name": "guess_number"}), "bad_environment_arguments", "secret"),
        (prompt(None), "bad_record", "the reward is the environment's, but there is none"),
        ({**prompt(scripted("1")), "token_ids": None, "text": "1"}, "bad_record", "text with an environment"),
    ],
)
async def test_a_prompt_with_a_wrong_environment_reaches_no_engine(tokenizer, engine, value, reason, detail):
    async with answering(tokenizer, engine) as answer:
        letter = await answer(value)
    assert letter.reason == reason
    assert detail in letter.detail
    assert not engine.requests
