"""GLUE and SuperGLUE in their own metrics, each beside what the most frequent class of the right answers gets.

prompts and answers ──the reward's arguments──► (given, right) ──accuracy, f1, ...──► figures of a task ──► mean

Pure functions. An answer that cannot be read, because it names no label or several, is null: it is wrong, in every
metric. Labels are compared in lower case.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any, Final

from schemas.prompts import Prompt
from transforms.rewards.closeness import NearNumber, number_in
from transforms.rewards.label import RightLabel, named_in
from transforms.rewards.span import RightSpans, is_exact, token_f1

UNREAD_SIMILARITY: Final = -1.0
"""Of STS-B: what stands for an answer without a number, as T5 evaluates (Raffel et al. 2020, arXiv:1910.10683)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one task. Example: ``Figure(0.61, 0.527)`` of RTE's accuracy."""

    value: float
    """Usually 0 to 1; correlations -1 to 1."""
    majority: float | None
    """What an answerer gets that always says the most frequent class; null where there are no classes."""


def accuracy(given: Sequence[str | None], right: Sequence[str]) -> float:
    """The share of answers that are right."""
    return fmean(answer == gold for answer, gold in zip(given, right, strict=True))


def f1(given: Sequence[str | None], right: Sequence[str], positive: str) -> float:
    """The F1 of one class; 0 if it is neither answered nor right anywhere."""
    hits = sum(answer == gold == positive for answer, gold in zip(given, right, strict=True))
    named = sum(answer == positive for answer in given) + sum(gold == positive for gold in right)
    return 2 * hits / named if named else 0.0


def macro_f1(given: Sequence[str | None], right: Sequence[str]) -> float:
    """The mean of the F1 of all classes that are right somewhere or answered."""
    classes = {*right, *given} - {None}
    return fmean(f1(given, right, each) for each in classes if each is not None)


def matthews(given: Sequence[str | None], right: Sequence[str]) -> float:
    """The correlation of Matthews for any number of classes (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006).

    0 if all answers or all right ones are the same. An answer that cannot be read is a class of its own.
    """
    total, hits = len(right), sum(answer == gold for answer, gold in zip(given, right, strict=True))
    answered, golds = Counter(given), Counter(right)
    both = hits * total - sum(count * golds[name] for name, count in answered.items() if name is not None)
    spread = [total**2 - sum(count**2 for count in counts.values()) for counts in (answered, golds)]
    return both / sqrt(spread[0] * spread[1]) if all(spread) else 0.0


def pearson(given: Sequence[float], right: Sequence[float]) -> float:
    """The linear correlation; 0 if either side is the same number everywhere."""
    means = fmean(given), fmean(right)
    apart = [(one - means[0], other - means[1]) for one, other in zip(given, right, strict=True)]
    spread = sum(one * one for one, _ in apart) * sum(other * other for _, other in apart)
    return sum(one * other for one, other in apart) / sqrt(spread) if spread else 0.0


def spearman(given: Sequence[float], right: Sequence[float]) -> float:
    """The linear correlation of the ranks; equal numbers have the mean of their ranks."""
    return pearson(_ranks(given), _ranks(right))


def all_right(given: Sequence[str | None], right: Sequence[str], groups: Sequence[Hashable]) -> float:
    """The share of groups in which every answer is right: the exact match of MultiRC, whose groups are questions."""
    by_group: dict[Hashable, list[bool]] = defaultdict(list)
    for answer, gold, group in zip(given, right, groups, strict=True):
        by_group[group].append(answer == gold)
    return fmean(all(each) for each in by_group.values())


def measure(task: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Figure]:
    """The metrics of a task.

    Args:
        task: its name, one of ``BENCHMARKS``.
        prompts: of the task, at least one, as it draws them.
        texts: the answer to each of them; empty for one that was not answered.

    Raises:
        KeyError: the task is no benchmark.
    """
    return BENCHMARKS[task](prompts, texts)


