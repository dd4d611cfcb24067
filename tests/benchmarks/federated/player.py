"""What answers the prompts of a site's run, in place of rollout pipeline and vLLM worker: a named instrument.

    prompts, admission, weights ──► the newest announced weights of the tiny model ──draw──► trajectories

Answers are one token long, drawn from the model at a speed of its own, with the logprobs of the draw: so four loops fit
on two cores.

    python -m tests.benchmarks.federated.player --config FILE --seconds 0.1 --seed 0      answers until SIGTERM
"""

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from schemas.admission import AdmissionFrontier
from schemas.config import load
from schemas.identity import GroupId
from schemas.prompts import Prompt
from schemas.trajectories import Span, encode
from schemas.weights import WeightVersion, version_path
from tests.benchmarks.federated import digits
from tests.support.samples import group


class Player:
    """Answers what is admitted, one prompt after the other.

    Args:
        config: of the run.
        seconds: for one group: how fast the site is.
        seed: of the draws.
    """

    def __init__(self, config, seconds, seed):
        from transformers import AutoModelForCausalLM

        self.config, self.seconds = config, seconds
        self._chance, self._version = np.random.default_rng(seed), 0
        self._model = AutoModelForCausalLM.from_pretrained(config.model.path).eval()

    def play(self, ended):
        """Until an event is set."""
        topics, kafka = self.config.topics, self.config.kafka
        consumer = KafkaConsumer(**kafka.consumer_options())
        names = (topics.weights, topics.admission, topics.prompts)
        consumer.assign([TopicPartition(name, p) for name in names for p in consumer.partitions_for_topic(name)])
        consumer.seek_to_beginning()
        producer = KafkaProducer(**kafka.producer_options())
        waiting = {number: deque() for number in range(kafka.partitions)}
        announced, frontier = None, {}
        due_s = time.monotonic()
        while not ended.is_set():
            for partition, records in consumer.poll(timeout_ms=20).items():
                for record in records:
                    if partition.topic == topics.weights:
                        announced = WeightVersion.decode(record.value)
                    elif partition.topic == topics.admission:
                        frontier = AdmissionFrontier.decode(record.value).frontier
                    else:
                        waiting[partition.partition].append((record.offset, Prompt.decode(record.value)))
            due_s = max(due_s, time.monotonic() - 0.1)  # what was not asked for in time is not made up for
            while announced and due_s <= time.monotonic() and (found := _next(waiting, frontier)):
                due_s += self.seconds
                self._answer(producer, announced, *found)
        consumer.close()
        producer.close(timeout=1)

    def _answer(self, producer, announced, partition, offset, prompt):
        logprobs = self._logprobs(announced, prompt.token_ids)
        shares, size = np.exp(logprobs), self.config.rollout.group_size
        chosen = self._chance.choice(len(logprobs), size, p=shares / shares.sum())
        right = digits.answer(digits.digit_of(prompt.token_ids))
        made = []
        for index, token in enumerate(chosen):
            made += group(
                partition, offset, size=1, run=self.config.name, attempt_id="only", task=prompt.task,
                prompt_token_ids=prompt.token_ids, response_token_ids=(int(token),),
                response_logprobs=(float(logprobs[token]),), loss_mask=(True,),
                weight_version_spans=(Span(self._version, 0),), weight_version_min=self._version,
                weight_version_max=self._version, reward=float(token == right),
            )  # fmt: skip
            made[-1] = replace(made[-1], sample_index=index)
        value, headers = encode(made)
        name = GroupId(partition, offset)
        producer.send(self.config.topics.trajectories, value, name.key(), list(headers.items()), partition)

    def _logprobs(self, announced, token_ids):
        """Of the one token that is answered."""
        import torch
        from safetensors.torch import load_file

        if announced.version != self._version:
            directory = Path(version_path(self.config.weights.root, announced.version))
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile: a newer one is on its way
                self._model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
                self._version = announced.version
        with torch.no_grad():
            logits = self._model(torch.tensor([token_ids])).logits[0, -1].double()
        return logits.log_softmax(0).numpy()


def _next(waiting, frontier):
    """The oldest admitted prompt that nobody has answered; null if there is none."""
    for partition, prompts in sorted(waiting.items(), key=lambda item: item[1][0][0] if item[1] else 1 << 60):
        if prompts and prompts[0][0] < frontier.get(partition, 0):
            return (partition, *prompts.popleft())
    return None


def main():
    """Runs one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    Player(load(options.config), options.seconds, options.seed).play(ended)
    return 0


if __name__ == "__main__":
    sys.exit(main())
