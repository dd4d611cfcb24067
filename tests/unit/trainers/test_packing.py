"""Packing and sharing out."""

from trainers.batch import Example
from trainers.packing import pack, share_out, to_pack


def example(tokens, prompt=2, advantage=1.0):
    answer = tokens - prompt
    return Example(tuple(range(tokens)), prompt, (-1.0,) * answer, (True,) * answer, advantage)


def lengths(packs):
    return [[len(one.token_ids) for one in one_pack] for one_pack in packs]


def test_sequences_lie_one_after_the_other_and_start_again_at_position_0():
    first = Example((11, 12, 13, 14), 2, (-0.1, -0.2), (True, True), 1.0, 0.25)
    second = Example((21, 22, 23), 1, (-0.3, -0.4), (False, True), -1.0)
    packed = to_pack([first, second])
    assert packed.token_ids_N.tolist() == [11, 12, 13, 14, 21, 22, 23]
    assert packed.position_ids_N.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packed.index_R.tolist() == [1, 2, 5]
    assert packed.target_R.tolist() == [13, 14, 23]
    assert [round(value, 6) for value in packed.behaviour_R.tolist()] == [-0.1, -0.2, -0.4]
    assert packed.advantages_R.tolist() == [1.0, 1.0, -1.0]
    assert packed.weights_R.tolist() == [0.25, 0.25, 0.0]
    assert packed.sequence_R.tolist() == [0, 0, 1]
    assert packed.lengths == (4, 3)


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
    assert packed.weights_R.tolist() == [0.0]
