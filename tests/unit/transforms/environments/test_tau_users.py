"""Users of the shop whom a model plays, behind a route that serves what it is told to."""

import json

import pytest

from schemas.config import EnvironmentsConfig
from schemas.errors import ConfigError, EnvironmentFault
from schemas.prompts import EnvironmentSpec
from schemas.services import UserModelConfig
from tests.support.chat_server import ChatServer
from tests.support.shop import CANCEL, write_shop
from transforms.environments.processes import EnvironmentProcesses
from transforms.environments.registry import Answer
from transforms.environments.tau_retail.user import GREETING, Played, play

CALL = json.dumps({"name": CANCEL["name"], "arguments": CANCEL["kwargs"]})
CASE = {
    "actions": [{"name": CANCEL["name"], "arguments": CANCEL["kwargs"]}],
    "user": "model",
    "instruction": "Cancel order #W1.",
}


def config(server, **more):
    return UserModelConfig(url=server.url, model="player", **more)


async def converse(tmp_path, user, *texts):
    """The steps of a conversation in a process of its own."""
    environments = EnvironmentProcesses(EnvironmentsConfig(data={"tau_retail": write_shop(tmp_path)}, user=user))
    try:
        async with environments.opened(EnvironmentSpec(name="tau_retail", args=CASE)) as instance:
            return [await instance.step(Answer(turn=1, text=text, token_ids=())) for text in texts]
    finally:
        await environments.close()


async def test_a_model_hears_what_is_said_to_the_user_and_ends_the_conversation(tmp_path):
    async with ChatServer(" Cancel #W1, please. ", "Thank you. ###STOP###").running() as server:
        steps = await converse(tmp_path, config(server), "How can I help?", CALL, "It is cancelled.")
    assert steps[0].messages[0].model_dump() == {"role": "user", "content": "Cancel #W1, please."}
    assert [step.done for step in steps] == [False, False, True]
    assert [step.reward for step in steps] == [0.0, 0.0, 1.0]
    assert [message["content"] for message in server.requests[-1][0]["messages"]] == [
        play("Cancel order #W1."), GREETING, "How can I help?", "Cancel #W1, please.", "It is cancelled.",
    ]  # fmt: skip
    assert [message["role"] for message in server.requests[-1][0]["messages"]] == [
        "system", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert "tool_response" not in json.dumps(server.requests[-1][0]), "users do not see tools"


async def test_the_configuration_says_which_model_with_which_key_and_how(monkeypatch):
    monkeypatch.setenv("PLAYER_KEY", "s3cret")
    async with ChatServer("Yes.").running() as server:
        user = Played("Cancel.", config(server, key_env="PLAYER_KEY", temperature=0.5, max_tokens=9))
        assert await user.answer("Shall I?", has_acted=False) == "Yes."
        await user._service.close()
    body, headers = server.requests[0]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
        "model": "player", "temperature": 0.5, "max_tokens": 9,
    }  # fmt: skip
    assert headers["Authorization"] == "Bearer s3cret"


async def test_what_may_pass_is_tried_again(tmp_path):
    async with ChatServer(503, 429, "Yes.").running() as server:
        (step,) = await converse(tmp_path, config(server), "Shall I?")
    assert step.messages[0].content == "Yes."
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("lines", "requests", "detail"),
    [
        ((500, 500, 500), 2, "500"),
        ((400, "Yes."), 1, "user_refused: user:model: 400"),
        (({"choices": []},) * 2, 2, "user_failed: 2 requests failed; user:model: not an answer: .*without choices"),
        (({"choices": [{"message": {"content": None}}]},) * 2, 2, r"choices\[0\]\.message\.content is null"),
        (({"error": "no"},) * 2, 2, "choices"),
    ],
)
async def test_a_model_that_does_not_answer_costs_the_sample_its_reward(tmp_path, lines, requests, detail):
    async with ChatServer(*lines).running() as server:
        with pytest.raises(EnvironmentFault, match=detail) as caught:
            await converse(tmp_path, config(server, attempts=2), "Shall I?")
    assert caught.value.reason == "environment_error"
    assert len(server.requests) == requests


@pytest.mark.parametrize("status", [302, 401])
async def test_a_model_that_takes_no_request_is_waited_for_no_longer_than_patience(tmp_path, status):
    async with ChatServer(*[status] * 50).running() as server:
        with pytest.raises(EnvironmentFault, match=f"user_unavailable: .*{status}"):
            await converse(tmp_path, config(server, timeout_s=1, patience_s=1), "Shall I?")
    assert 1 < len(server.requests) < 10


async def test_a_prompt_that_asks_for_a_model_where_none_is_configured_says_what_to_set(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"rollout\.environments\.user\.url"):
        await converse(tmp_path, UserModelConfig(), "Shall I?")


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("PLAYER_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"PLAYER_KEY \(key_env\) is not set"):
        Played("Cancel.", UserModelConfig(url="http://127.0.0.1:1", model="player", key_env="PLAYER_KEY"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", "http://key@host", "http://host/?a"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="url"):
        UserModelConfig(url=url)
