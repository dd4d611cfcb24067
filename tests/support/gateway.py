"""A gateway in a thread of its own, on a real broker; its workers are what the configuration names.

with Gateway(config) as gateway:
    gateway.url, gateway.http         # where it listens, an httpx client for it
"""

import asyncio
import contextlib
import json
import threading

import httpx
from kafka import KafkaProducer

from pipelines.gateway.serve import parts_of, server_of
from pipelines.local.tiny_model import ALPHABET, SPECIAL, build_tiny_model
from schemas.feedback import Feedback
from schemas.ledger import StepEntry, TrainedGroup
from schemas.outcomes import FeedbackFate, Outcome
from schemas.receipts import Receipts
from schemas.trajectories import decode
from schemas.weights import WeightVersion
from tests.support.simulated_engine import END
from tests.support.trajectories import read_all, wait_until
from transforms.generation.tokenizer import Tokenizer
from transforms.listening import reserve_port


class Gateway:
    """Serves while it is open. ``parts`` are what its routes are made of."""

    def __init__(self, config):
        self.config = config
        self.url = f"http://127.0.0.1:{config.gateway.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self._serving = threading.Event()
        self._fault = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def _run(self):
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised where the gateway was opened
            self._fault = error
        finally:
            self._serving.set()

    async def _serve(self):
        config = self.config
        receipts = Receipts.load(config.feedback.key_file) if config.feedback.key_file else None
        with reserve_port("gateway", "127.0.0.1", config.gateway.port) as listener:
            async with parts_of(config, Tokenizer.load(config.model.path), receipts) as self.parts:
                self.server = server_of(self.parts)
                serving = asyncio.create_task(self.server.serve(sockets=[listener]))
                while not self.server.started and not serving.done():
                    await asyncio.sleep(0.01)
                while not self.parts.desk._workers.some_up and not serving.done():
                    await asyncio.sleep(0.01)
                self._serving.set()
                await serving

    def __enter__(self):
        self._thread.start()
        self._serving.wait()
        if self._fault:
            raise self._fault
        return self

    def __exit__(self, *_):
        self.http.close()
        self.server.should_exit = True
        self._thread.join(60)

    def ask(self, text, **more):
        """The response to one question."""
        body = {"messages": [{"role": "user", "content": text}], **more}
        return self.http.post("/v1/chat/completions", json=body)

    @contextlib.contextmanager
    def stream(self, text, **more):
        """The streamed response to one question."""
        body = {"messages": [{"role": "user", "content": text}], "stream": True, **more}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            yield response

    def judge(self, rollout, kind, value, **more):
        """The response to one judgement."""
        return self.http.post("/feedback", json={"rollout_id": rollout, "kind": kind, "value": value, **more})


class Others:
    """The feedback pipeline and the learner, as far as a gateway hears of them."""

    def __init__(self, config):
        self._config, self._topics = config, config.topics
        self._producer = KafkaProducer(**config.kafka.producer_options())

    def judgements(self, number):
        """The places and records of feedback, once there are so many."""

        def read():
            records = read_all(self._config, self._topics.feedback)
            return len(records) >= number and records

        found = wait_until(read, 20)
        return [((each.partition, each.offset), Feedback.decode(each.value)) for each in found]

    def use(self, place, feedback, contributions):
        fate = FeedbackFate(at=place, fate="used", id=feedback.feedback_id)
        group = feedback.rollout.group
        outcome = Outcome(kind="joined", group=group, feedback=(fate,), contributions=contributions, rewards={0: 1.0})
        self._send(self._topics.outcomes, outcome)

    def train(self, step, version, *groups):
        trained = tuple(TrainedGroup(group=each, at=(0, 0), attempt="a", samples=1, versions=(1, 1)) for each in groups)
        entry = StepEntry(generation=1, step=step, version=version, trained=trained, dropped=())
        self._send(self._topics.ledger, entry)
        self.announce(version, step)

    def announce(self, version, step):
        facts = {"manifest_sha256": "0" * 64, "dtype": "float32", "base_model": "tiny"}
        self._send(self._topics.weights, WeightVersion(version=version, step=step, generation=1, **facts))

    def _send(self, topic, record):
        self._producer.send(topic, record.encode()).get(10)


def events_of(response):
    """The events of a streamed response, ``[DONE]`` as None."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield None if data == "[DONE]" else json.loads(data)


def text_of(events):
    """What an answer said in all."""
    return "".join(
        choice["delta"].get("content", "") for event in events if event for choice in event.get("choices", ())
    )


_MARKUP = str.maketrans("WXYZ", '<>";')
_LETTERS = ALPHABET.translate(_MARKUP)


def build_model(directory):
    """The tiny model; in place of four letters it can say what markup is made of."""
    build_tiny_model(directory)
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word.translate(_MARKUP) if len(word) == 1 else word: number for word, number in vocabulary.items()
    }
    file.write_text(json.dumps(tokenizer))
    return directory


def tokens_of(text):
    """What that model says it with."""
    return [len(SPECIAL) + _LETTERS.index(letter) for letter in text] + [END]


def rows_of(config):
    """The samples of the pending topic."""
    records = read_all(config, config.topics.pending)
    return [sample for record in records for group in decode(record.value, dict(record.headers)) for sample in group]
