"""The engine checks itself: what it decodes is what it computes as a prompt."""

from types import SimpleNamespace

import pytest

from schemas.errors import RecordError, StateError
from transforms.generation.worker.engine import VllmEngine

PROMPT = [1, 2, 3]


class Client:
    """An engine that writes token 7 again and again, and says of it one thing while it writes, another later."""

    def __init__(self, *, decoded, read, max_model_len=64) -> None:
        self.model_config = SimpleNamespace(max_model_len=max_model_len, is_multimodal_model=False)
        self.asked = []
        self._decoded, self._read = decoded, read

    async def add_request(self, name, prompt, sampling, priority):
        self.asked.append((prompt["prompt_token_ids"], sampling))
        return self

    async def get(self):
        tokens, sampling = self.asked[-1]
        written = [7] * sampling.max_tokens
        logprobs = [{token: SimpleNamespace(logprob=self._decoded)} for token in written]
        read = [None, *({token: SimpleNamespace(logprob=self._read)} for token in tokens[1:])]
        output = SimpleNamespace(token_ids=written, logprobs=logprobs)
        return SimpleNamespace(finished=True, outputs=[output], prompt_logprobs=read)


async def test_an_engine_that_agrees_with_itself_passes():
    client = Client(decoded=-1.0, read=-1.1)
    await VllmEngine(client).check_decoding(PROMPT)
    assert client.asked[1][0] == PROMPT + [7] * 16


@pytest.mark.parametrize("decoded", [-7.0, float("nan")])
async def test_an_engine_that_decodes_nonsense_is_told(decoded):
    with pytest.raises(StateError, match=r"try worker\.enforce_eager"):
        await VllmEngine(Client(decoded=decoded, read=-1.0)).check_decoding(PROMPT)


async def test_it_writes_no_more_than_fits():
    client = Client(decoded=-1.0, read=-1.0, max_model_len=8)
    await VllmEngine(client).check_decoding(PROMPT)
    assert client.asked[0][1].max_tokens == 4


class Workers:
    """The processes that hold the model: what they are asked, and what they answer one after the other."""

    def __init__(self, *answers) -> None:
        self.asked, self._answers = [], list(answers)

    async def collective_rpc(self, method, args):
        self.asked.append(method)
        return self._answers.pop(0)


async def test_a_copy_that_is_made_at_once_is_not_asked_for_again():
    workers = Workers(["", ""])
    await VllmEngine(workers).open_snapshot("source", "layout")
    assert workers.asked == ["begin_snapshot"]


async def test_a_copy_that_takes_time_is_waited_for_in_every_worker():
    workers = Workers([None, None], ["", None], ["", "bad_files: blocks [0] of 1"])
    with pytest.raises(RecordError, match=r"blocks \[0\] of 1") as refusal:
        await VllmEngine(workers).open_snapshot("source", "layout")
    assert refusal.value.reason == "bad_files"
    assert workers.asked == ["begin_snapshot", "poll_snapshot", "poll_snapshot"]


class Swapping(Client):
    """Also swaps weights; writes down what reaches the engine process, in order."""

    def __init__(self, *, resets=True) -> None:
        super().__init__(decoded=-1.0, read=-1.0)
        self.calls, self._resets = [], resets
        self.renderer = SimpleNamespace(clear_mm_cache_async=self._called("clear_mm_cache"))
        self.engine_core = SimpleNamespace(pause_scheduler_async=self._called("pause"))
        self.collective_rpc = self._called("replace")
        self.update_weight_version = self._called("version")
        self.reset_prefix_cache = self._called("reset", resets)
        self.resume_generation = self._called("resume")

    def _called(self, name, answer=None):
        async def call(*_, **__):
            self.calls.append(name)
            return answer

        return call

    async def add_request(self, name, prompt, sampling, priority):
        self.calls.append("ask")
        return await super().add_request(name, prompt, sampling, priority)


async def test_requests_wait_from_before_the_weights_are_replaced_until_the_probe_is_in_front_of_them():
    client = Swapping()
    loading = await VllmEngine(client).load(2, PROMPT)
    assert client.calls[:6] == ["pause", "replace", "version", "reset", "ask", "resume"]
    assert loading.probe_logprobs == [-1.0, -1.0]


async def test_an_engine_that_sees_forgets_what_it_saw_too():
    client = Swapping()
    client.model_config.is_multimodal_model = True
    await VllmEngine(client).load(2, PROMPT)
    assert client.calls[:2] == ["clear_mm_cache", "pause"]


async def test_an_engine_that_keeps_keys_of_the_old_weights_does_not_go_on():
    client = Swapping(resets=False)
    with pytest.raises(StateError, match="prefix cache was not reset"):
        await VllmEngine(client).load(2, PROMPT)
    assert "resume" not in client.calls
