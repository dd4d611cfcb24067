"""Judgements on a real broker: what is taken, what is refused, and what is told of them afterwards."""

import base64
import json
import os
import time

import httpx
import pytest
from kafka import KafkaProducer

from pipelines.local.broker import Broker
from pipelines.local.topics import create_topics
from schemas.feedback import Feedback
from schemas.identity import GroupId, RolloutId
from schemas.ledger import StepEntry, TrainedGroup
from schemas.outcomes import FeedbackFate, Outcome
from schemas.receipts import Receipts
from schemas.weights import WeightVersion
from tests.support.gateway import Gateway
from tests.support.trajectories import read_all, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef")
    return str(tmp_path / "key")


def feedback_of(config):
    return [Feedback.decode(record.value) for record in read_all(config, config.topics.feedback)]


def append(config, topic, *records):
    producer = KafkaProducer(**config.kafka.producer_options())
    for record in records:
        producer.send(topic, record.encode()).get(10)
    producer.close()


def test_a_judgement_is_in_the_topic_before_it_is_acknowledged(gateway):
    rollout = gateway.ask("Hi", user="ann").headers["X-AsyncFlow-Rollout"]
    told = gateway.judge(rollout, "thumb", 1, user="ann")
    assert told.status_code == 202
    (record,) = read_all(gateway.config, gateway.config.topics.feedback)
    assert record.key == rollout.encode()
    feedback = Feedback.decode(record.value)
    assert feedback.feedback_id == told.json()["feedback_id"]
    assert (feedback.kind, feedback.value, feedback.user, feedback.rollout_id) == ("thumb", 1.0, "ann", rollout)
    assert abs(feedback.at.timestamp() - time.time()) < 60


def test_every_kind_is_taken(gateway):
    rollout = f"{gateway.config.name}/0/7/1"
    neighbour = f"{gateway.config.name}/0/7/0"
    given = {"thumb": -1, "score": 0.25, "preference": neighbour, "correction": "<b>5</b>", "retract": None}
    assert {gateway.judge(rollout, kind, value).status_code for kind, value in given.items()} == {202}
    told = {each.kind: each.value for each in feedback_of(gateway.config)}
    assert told == given


def test_a_judgement_that_is_sent_again_is_the_same_record(gateway):
    rollout = f"{gateway.config.name}/0/7/1"
    named = {"feedback_id": "f-1", "at": "2026-01-31T12:00:00Z", "user": "ann", "schema": 1}
    assert {gateway.judge(rollout, "thumb", 1, **named).status_code for _ in range(2)} == {202}
    first, second = read_all(gateway.config, gateway.config.topics.feedback)
    assert first.value == second.value
    assert first.partition == second.partition


def test_what_is_no_judgement_is_refused_with_a_sentence_and_appended_nowhere(gateway):
    rollout = f"{gateway.config.name}/0/7/1"
    good = {"rollout_id": rollout, "kind": "thumb", "value": 1}
    refused = {
        b"\xff\xfe": "not JSON",
        b"[" * 100_000: "not JSON",
        b"[]": "no JSON object",
        b"{}": "rollout_id",
        json.dumps({**good, "kind": "like"}).encode(): "kind",
        json.dumps({**good, "value": 0}).encode(): "expected -1 or 1",
        json.dumps({**good, "kind": "score", "value": 1.5}).encode(): "expected a number from -1 to 1",
        json.dumps({**good, "kind": "score", "value": float("nan")}).encode(): "value",
        json.dumps({**good, "kind": "correction", "value": ""}).encode(): "a text that is not empty",
        json.dumps({**good, "kind": "preference", "value": rollout}).encode(): "another answer of the same group",
        json.dumps({**good, "rollout_id": "other/0/7/1"}).encode(): "of another run",
        json.dumps({**good, "rollout_id": f"{gateway.config.name}/00/7/1"}).encode(): "RUN/PARTITION/OFFSET/SAMPLE",
        json.dumps({**good, "rollout_id": f"{rollout}\r\nX-Evil: 1"}).encode(): "RUN/PARTITION/OFFSET/SAMPLE",
        json.dumps({**good, "at": "9999-01-01T00:00:00Z"}).encode(): "in the future",
        json.dumps({**good, "user": ""}).encode(): "user",
        json.dumps({**good, "user": {"name": "ann"}}).encode(): "user",
        json.dumps({**good, "user": "a" * 257}).encode(): "user",
        json.dumps({**good, "vote": 1}).encode(): "vote",
        json.dumps({**good, "value": "\ud800"}).encode(): "",
        json.dumps({**good, "kind": "correction", "value": "\ud800"}).encode(): "",
    }
    for body, reason in refused.items():
        answer = gateway.http.post("/feedback", content=body)
        assert answer.status_code == 400, body[:200]
        assert reason in answer.json()["error"]["message"]
    assert gateway.http.post("/feedback", content=b"<x/>", headers={"Content-Type": "text/xml"}).status_code == 415
    assert feedback_of(gateway.config) == []


