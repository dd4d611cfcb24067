"""The gateway with the real feedback pipeline behind it: what people say becomes rewards, and they are told so."""

import pytest

from schemas.identity import FEEDBACK, RolloutId
from schemas.trajectories import decode, pseudonym, raters_named_in
from tests.pipeline.rollout_process import JoinProcess, wait_for
from tests.support.gateway import Gateway, tokens_of
from tests.support.trajectories import read_all

TIMES = {"settle_s": 1.0, "wait_s": 30.0, "correction_s": 60.0, "unknown_after_s": 5.0}


@pytest.fixture
def config(make_config, tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef")
    return make_config(feedback={**TIMES, "key_file": str(tmp_path / "key")})


def trained_groups(config):
    """The groups that went to the learner, with their raters."""
    found = {}
    for record in read_all(config, config.topics.trajectories):
        headers = dict(record.headers)
        for samples in decode(record.value, headers):
            found[samples[0].group] = (samples, raters_named_in(headers).get(samples[0].group))
    return found


def test_what_people_say_of_answers_becomes_rewards(config, engine, tmp_path):
    with Gateway(config) as gateway, JoinProcess(config, tmp_path) as pipeline:
        engine.answers.extend([tokens_of("it is 5"), tokens_of("it is 6")])
        answers = [gateway.ask("What is 2+3?", user=user).json()["asyncflow"] for user in ("ann", "bob")]
        good, bad = (RolloutId.parse(answer["rollout"]) for answer in answers)

        def judge(answer, user, kind, value):
            told = gateway.judge(answer["rollout"], kind, value, user=user, receipt=answer["receipt"])
            assert told.status_code == 202, told.text

        def report(rollout, user):
            return gateway.http.get(f"/feedback/{rollout}", params={"user": user}).json()

        judge(answers[0], "ann", "thumb", -1)
        judge(answers[0], "ann", "thumb", 1)
        judge(answers[1], "bob", "correction", "it is 5")
        told = wait_for(lambda: (r := report(good, "ann"))["state"] == "joined" and r, 90, pipeline)
        assert [each["state"] for each in told["judgements"]] == ["replaced", "used"]
        assert told["reward"] == 1.0
        told = wait_for(lambda: (r := report(bad, "bob"))["state"] == "joined" and r, 30, pipeline)
        assert [each["state"] for each in told["judgements"]] == ["used"]
        assert {each["what"] for each in told["judgements"][0]["effects"]} == {"answer", "difference"}

        groups = trained_groups(config)
        (sample,), raters = groups[good.group]
        assert (sample.reward, sample.purpose, raters) == (1.0, "feedback", frozenset({pseudonym("ann")}))
        assert list(sample.response_token_ids) == tokens_of("it is 5")
        (demonstration,) = [samples[0] for group, (samples, _) in groups.items() if group.partition >= FEEDBACK]
        assert (demonstration.purpose, demonstration.response_text) == ("demonstration", "it is 5")
        assert demonstration.prompt_id == str(bad)

        judge(answers[0], "ann", "thumb", -1)
        told = wait_for(lambda: (r := report(good, "ann"))["judgements"][-1]["fate"] == "corrected" and r, 60, pipeline)
        assert [each["what"] for each in told["judgements"][-1]["effects"]] == ["difference"]
        assert told["reward"] == -1.0
