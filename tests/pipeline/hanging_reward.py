"""A reward that never returns for some answers, for tests of the pipeline."""

from transforms.rewards.registry import Arguments, Reward, reward


class When(Arguments):
    index: int
    """The sample that hangs."""


@reward("hangs_on_sample")
def hangs_on_sample(sample, arguments: When):
    while sample.sample_index == arguments.index:
        pass
    return Reward(1.0)
