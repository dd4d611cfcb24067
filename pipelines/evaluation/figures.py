"""From rewards to figures: the mean reward, and pass@k without bias.

Pure functions. Rewards that could not be computed are null; they are counted and take part in nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from pipelines.evaluation.ask import Answers
from schemas.evals import ALL_TASKS, MEAN_REWARD, EvalResult
from schemas.evaluation import EvaluationConfig


@dataclass(frozen=True, slots=True)
class Asked:
    """How answers came about."""

    evaluation: str
    prompts_sha256: str
    temperature: float
    """0 for greedy answers."""


def pass_at_k(answers: int, passed: int, k: int) -> float:
    """The probability that at least one of k answers passes, estimated without bias from n ≥ k answers.

    1 - C(n - c, k) / C(n, k) as a product: Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    arXiv:2107.03374, equation 1. Taking the mean of n answers to the power of k instead is too low.

    Args:
        answers: n.
        passed: c, of n.
        k: 1 to n.

    Raises:
        ValueError: k or c is outside of its range.
    """
    if not (1 <= k <= answers and 0 <= passed <= answers):
        raise ValueError(f"pass@{k} of {answers} answers of which {passed} passed: expected 1 <= k <= n, 0 <= c <= n")
    if answers - passed < k:
        return 1.0
    none_passes = 1.0
    for left in range(answers - passed + 1, answers + 1):
        none_passes *= 1.0 - k / left
    return 1.0 - none_passes


def mean_rewards(answers: Sequence[Answers], asked: Asked) -> list[EvalResult]:
    """The mean reward: the first result is over everything, then one for each task if there are several."""
    return [result for part in _tasks(answers) if (result := _mean_reward(*part, asked))]


def passes(answers: Sequence[Answers], asked: Asked, config: EvaluationConfig) -> list[EvalResult]:
    """Pass@k for every k of the configuration, over everything and for each task.

    A prompt with fewer than k scored answers is left out, which the number of samples tells.
    """
    parts = list(_tasks(answers))
    results = [_pass_at(k, *part, asked, config.success_reward) for k in config.pass_at for part in parts]
    return [result for result in results if result]


def _tasks(answers: Sequence[Answers]) -> Iterable[tuple[str, Sequence[Answers]]]:
    tasks = sorted({each.prompt.task for each in answers})
    if len(tasks) > 1:
        yield ALL_TASKS, answers
    for task in tasks:
        yield task, [each for each in answers if each.prompt.task == task]


def _mean_reward(task: str, answers: Sequence[Answers], asked: Asked) -> EvalResult | None:
    """A mean over answers; each prompt has the same number of them but for null rewards."""
    rewards = [_scored(each) for each in answers]
    flat = [reward for each in rewards for reward in each]
    if not flat:
        return None
    return _result(
        MEAN_REWARD, task, answers, asked, (fmean(flat), len(flat), [fmean(each) for each in rewards if each])
    )


def _pass_at(k: int, task: str, answers: Sequence[Answers], asked: Asked, success: float) -> EvalResult | None:
    rewards = [scored for each in answers if len(scored := _scored(each)) >= k]
    if not rewards:
        return None
    estimates = [pass_at_k(len(each), sum(reward >= success for reward in each), k) for each in rewards]
    return _result(f"pass@{k}", task, answers, asked, (fmean(estimates), sum(map(len, rewards)), estimates))


def _scored(answers: Answers) -> list[float]:
    return [reward for reward in answers.rewards if reward is not None]


def _result(
    metric: str, task: str, answers: Sequence[Answers], asked: Asked, found: tuple[float, int, list[float]]
) -> EvalResult:
    value, samples, by_prompt = found
    versions = frozenset[int]().union(*(each.versions for each in answers))
    return EvalResult(
        version=min(versions),
        task=task,
        metric=metric,
        value=value,
        samples=samples,
        temperature=asked.temperature,
        evaluation=asked.evaluation,
        version_max=max(versions),
        prompts=len(answers),
        prompts_sha256=asked.prompts_sha256,
        unanswered=sum(not each.rewards for each in answers),
        null_rewards=sum(each.rewards.count(None) for each in answers),
        standard_error=stdev(by_prompt) / sqrt(len(by_prompt)) if len(by_prompt) > 1 else None,
    )
