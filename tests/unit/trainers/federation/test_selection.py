"""Whom a round asks, and for how much."""

import random
from datetime import UTC, datetime, timedelta

from schemas.federating import SelectionConfig
from schemas.federation import Site
from trainers.federation.selection import Heard, orders, present, select

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def site(name, tokens_s=None, samples=0, memory_gib=8):
    return Site(site=name, cores=2, memory_bytes=memory_gib << 30, tokens_s=tokens_s, samples=samples)


SITES = [site("a", 100.0, 500), site("b", 400.0, 100), site("c", None, 300), site("d", 200.0, 0)]


def names(chosen):
    return [each.site for each in chosen]


def choose(by, share=0.5, seed=0, **options):
    config = SelectionConfig(by=by, share=share)
    return names(select(SITES, config, random.Random(seed), independently=options.get("independently", False)))


def test_who_was_heard_of_lately_is_there():
    heard = {each.site: Heard(each, NOW - timedelta(seconds=20 * number)) for number, each in enumerate(SITES)}
    assert names(present(heard, NOW, 45)) == ["a", "b", "c"]


def test_the_ways_to_choose():
    assert choose("all") == ["a", "b", "c", "d"]
    assert choose("speed") == ["b", "d"]
    assert choose("data") == ["b", "d"]
    assert choose("random", share=0.01) != choose("random", share=0.01, seed=3)
    assert len(choose("random")) == 2


def test_thrown_for_each_by_itself_any_number_may_be_chosen():
    counts = {len(choose("random", seed=seed, independently=True)) for seed in range(60)}
    assert counts == {0, 1, 2, 3, 4}


def test_nobody_is_chosen_of_nobody():
    assert select([], SelectionConfig(), random.Random(0), independently=False) == []


def test_steps_go_by_speed_and_stay_within_their_bounds():
    asked = orders(SITES, SelectionConfig(steps=10, adapt=True, max_factor=1.5))
    assert {name: order.steps for name, order in asked.items()} == {"a": 7, "b": 15, "c": 10, "d": 10}
    assert {order.steps for order in orders(SITES, SelectionConfig(steps=10)).values()} == {10}


def test_a_site_of_less_memory_is_asked_for_smaller_steps_and_none_for_larger_ones():
    sites = [site("small", memory_gib=4), site("middle"), site("large", memory_gib=64)]
    asked = orders(sites, SelectionConfig(adapt=True, groups_per_step=8))
    assert {name: order.groups_per_step for name, order in asked.items()} == {"small": 4, "middle": 8, "large": 8}
