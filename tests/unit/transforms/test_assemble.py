"""Outcomes of a bundle become records: whole groups, below the size, one share and one topic each."""

from dataclasses import replace

import pytest

from schemas import trajectories
from schemas.config import KafkaConfig, RolloutConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.prompts import Prompt
from schemas.trajectories import Group
from tests.support.samples import SAMPLE
from transforms import assemble as module
from transforms.assemble import assemble, encode_groups, estimate_bytes, split_by_size
from transforms.kafka import by_share

CONFIG = RunConfig(rollout=RolloutConfig(max_record_bytes=20_000, shares=2), kafka=KafkaConfig(partitions=4))


def group(partition, offset, tokens=3, reward="last_number"):
    prompt = Prompt.model_validate({"text": "?", "reward": {"name": reward}})
    samples = tuple(
        replace(
            SAMPLE,
            prompt_partition=partition,
            prompt_offset=offset,
            sample_index=index,
            response_token_ids=(7,) * tokens,
            response_logprobs=(-0.5,) * tokens,
            loss_mask=(True,) * tokens,
            weight_version_spans=SAMPLE.weight_version_spans[:1],
            weight_version_max=11,
        )
        for index in range(2)
    )
    return Group(GroupId(partition, offset), prompt, samples, b"value")


def decoded(records):
    return [
        [samples[0].group for samples in trajectories.decode(record.value, dict(record.headers))] for record in records
    ]


def test_groups_are_in_one_record_while_it_stays_small():
    (record,) = assemble(CONFIG, [group(0, 1), group(2, 5)])
    assert (record.topic, record.key) == ("demo.trajectories", b"0/1")
    assert record.groups == ((0, 1), (2, 5))
    assert decoded([record]) == [[(0, 1), (2, 5)]]


def test_records_stay_below_the_size_and_no_group_is_cut():
    groups = [group(0, offset, tokens=200) for offset in range(30)]
    records = assemble(CONFIG, groups)
    assert len(records) > 3
    assert max(len(record.value) for record in records) <= 20_000
    assert [found for record in decoded(records) for found in record] == [each.id for each in groups]


def test_a_wrong_estimate_is_put_right_by_halving():
    groups = [group(0, offset, tokens=200) for offset in range(16)]
    records = list(encode_groups("t", groups, 20_000))
    assert max(len(record.value) for record in records) <= 20_000
    assert [found for record in records for found in record.groups] == [each.id for each in groups]


def test_a_group_that_alone_exceeds_the_wanted_size_has_its_own_record():
    records = assemble(CONFIG, [group(0, 1), group(0, 2, tokens=5000), group(0, 3)])
    assert [record.groups for record in records] == [((0, 1),), ((0, 2),), ((0, 3),)]


def test_a_group_that_no_reader_would_accept_is_a_dead_letter(monkeypatch):
    monkeypatch.setattr(module, "MAX_TRAJECTORY_BYTES", 40_000)
    records = assemble(CONFIG, [group(0, 1), group(0, 2, tokens=5000)])
    assert [record.topic for record in records] == ["demo.trajectories", "demo.dead-letters"]
    letter = DeadLetter.decode(records[1].value)
    assert (letter.stage, letter.reason, letter.group) == ("assemble", "too_large", (0, 2))
    assert records[1].groups == ((0, 2),)


def test_groups_for_feedback_go_to_pending_apart():
    records = assemble(CONFIG, [group(0, 1), group(0, 2, reward="feedback"), group(0, 3)])
    assert [(record.topic, record.groups) for record in records] == [
        ("demo.trajectories", ((0, 1), (0, 3))),
        ("demo.pending", ((0, 2),)),
    ]


def test_a_record_holds_groups_of_one_share():
    records = assemble(CONFIG, [group(partition, 0) for partition in range(4)])
    assert [record.groups for record in records] == [((0, 0), (2, 0)), ((1, 0), (3, 0))]
    assert {share: len(found) for share, found in by_share(records, 2).items()} == {0: 1, 1: 1}


def test_dead_letters_get_a_record_each_with_their_place_as_key():
    letters = [DeadLetter.of("score", "x", "y", ("demo.prompts", 0, offset), b"v") for offset in (4, 5)]
    records = assemble(CONFIG, letters)
    assert [(record.key, record.groups) for record in records] == [
        (b"demo.prompts/0/4", ((0, 4),)),
        (b"demo.prompts/0/5", ((0, 5),)),
    ]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_split_by_size_loses_nothing(count):
    groups = [group(0, offset) for offset in range(count)]
    chunks = list(split_by_size(groups, 2 * estimate_bytes(group(0, 0))))
    assert [each for chunk in chunks for each in chunk] == groups
    assert all(len(chunk) <= 2 for chunk in chunks)


def test_an_empty_bundle_gives_no_record():
    assert assemble(CONFIG, []) == []
