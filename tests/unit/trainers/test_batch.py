"""Groups to examples."""

from dataclasses import replace

from schemas.trajectories import Span
from tests.support.samples import group
from trainers.batch import to_examples
from trainers.masks import trained_mask
from trainers.packing import to_pack


def test_samples_without_a_reward_or_a_token_of_their_own_are_left_out():
    one, two, three, four = group(size=4)
    samples = [
        replace(one, reward=1.0),
        replace(two, reward=None, reward_error="timeout"),
        replace(three, reward=0.0, loss_mask=(False,) * 3),
        replace(four, reward=0.0, loss_mask=(True, False, True)),
    ]
    examples = to_examples([samples], [[1.5, None, -0.5, -1.0]])
    assert [found.trained_tokens for found in examples] == [3, 2]
    assert [found.advantage for found in examples] == [1.5, -1.0]


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
    (example,) = to_examples([[young, old]], [[1.0, -1.0]], too_old=(3,))
    assert example.mask == (False, False, False, True, True)
    assert example.advantage == 1.0
    packed = to_pack([example])
    assert packed.token_ids_N.tolist() == [1, 2, 11, 12, 13, 14, 15], "old tokens are still read"
    assert packed.index_R.tolist() == [4, 5]
    assert packed.target_R.tolist() == [14, 15]
    assert [round(value, 6) for value in packed.behaviour_R.tolist()] == [-0.4, -0.5]
