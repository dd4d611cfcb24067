"""Whom a round asks, and for how much: pure functions of what the sites declared."""

import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Final, NamedTuple

from schemas.federating import SelectionConfig
from schemas.federation import Order, Site

_MIDDLE: Final = 1.0


class Heard(NamedTuple):
    """What a site said last."""

    site: Site
    at: datetime
    """When the broker got it: sites' clocks differ."""


def present(heard: Mapping[str, Heard], now: datetime, gone_after_s: float) -> list[Site]:
    """Those that were heard of lately, by name."""
    since = now - timedelta(seconds=gone_after_s)
    return [each.site for _, each in sorted(heard.items()) if each.at >= since]


def select(sites: Sequence[Site], config: SelectionConfig, chance: random.Random, *, independently: bool) -> list[Site]:
    """The sites of a round, by name; at least one where there are any.

    Args:
        sites: that are there.
        config: by what they are chosen, and how large a share of them.
        chance: of ``random``.
        independently: whether ``random`` throws for each site by itself, as the accounting of privacy supposes; then
            nobody may be chosen.
    """
    count = config.most(len(sites))
    if config.by == "random" and independently:
        return [site for site in sites if chance.random() < config.share]
    if config.by == "random":
        chosen = chance.sample(list(sites), count)
    elif config.by == "speed":
        chosen = sorted(sites, key=lambda site: -(site.tokens_s or 0))[:count]
    elif config.by == "data":
        chosen = sorted(sites, key=lambda site: site.samples)[:count]
    else:
        chosen = list(sites)
    return sorted(chosen, key=lambda site: site.site)


def orders(sites: Sequence[Site], config: SelectionConfig) -> dict[str, Order]:
    """What each of them is asked for.

    With ``adapt`` steps go by tokens a second and prompts of a step by memory, each over that of the site in the
    middle; a site that has not measured its speed yet counts as the middle.
    """
    speeds = _over_middle([site.tokens_s for site in sites], config)
    memories = _over_middle([float(site.memory_bytes) for site in sites], config)
    return {
        site.site: Order(steps=_times(config.steps, speed), groups_per_step=_groups(config, memory))
        for site, speed, memory in zip(sites, speeds, memories, strict=True)
    }


def _over_middle(values: Sequence[float | None], config: SelectionConfig) -> list[float]:
    known = [value for value in values if value]
    if not config.adapt or not known:
        return [_MIDDLE] * len(values)
    middle, most = median(known), config.max_factor
    return [min(most, max(1 / most, value / middle)) if value else _MIDDLE for value in values]


def _groups(config: SelectionConfig, memory: float) -> int | None:
    """More memory does not ask for more: a larger batch is another objective, a smaller one is what fits."""
    return None if config.groups_per_step is None else _times(config.groups_per_step, min(_MIDDLE, memory))


def _times(count: int, factor: float) -> int:
    return max(1, round(count * factor))