def test_a_receipt_is_wanted_where_there_is_a_key(make_config, key_file):
    with Gateway(make_config(feedback={"key_file": key_file})) as gateway:
        answers = [gateway.ask("Hi", user="ann") for _ in range(2)]
        rollout, other = [answer.headers["X-AsyncFlow-Rollout"] for answer in answers]
        receipt = answers[0].headers["X-AsyncFlow-Receipt"]
        assert answers[0].json()["asyncflow"]["receipt"] == receipt
        expired = Receipts.load(key_file).issue(RolloutId.parse(rollout), "ann", time.time() - 1)
        forged = Receipts(b"another key, but long").issue(RolloutId.parse(rollout), "ann", time.time() + 60)

        def status(rollout, receipt, user):
            return gateway.judge(rollout, "thumb", 1, user=user, receipt=receipt).status_code

        assert status(rollout, None, "ann") == 401
        assert status(rollout, "", "ann") == 403
        assert status(rollout, forged, "ann") == 403
        assert status(rollout, expired, "ann") == 403
        assert status(rollout, receipt, "bob") == 403
        assert status(other, receipt, "ann") == 403
        assert status(rollout, receipt + ".", "ann") == 403
        assert feedback_of(gateway.config) == []
        assert status(rollout, receipt, "ann") == 202
        assert status(rollout, receipt, "ann") == 202  # an edit; the pipeline counts one vote
        assert [each.receipt for each in feedback_of(gateway.config)] == [receipt, receipt]


def test_a_user_may_not_send_more_than_counts(make_config):
    with Gateway(make_config(feedback={"user_rate_per_s": 0.5, "user_burst": 3})) as gateway:
        rollout = f"{gateway.config.name}/0/7/1"
        answers = [gateway.judge(rollout, "thumb", 1, user="ann") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429, 429]
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 2
        assert gateway.judge(rollout, "thumb", 1, user="bob").status_code == 202
        assert len(feedback_of(gateway.config)) == 4


