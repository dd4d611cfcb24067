"""One version in figures, and the figures in the log."""

from collections.abc import Sequence

from pipelines.append import Entry, append
from pipelines.evaluation.ask import Asker
from pipelines.evaluation.figures import Asked, mean_rewards, passes
from pipelines.evaluation.prompts import HeldOut, check_sandbox, check_services, check_usable, load_registries
from schemas.config import RunConfig
from schemas.errors import EngineError
from schemas.evals import EvalResult
from transforms.generation.tokenizer import Tokenizer


class Measure:
    """What the weights of a run achieve on held-out prompts.

    Args:
        config: of the run.
        held_out: prompts that are never trained.

    Raises:
        ConfigError: a prompt that cannot be asked or whose answers cannot be scored.
        ModelError: the model has no tokenizer.
    """

    def __init__(self, config: RunConfig, held_out: HeldOut) -> None:
        load_registries(config)
        tokenizer = Tokenizer.load(config.model.path)
        check_usable(held_out.prompts, tokenizer)
        check_sandbox(config, held_out.prompts)
        check_services(config, held_out.prompts)
        self._limits, self._sha256 = config.evaluation, held_out.sha256
        self._asker = Asker(config, held_out.prompts, tokenizer)

    def of(self, version: int) -> list[EvalResult]:
        """The figures of a version, or of a newer one if that is what answered.

        Returns:
            The first one is the mean reward of greedy answers to all prompts.

        Raises:
            EngineError: the workers did not answer in time, or no answer got a reward.
        """
        answers = self._asker.greedy(version)
        results = mean_rewards(answers, self._asked(0.0))
        if not results:
            unanswered = sum(not each.rewards for each in answers)
            raise EngineError(
                f"none of {len(answers)} held-out prompts got a reward: {unanswered} were not answered, the rewards "
                "of the others could not be computed; the log says why"
            )
        if self._limits.samples:
            drawn, asked = self._asker.drawn(version), self._asked(self._limits.temperature)
            results += [*mean_rewards(drawn, asked), *passes(drawn, asked, self._limits)]
        return results

    def _asked(self, temperature: float) -> Asked:
        return Asked(self._limits.name, self._sha256, temperature)


def write_results(config: RunConfig, results: Sequence[EvalResult]) -> None:
    """Appends results to the run's ``evals`` topic; returns when they are acknowledged.

    Raises:
        BrokerError: Kafka did not take them.
    """
    key = config.name.encode()
    append(config.kafka, config.topics.evals, [Entry(each.encode(), key) for each in results], "evaluations")
