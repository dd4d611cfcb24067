"""Packing and sharing out."""

from dataclasses import replace

from schemas.trajectories import Span
from tests.support.samples import group
from trainers.batch import Example, pack, share_out, to_examples, to_pack
from trainers.masks import trained_mask


def example(tokens, prompt=2, advantage=1.0):
    answer = tokens - prompt
    return Example(tuple(range(tokens)), prompt, (-1.0,) * answer, (True,) * answer, advantage)


def lengths(packs):
    return [[len(one.token_ids) for one in one_pack] for one_pack in packs]


def test_sequences_lie_one_after_the_other_and_start_again_at_position_0():
    first = Example((11, 12, 13, 14), 2, (-0.1, -0.2), (True, True), 1.0)
    second = Example((21, 22, 23), 1, (-0.3, -0.4), (False, True), -1.0)
    packed = to_pack([first, second])
    assert packed.token_ids_N.tolist() == [11, 12, 13, 14, 21, 22, 23]
    assert packed.position_ids_N.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packed.index_R.tolist() == [1, 2, 5]
    assert packed.target_R.tolist() == [13, 14, 23]
    assert [round(value, 6) for value in packed.behaviour_R.tolist()] == [-0.1, -0.2, -0.4]
    assert packed.advantages_R.tolist() == [1.0, 1.0, -1.0]


def test_packs_hold_at_most_the_tokens_and_longer_ones_stand_alone():
    packs = pack([example(length) for length in (3, 30, 6, 4, 7, 5)], 10)
    assert lengths(packs) == [[30], [7, 3], [6, 4], [5]]


def test_ranks_get_equal_work_and_the_same_number_of_packs():
    shares = share_out([example(length) for length in (9, 8, 3, 3, 3, 3)], 2, 10)
    assert [lengths(share) for share in shares] == [[[9], [3, 3]], [[8], [3, 3]]]
    lonely = share_out([example(9)], 2, 10)
    assert [lengths(share) for share in lonely] == [[[9]], [[]]]


def test_empty_pack_weighs_nothing():
    packed = to_pack([])
    assert packed.advantages_R.tolist() == [0.0]


def test_samples_without_a_reward_or_a_token_of_their_own_are_left_out():
    one, two, three, four = group(size=4)
    samples = [
        replace(one, reward=1.0),
        replace(two, reward=None, reward_error="timeout"),
        replace(three, reward=0.0, loss_mask=(False,) * 3),
        replace(four, reward=0.0, loss_mask=(True, False, True)),
    ]
    examples = to_examples([samples])
    assert [found.trained_tokens for found in examples] == [3, 2]
    assert [round(found.advantage, 4) for found in examples] == [1.4142, -0.7071]


def test_tokens_of_old_versions_are_left_out_one_by_one():
    """Versions 3 3 4 4 5 of five tokens, of which the third is a tool's."""
    spans = (Span(3, 0), Span(4, 2), Span(5, 4))
    logprobs = (-0.1, -0.2, 0.0, -0.4, -0.5)
    sample = replace(
        group(size=1)[0], prompt_token_ids=(1, 2), response_token_ids=(11, 12, 13, 14, 15), response_logprobs=logprobs,
        loss_mask=(True, True, False, True, True), weight_version_spans=spans,
    )  # fmt: skip
    assert trained_mask(sample, ()) is sample.loss_mask
    assert trained_mask(sample, (9,)) is sample.loss_mask
    assert trained_mask(sample, (3,)) == [False, False, False, True, True]
    assert trained_mask(sample, (4,)) == [True, True, False, False, True]
    assert trained_mask(sample, (3, 5)) == [False, False, False, True, False]
    young, old = replace(sample, reward=1.0), replace(sample, reward=0.0, weight_version_spans=(Span(3, 0),))
    (example,) = to_examples([[young, old]], too_old=(3,))
    assert example.mask == (False, False, False, True, True)
    assert round(example.advantage, 4) == 1.0, "the sample that is left out counts for the mean"
    packed = to_pack([example])
    assert packed.token_ids_N.tolist() == [1, 2, 11, 12, 13, 14, 15], "old tokens are still read"
    assert packed.index_R.tolist() == [4, 5]
    assert packed.target_R.tolist() == [14, 15]
    assert [round(value, 6) for value in packed.behaviour_R.tolist()] == [-0.4, -0.5]