def mean_score(figures: Mapping[str, Mapping[str, Figure]]) -> Figure:
    """The score of a benchmark as its authors define it: the mean over tasks of the mean of a task's metrics.

    Args:
        figures: of every task its metrics, at least one. The metrics without a majority class are left out of the
            majority's score; it is null if there are no others.
    """
    values = fmean(fmean(figure.value for figure in each.values()) for each in figures.values())
    known = [[figure.majority for figure in each.values() if figure.majority is not None] for each in figures.values()]
    return Figure(values, fmean(map(fmean, filter(None, known))) if any(known) else None)


Measure = Callable[[Sequence[Prompt], Sequence[str]], dict[str, Figure]]
_LabelMetric = Callable[[Sequence[str | None], Sequence[str]], float]


def _of_labels(**metrics: _LabelMetric) -> Measure:
    def figures(prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Figure]:
        given, right = _labels(prompts, texts)
        most = _most_frequent(right)
        return {name: Figure(metric(given, right), metric(most, right)) for name, metric in metrics.items()}

    return figures


def _f1_of_yes(given: Sequence[str | None], right: Sequence[str]) -> float:
    return f1(given, right, "yes")


def _similarity(prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Figure]:
    asked = [NearNumber.model_validate(_arguments(prompt)) for prompt in prompts]
    read = [number_in(text, each.lowest, each.highest) for each, text in zip(asked, texts, strict=True)]
    given = [UNREAD_SIMILARITY if number is None else number for number in read]
    right = [each.answer for each in asked]
    return {name: Figure(metric(given, right), 0.0) for name, metric in (("pearson", pearson), ("spearman", spearman))}


def _multirc(prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Figure]:
    given, right = _labels(prompts, texts)
    most = _most_frequent(right)
    questions = [str(prompt.prompt_id).rpartition("/")[0] for prompt in prompts]
    return {
        "f1a": Figure(_f1_of_yes(given, right), _f1_of_yes(most, right)),
        "em": Figure(all_right(given, right, questions), all_right(most, right, questions)),
    }


def _record(prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Figure]:
    right = [RightSpans.model_validate(_arguments(prompt)).references for prompt in prompts]
    pairs = list(zip(texts, right, strict=True))
    return {
        "f1": Figure(fmean(token_f1(*pair) for pair in pairs), None),
        "em": Figure(fmean(is_exact(*pair) for pair in pairs), None),
    }


BENCHMARKS: Final[Mapping[str, Measure]] = {
    "cola": _of_labels(matthews=matthews),
    "sst2": _of_labels(accuracy=accuracy),
    "mrpc": _of_labels(accuracy=accuracy, f1=_f1_of_yes),
    "stsb": _similarity,
    "qnli": _of_labels(accuracy=accuracy),
    "mnli": _of_labels(accuracy=accuracy),
    "rte": _of_labels(accuracy=accuracy),
    "wnli": _of_labels(accuracy=accuracy),
    "boolq": _of_labels(accuracy=accuracy),
    "cb": _of_labels(accuracy=accuracy, macro_f1=macro_f1),
    "copa": _of_labels(accuracy=accuracy),
    "multirc": _multirc,
    "record": _record,
    "wic": _of_labels(accuracy=accuracy),
    "wsc": _of_labels(accuracy=accuracy),
}
"""What a benchmark measures of each of its tasks, which ``pipelines/tasks`` draws."""


def _labels(prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The labels that were answered, null if that is none or several, and the right ones, in lower case."""
    asked = [RightLabel.model_validate(_arguments(prompt)) for prompt in prompts]
    named = [named_in(text, each.labels) for each, text in zip(asked, texts, strict=True)]
    return [each.pop() if len(each) == 1 else None for each in named], [each.answer.casefold() for each in asked]


def _arguments(prompt: Prompt) -> dict[str, Any]:
    """Of the function, whoever else judges the answers.

    Raises:
        ValueError: people alone judge them.
    """
    if prompt.function is None:
        raise ValueError(f"prompt {prompt.prompt_id}: no function scores its answers, expected that of its task")
    return prompt.function.args


def _most_frequent(right: Sequence[str]) -> list[str]:
    return [Counter(right).most_common(1)[0][0]] * len(right)


def _ranks(numbers: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = defaultdict(list)
    for place, number in enumerate(sorted(numbers)):
        places[number].append(place)
    return [fmean(places[number]) for number in numbers]
