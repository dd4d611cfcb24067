"""Packing and sharing out."""

import random
from dataclasses import replace
from itertools import chain

import pytest

from trainers.batch import Example
from trainers.packing import balance, share_out, share_out_together, to_pack


def example(tokens, prompt=1, advantage=1.0):
    answer = tokens - prompt
    return Example(tuple(range(tokens)), prompt, (-1.0,) * answer, (True,) * answer, advantage)


def lengths(packs):
    return [[len(one.token_ids) for one in one_pack] for one_pack in packs]


def balanced(examples, parts):
    """Each example by itself."""
    return [[one for (one,) in part] for part in balance([(one,) for one in examples], parts)]


def draw(number, seed=0, longest=1024):
    generator = random.Random(seed)
    return [example(max(2, min(longest, round(generator.lognormvariate(4.8, 1))))) for _ in range(number)]


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


def test_differencing_divides_as_in_the_textbook():
    """8, 7, 6, 5, 4 into two: 8-7, then 6-5, then 4 against 1 and 1: 16 and 14 (longest first gives 17 and 13)."""
    parts = balanced([example(tokens) for tokens in (4, 8, 6, 5, 7)], 2)
    assert [sorted(part, reverse=True) for part in lengths(parts)] == [[7, 5, 4], [8, 6]]
    assert [sorted(part) for part in lengths(balanced([example(tokens) for tokens in (2, 3, 4)], 5))] == [
        [4], [3], [2], [], [],
    ]  # fmt: skip
    assert balance([], 2) == [[], []]


@pytest.mark.parametrize(("number", "parts"), [(64, 2), (64, 8), (512, 8), (200, 7)])
def test_parts_hold_every_example_once_and_nearly_equal_tokens(number, parts):
    examples = draw(number)
    found = balanced(examples, parts)
    assert sorted(map(id, chain.from_iterable(found))) == sorted(map(id, examples))
    tokens = [sum(part) for part in lengths(found)]
    assert max(tokens) - min(tokens) <= 0.01 * sum(tokens) / parts


@pytest.mark.parametrize(("number", "ranks", "budget"), [(40, 1, 1024), (300, 3, 2048), (64, 8, 700), (5, 4, 100)])
def test_packs_fit_and_those_of_one_turn_are_alike_on_all_ranks(number, ranks, budget):
    examples = draw(number)
    shares = share_out(examples, ranks, budget)
    packs = [pack for share in shares for pack in share]
    assert sorted(map(id, chain.from_iterable(packs))) == sorted(map(id, examples))
    assert all(sum(pack) <= budget or len(pack) == 1 for pack in lengths(packs))
    assert len({len(share) for share in shares}) == 1
    if number == 300:
        turns = list(zip(*map(lengths, shares), strict=True))
        unequal = [max(map(sum, turn)) - min(map(sum, turn)) for turn in turns]
        assert max(unequal) <= 0.01 * budget
        fewest = -(-sum(map(sum, lengths(packs))) // (budget * ranks))
        assert len(turns) <= fewest + 1


def test_longer_ones_stand_alone_and_the_others_are_as_few_packs_as_fit():
    (share,) = share_out([example(length) for length in (3, 30, 6, 4, 7, 5)], 1, 10)
    assert lengths(share) == [[30], [5, 4], [6, 3], [7]]


def test_one_more_pack_is_made_where_the_fewest_do_not_fit():
    (share,) = share_out([example(6), example(6), example(6)], 1, 10)
    assert lengths(share) == [[6], [6], [6]]


def test_long_ones_go_to_different_ranks_in_the_same_turn():
    shares = share_out([example(length) for length in (30, 5, 30, 5)], 2, 10)
    assert [lengths(share) for share in shares] == [[[30], [5]], [[30], [5]]]


def test_rank_without_work_gets_an_empty_pack():
    lonely = share_out([example(9)], 2, 10)
    assert [lengths(share) for share in lonely] == [[[9]], [[]]]


def test_same_examples_are_divided_alike_every_time():
    assert lengths(share_out(draw(100), 1, 900)[0]) == lengths(share_out(draw(100), 1, 900)[0])


def test_empty_pack_weighs_nothing():
    packed = to_pack([])
    assert packed.advantages_R.tolist() == [0.0]
    assert packed.weights_R.tolist() == [0.0]


def test_examples_of_a_group_stay_together_however_long_they_are():
    groups = [[replace(one, group=number) for one in draw(4, seed=number, longest=300)] for number in range(12)]
    shares = share_out_together(groups, 2, 600)
    packs = [pack for share in shares for pack in share]
    places = {one.group: number for number, pack in enumerate(packs) for one in pack}
    assert all(places[one.group] == number for number, pack in enumerate(packs) for one in pack)
    assert sorted(map(id, chain.from_iterable(packs))) == sorted(map(id, chain.from_iterable(groups)))
    assert all(sum(sizes) <= 600 or len({one.group for one in pack}) == 1
               for sizes, pack in zip(lengths(packs), packs, strict=True))  # fmt: skip
    assert to_pack(packs[0]).group_S.tolist() == [one.group for one in packs[0]]
