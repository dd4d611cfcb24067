"""Simulated raters before a real broker: what waits for feedback is judged, and only that."""

import threading
import time

import pytest
from kafka import KafkaProducer

from pipelines.simulation.population import Habits, populate
from pipelines.simulation.rating import Rating
from pipelines.simulation.translators import Translators
from pipelines.tasks.translation import Translation
from schemas.feedback import Feedback
from schemas.receipts import Receipts
from schemas.trajectories import encode
from tests.support.samples import group
from tests.support.tasks import SENTENCES, write_data
from tests.support.trajectories import read_all


@pytest.fixture
def prompts(tmp_path):
    return list(Translation().prompts(write_data(tmp_path), "train"))


def write_answers(config, prompts, rows, texts, *, pause_s=0.0):
    """Groups that wait for feedback, one a row; the offset is the row."""
    producer = KafkaProducer(**config.kafka.producer_options())
    for row, text in zip(rows, texts, strict=True):
        samples = group(
            0, row, 2, run=config.name, prompt_id=prompts[row].prompt_id if row < len(prompts) else "sums/1+1",
            response_text=text, reward=None, reward_parts={},
        )  # fmt: skip
        value, headers = encode(samples)
        producer.send(config.topics.pending, value, headers=list(headers.items()), partition=row % 2)
        producer.flush()
        time.sleep(pause_s)
    producer.send(config.topics.pending, b"not a record", partition=0)
    producer.flush()
    producer.close()


def rate(config, prompts, *, answers, patience_s=30.0, **habits):
    users = populate(3, Habits(**{"noise": 0.0, "dropout": 0.0, "delay_s": 0.1, **habits}), 0)
    return Rating(config, Translators(prompts, users, 0.6, 0), answers, patience_s, window=2).run()


def judgements(config):
    return [Feedback.decode(record.value) for record in read_all(config, config.topics.feedback)]


def test_answers_are_judged_as_they_come(run_config, prompts):
    texts = [german if row != 1 else "A blue bus." for row, (_, german, _) in enumerate(SENTENCES)]
    late = threading.Thread(
        target=write_answers, args=(run_config, prompts, [0, 5, 1, 2], [texts[0], "2", texts[1], texts[2]]),
        kwargs={"pause_s": 0.3},
    )  # fmt: skip
    late.start()
    figures = rate(run_config, prompts, answers=6)
    late.join()
    told = {each.rollout_id: (each.kind, each.value) for each in judgements(run_config)}
    assert told == {
        f"{run_config.name}/0/{row}/{index}": ("correction", "Ein blauer Bus hält.") if row == 1 else ("thumb", 1.0)
        for row in (0, 1, 2)
        for index in (0, 1)
    }
    assert (figures["answers"], figures["judgements"]) == (6, {"thumb": 4, "correction": 2})
    assert [window["score"] for window in figures["windows"]][::2] == pytest.approx([1.0, 1.0])
    assert figures["windows"][1]["score"] < 0.6


def test_started_again_it_says_the_same_under_the_same_names(run_config, prompts):
    write_answers(run_config, prompts, [0, 1, 2, 3], ["x", "y", "z", SENTENCES[3][1]])
    for _ in range(2):
        figures = rate(run_config, prompts, answers=8, noise=0.3, dropout=0.3, delay_s=0.0)
        assert sum(figures["judgements"].values()) + figures["not_judged"] == 8
    said = [(each.feedback_id, each.rollout_id, each.kind, each.value, each.user) for each in judgements(run_config)]
    assert len(said) == 2 * len(set(said)) > 0


def test_it_ends_when_no_answer_comes_and_shows_receipts_where_the_run_wants_them(run_config, prompts, tmp_path):
    key = tmp_path / "receipts.key"
    key.write_text("0123456789abcdef")
    feedback = run_config.feedback.model_copy(update={"key_file": str(key)})
    config = run_config.model_copy(update={"feedback": feedback})
    write_answers(config, prompts, [4], ["x"])
    figures = rate(config, prompts, answers=100, patience_s=1.0)
    assert figures["answers"] == 2
    said = judgements(config)
    assert len(said) == 2
    for each in said:
        assert Receipts.load(str(key)).find_fault(each.receipt, each.rollout, each.user, time.time()) is None
