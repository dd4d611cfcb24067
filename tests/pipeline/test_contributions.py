"""What the feedback pipeline makes of judgements is what the learner takes for it."""

from types import SimpleNamespace

import pytest

from schemas.config import RunConfig
from schemas.feedback import Feedback
from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from schemas.joining import FeedbackConfig
from schemas.trajectories import encode, pseudonym
from tests.support.samples import group
from trainers.accounts import Accounts, Versions
from trainers.intake import Intake
from trainers.planner import Planner
from trainers.stream import read_trajectories
from transforms.feedback.contributions import correction, demonstration, joined
from transforms.feedback.items import Judged, Source
from transforms.feedback.rewards import Rated

RATED = {0: Rated(1.0, {"feedback": 1.0}, ("ann", "bob"))}


def cause(offset):
    said = Feedback(feedback_id="f-1", rollout_id="demo/0/38/0", kind="correction", value="Five.", user="ann")
    return Judged(Source((1, offset), offset, 0.0), said)


def made(samples):
    changes = [(sample, change) for sample, change in zip(samples, (-0.5, 0.5), strict=True)]
    return [
        joined(samples, RATED),
        correction(changes, cause(17), {"ann"}),
        demonstration(samples[0], cause(18), FeedbackConfig(), lambda text, _: (6, 7, 2)),
    ]


@pytest.mark.parametrize("partition", [0, EXCHANGES])
def test_contributions_wait_for_their_step_as_what_they_are(partition):
    planner = Planner(4, 1, Accounts(), Versions({11: 0, 12: 1}), max_feedback_staleness=32)
    intake = Intake(RunConfig(), planner, SimpleNamespace(frontier={0: 40}), 100)
    for offset, contribution in enumerate(made(group(partition, 38, 2, reward=None))):
        value, headers = encode(contribution.samples, {contribution.id: contribution.raters})
        record = SimpleNamespace(partition=0, offset=offset, headers=[*headers.items()], value=value)
        for event in read_trajectories(record):
            intake.take(event)
    assert not intake.letters
    ann, bob = pseudonym("ann"), pseudonym("bob")
    assert {each: (found.purpose, found.rewards, found.raters) for each, found in planner.waiting.items()} == {
        GroupId(partition, 38): ("feedback", [1.0, None], {ann, bob}),
        GroupId(FEEDBACK + 1, 17): ("correction", [-0.5, 0.5], {ann}),
        GroupId(FEEDBACK + 1, 18): ("demonstration", [1.0], {ann}),
    }
