"""GLUE and SuperGLUE in their own metrics, each beside what the most frequent class of the right answers gets.

prompts and answers ──the reward's arguments──► rows (given, right) ──accuracy, f1, ...──► figures of a task ──► mean

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
    if len(set(given)) == 1 or len(set(right)) == 1:  # a mean of equal numbers may be another one, by rounding
        return 0.0
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
    card = BENCHMARKS[task]
    return card.figures(card.read(prompts, texts))


def mean_score(figures: Mapping[str, Mapping[str, Figure]]) -> Figure:
    """The score of a benchmark as its authors define it: the mean over tasks of the mean of a task's metrics.

    Args:
        figures: of every task its metrics, at least one. The metrics without a majority class are left out of the
            majority's score; it is null if there are no others.
    """
    values = fmean(fmean(figure.value for figure in each.values()) for each in figures.values())
    known = [[figure.majority for figure in each.values() if figure.majority is not None] for each in figures.values()]
    return Figure(values, fmean(map(fmean, filter(None, known))) if any(known) else None)


Row = tuple[Any, Any, Hashable]
"""One answer as metrics take it: what it says, what is right, and the unit that it belongs to. Units are what is drawn
anew when the uncertainty of a metric is estimated: a prompt each, but in MultiRC a question with all its answers."""


@dataclass(frozen=True, slots=True)
class Scorecard:
    """How a task is measured."""

    read: Callable[[Sequence[Prompt], Sequence[str]], list[Row]]
    """From its prompts and the texts of the answers, of one length; empty texts were not answered."""
    metrics: Mapping[str, Callable[[Sequence[Row]], float]]
    """Of one row or more, by name."""
    has_classes: bool = True
    """Whether there is a most frequent right answer that one could always give."""

    def figures(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """Every metric of at least one row."""
        most = self._constant(rows) if self.has_classes else None
        return {name: Figure(metric(rows), metric(most) if most else None) for name, metric in self.metrics.items()}

    @staticmethod
    def _constant(rows: Sequence[Row]) -> list[Row]:
        """The rows as one answers who always says the most frequent class."""
        ((most, _),) = Counter(right for _, right, _ in rows).most_common(1)
        return [(most, right, unit) for _, right, unit in rows]


def _labels(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Row]:
    """The label that was answered, null if that is none or several, and the right one, in lower case."""
    asked = [RightLabel.model_validate(_arguments(prompt)) for prompt in prompts]
    named = [named_in(text, each.labels) for each, text in zip(asked, texts, strict=True)]
    return [
        (found.pop() if len(found) == 1 else None, each.answer.casefold(), number)
        for number, (found, each) in enumerate(zip(named, asked, strict=True))
    ]


def _labels_of_questions(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Row]:
    """As of labels; the unit is the question, whose number stands before the answer's in the id of the prompt."""
    questions = [str(prompt.prompt_id).rpartition("/")[0] for prompt in prompts]
    rows = zip(_labels(prompts, texts), questions, strict=True)
    return [(given, right, question) for (given, right, _), question in rows]


def _numbers(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Row]:
    """The similarity that was answered, ``UNREAD_SIMILARITY`` if that is none, and the right one."""
    asked = [NearNumber.model_validate(_arguments(prompt)) for prompt in prompts]
    read = [number_in(text, each.lowest, each.highest) for each, text in zip(asked, texts, strict=True)]
    return [
        (UNREAD_SIMILARITY if given is None else given, each.answer, number)
        for number, (given, each) in enumerate(zip(read, asked, strict=True))
    ]


def _spans(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Row]:
    """How much of the best right text was answered, and whether it was one: ``(F1, exact)``."""
    asked = [RightSpans.model_validate(_arguments(prompt)).references for prompt in prompts]
    return [
        ((token_f1(text, right), is_exact(text, right)), None, number)
        for number, (text, right) in enumerate(zip(texts, asked, strict=True))
    ]


def _of_both(metric: Callable[[Sequence[Any], Sequence[Any]], float]) -> Callable[[Sequence[Row]], float]:
    """A metric of what was answered and what is right, on rows."""
    return lambda rows: metric([row[0] for row in rows], [row[1] for row in rows])


def _f1_of_yes(given: Sequence[str | None], right: Sequence[str]) -> float:
    return f1(given, right, "yes")


def _questions_right(rows: Sequence[Row]) -> float:
    return all_right(*zip(*rows, strict=True))


def _mean_of(place: int) -> Callable[[Sequence[Row]], float]:
    return lambda rows: fmean(row[0][place] for row in rows)


def _of_labels(**metrics: Callable[[Sequence[str | None], Sequence[str]], float]) -> Scorecard:
    return Scorecard(_labels, {name: _of_both(metric) for name, metric in metrics.items()})


LABELS: Final = _of_labels(accuracy=accuracy)
"""Of any task whose reward is ``label``."""
BENCHMARKS: Final[Mapping[str, Scorecard]] = {
    "cola": _of_labels(matthews=matthews),
    "sst2": LABELS,
    "mrpc": _of_labels(accuracy=accuracy, f1=_f1_of_yes),
    "stsb": Scorecard(_numbers, {"pearson": _of_both(pearson), "spearman": _of_both(spearman)}),
    "qnli": LABELS,
    "mnli": LABELS,
    "rte": LABELS,
    "wnli": LABELS,
    "boolq": LABELS,
    "cb": _of_labels(accuracy=accuracy, macro_f1=macro_f1),
    "copa": LABELS,
    "multirc": Scorecard(_labels_of_questions, {"f1a": _of_both(_f1_of_yes), "em": _questions_right}),
    "record": Scorecard(_spans, {"f1": _mean_of(0), "em": _mean_of(1)}, has_classes=False),
    "wic": LABELS,
    "wsc": LABELS,
}
"""What a benchmark measures of each of its tasks, which ``pipelines/tasks`` draws."""


def _arguments(prompt: Prompt) -> dict[str, Any]:
    """Of the function, whoever else judges the answers.

    Raises:
        ValueError: people alone judge them.
    """
    if prompt.function is None:
        raise ValueError(f"prompt {prompt.prompt_id}: no function scores its answers, expected that of its task")
    return prompt.function.args


def _ranks(numbers: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = defaultdict(list)
    for place, number in enumerate(sorted(numbers)):
        places[number].append(place)
    return [fmean(places[number]) for number in numbers]
