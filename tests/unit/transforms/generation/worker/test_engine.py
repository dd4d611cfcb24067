"""The engine checks itself: what it decodes is what it computes as a prompt."""

from types import SimpleNamespace

import pytest

from schemas.errors import StateError
from transforms.generation.worker.engine import VllmEngine

PROMPT = [1, 2, 3]


class Client:
    """An engine that writes token 7 again and again, and says of it one thing while it writes, another later."""

    def __init__(self, *, decoded, read, max_model_len=64) -> None:
        self.model_config = SimpleNamespace(max_model_len=max_model_len)
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
