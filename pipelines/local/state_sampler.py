"""Bundles that end when they are done.

Beam's worker measures what its transforms do with a thread that sleeps between two looks, each time a fifth longer,
up to 200 ms, and a bundle's end waits for it (``StateSampler.stop`` in Beam 2.77). A bundle of 100 ms so takes up to
16 ms longer, in which Prism selects on a channel that is closed already and takes a core.
"""

from typing import Final

_PERIOD_MS: Final = 4
"""The longest sleep: a bundle's end waits for half of it on average."""


def sample_often() -> None:
    """Has the samplers of this process sleep briefly; to be called before a pipeline runs in it."""
    from apache_beam.runners.worker.statesampler import StateSampler

    StateSampler.__init__.__defaults__ = (_PERIOD_MS,)