def test_an_address_may_not_ask_more_than_its_share(make_config):
    with Gateway(make_config(address_rate_per_s=0.5, address_burst=5)) as gateway:
        statuses = [gateway.http.get("/v1/models").status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert gateway.http.get("/health").status_code == 200
        assert 'asyncflow_gateway_refusals_total{status="429"}' in gateway.http.get("/metrics").text


def test_what_a_judgement_did_is_told_when_the_topics_tell_it(gateway):
    config = gateway.config
    rollout = gateway.ask("Hi", user="ann").headers["X-AsyncFlow-Rollout"]
    feedback_id = gateway.judge(rollout, "thumb", 1, user="ann").json()["feedback_id"]

    def report(user="ann"):
        return gateway.http.get(f"/feedback/{rollout}", params={"user": user}).json()

    assert [(each["feedback_id"], each["state"]) for each in report()["judgements"]] == [(feedback_id, "received")]
    assert report("bob")["judgements"] == []

    group = RolloutId.parse(rollout).group
    (record,) = read_all(config, config.topics.feedback)
    used = FeedbackFate(at=(record.partition, record.offset), fate="used", id=feedback_id)
    decided = Outcome(kind="joined", group=group, feedback=(used,), contributions=(group,), rewards={0: 1.0})
    append(config, config.topics.outcomes, decided)
    wait_until(lambda: report()["judgements"][0]["state"] == "used", 20, 0.05)
    assert report()["judgements"][0]["effects"] == [{"what": "answer", "step": None, "version": None, "dropped": None}]

    trained = TrainedGroup(group=GroupId(*group), at=(0, 0), attempt="a", samples=1, versions=(3, 3))
    append(config, config.topics.ledger, StepEntry(generation=1, step=4, version=5, trained=(trained,), dropped=()))
    told = wait_until(lambda: [each for each in report()["judgements"][0]["effects"] if each["step"]], 20, 0.05)
    assert told == [{"what": "answer", "step": 4, "version": 5, "dropped": None}]

    announced = WeightVersion(
        version=5, step=4, generation=1, manifest_sha256="0" * 64, dtype="float32", base_model="m"
    )  # fmt: skip
    append(config, config.topics.weights, announced)
    wait_until(lambda: report()["newest_version"] == 5, 20, 0.05)
    assert gateway.http.get("/v1/models").json()["asyncflow"]["version"] == 5


def test_a_name_of_no_rollout_is_refused(gateway):
    assert gateway.http.get("/feedback/demo").status_code == 400
    assert gateway.http.get(f"/feedback/{gateway.config.name}/0/7/x").status_code == 400


def test_a_killed_broker_is_said_and_nothing_acknowledged_is_lost(tmp_path, make_config, engine):
    with Broker(tmp_path / "kafka") as broker:
        given = make_config()
        kafka = given.kafka.model_copy(update={"bootstrap": broker.bootstrap, "request_timeout_s": 3.0})
        config = given.model_copy(update={"kafka": kafka})
        create_topics(config)
        rollout, acknowledged = f"{config.name}/0/7/1", []
        with Gateway(config) as gateway:

            def judge(number):
                answer = gateway.judge(rollout, "thumb", 1, feedback_id=f"f-{number}", user=f"user {number}")
                if answer.status_code == 202:
                    acknowledged.append(f"f-{number}")
                return answer

            assert judge(0).status_code == 202
            os.kill(broker.pid, 9)
            refused = judge(1)
            assert refused.status_code == 503
            assert "f-1" in refused.json()["error"]["message"]
            asked = gateway.ask("Hi")
            assert asked.status_code == 503
            assert "did not acknowledge" in asked.json()["error"]["message"]
            assert engine.requests == []

            broker.stop()
            broker.start()
            wait_until(lambda: judge(2).status_code == 202, 60)
            assert gateway.ask("Hi").status_code == 200
        assert set(acknowledged) <= {each.feedback_id for each in feedback_of(config)}
        assert "f-0" in acknowledged


def test_a_form_of_another_site_is_refused(gateway):
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 202), ("none", 202)):
        fields = {"rollout_id": f"{gateway.config.name}/0/7/1", "kind": "thumb", "value": "1"}
        headers = {**FORM, "Sec-Fetch-Site": site}
        assert gateway.http.post("/feedback", data=fields, headers=headers).status_code == status


def test_a_cookies_user_is_the_one_of_its_receipt(make_config, key_file):
    with Gateway(make_config(feedback={"key_file": key_file})) as gateway:
        gateway.http.get("/")
        assert gateway.http.cookies
        answer = gateway.ask("Hi")
        rollout, receipt = answer.headers["X-AsyncFlow-Rollout"], answer.headers["X-AsyncFlow-Receipt"]
        form = {"rollout_id": rollout, "kind": "score", "value": "0.5", "receipt": receipt}
        assert gateway.http.post("/feedback", data=form, headers=FORM).status_code == 202
        stranger = httpx.post(f"{gateway.url}/feedback", json={**form, "value": 0.5})
        assert stranger.status_code == 403
        (told,) = feedback_of(gateway.config)
        assert told.user.startswith("web-")
        assert base64.urlsafe_b64decode(receipt.split(".")[2] + "=")
