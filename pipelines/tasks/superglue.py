"""The tasks of SuperGLUE as questions (Wang et al. 2019, arXiv:1905.00537); its RTE is that of GLUE.

Which files they read, and where these are not all of a data set: docs/tasks.md.
"""

from collections.abc import Iterator
from pathlib import Path

from pipelines.tasks.benchmark import Benchmark, Labelled, choose
from pipelines.tasks.glue import Inference
from pipelines.tasks.tables import Row, Source
from pipelines.tasks.task import Split
from schemas.prompts import Prompt, RewardSpec


class Boolq(Labelled):
    """Questions of yes or no about a passage. Example: ``Boolq()``."""

    name = "boolq"
    title = "BoolQ, superglue_fewshot32/BoolQ/val.jsonl"
    train = (Source("superglue_fewshot32/BoolQ/val.jsonl"),)
    held_out = train
    words = (("true", "yes"), ("false", "no"))

    def keys(self, row: Row) -> tuple[str, ...]:
        """The passage."""
        return (row.text("passage"),)

    def ask(self, row: Row) -> str:
        """A passage and a question, which the data set writes without a mark."""
        return f"{self.shorten(row.text('passage'))}\n\n{self.shorten(row.text('question').rstrip('?'))}?"


class Cb(Inference):
    """Inference on clauses that a speaker may not believe. Example: ``Cb()``."""

    name = "cb"
    title = "CommitmentBank, cb/train.jsonl and cb/val.jsonl"
    train = (Source("cb/train.jsonl"),)
    held_out = (Source("cb/val.jsonl"),)
    words = (("entailment", "yes"), ("neutral", "maybe"), ("contradiction", "no"))


class Copa(Labelled):
    """Which of two sentences is the cause or the effect of another. Example: ``Copa()``."""

    name = "copa"
    title = "COPA, copa/train.jsonl and copa/val.jsonl"
    train = (Source("copa/train.jsonl"),)
    held_out = (Source("copa/val.jsonl"),)
    words = (("0", "1"), ("1", "2"))

    def ask(self, row: Row) -> str:
        """A sentence and two more."""
        asks = row.word("question", {"cause": "Which is the cause?", "effect": "Which is the effect?"})
        premise, first, second = (self.shorten(row.text(name)) for name in ("premise", "choice1", "choice2"))
        return f"{premise}\n\n1: {first}\n2: {second}\n\n{asks}"


class Wic(Labelled):
    """Whether a word has one sense in two sentences. Example: ``Wic()``."""

    name = "wic"
    title = "WiC, wic/train.jsonl and wic/val.jsonl"
    train = (Source("wic/train.jsonl"),)
    held_out = (Source("wic/val.jsonl"),)
    words = (("true", "yes"), ("false", "no"))

    def ask(self, row: Row) -> str:
        """Two sentences and the word."""
        first, second = (self.shorten(row.text(f"sentence{number}")) for number in (1, 2))
        return f'First: {first}\nSecond: {second}\n\nDoes "{row.text("word")}" mean the same in both?'


class Wsc(Labelled):
    """Whether a pronoun means a noun. Example: ``Wsc()``."""

    name = "wsc"
    title = "WSC, wsc/train.jsonl and wsc/val.jsonl"
    train = (Source("wsc/train.jsonl"),)
    held_out = (Source("wsc/val.jsonl"),)
    words = (("true", "yes"), ("false", "no"))

    def ask(self, row: Row) -> str:
        """A text, a pronoun and a noun of it."""
        target = row.part("target")
        noun, pronoun = (target.text(f"span{number}_text") for number in (1, 2))
        return f'{self.shorten(row.text("text"))}\n\nDoes "{pronoun}" mean "{noun}" here?'


class Multirc(Benchmark):
    """Questions about a passage, of whose answers several are right; each is asked for by itself.

    The id of a prompt ends with the question's number and the answer's, both from 0: the benchmark counts the
    questions of which all answers are judged rightly.
    """

    name = "multirc"
    title = "MultiRC, superglue_fewshot32/MultiRC/val.jsonl"
    train = (Source("superglue_fewshot32/MultiRC/val.jsonl"),)
    held_out = train

    def keys(self, row: Row) -> tuple[str, ...]:
        """The passage."""
        return (row.part("passage").text("text"),)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row an answer."""
        yield from (asked for question in self._questions(data, split) for asked in question)

    def prompts(self, data: Path, split: Split) -> Iterator[Prompt]:
        """All prompts of a split; the id ends with the numbers of question and answer.

        Raises:
            ConfigError: a file is missing, or does not hold what it should.
        """
        self._require(data, split)
        for number, question in enumerate(self._questions(data, split)):
            for answer, asked in enumerate(question):
                yield self._prompt(f"{split}/{number}/{answer}", *asked)

    def _questions(self, data: Path, split: Split) -> Iterator[list[tuple[str, RewardSpec]]]:
        for row in self.read(data, split):
            passage = row.part("passage")
            text = self.shorten(passage.text("text"))
            for question in passage.parts("questions"):
                yield [self._ask(text, question, answer) for answer in question.parts("answers")]

    def _ask(self, text: str, question: Row, answer: Row) -> tuple[str, RewardSpec]:
        asks, given = question.text("question"), answer.text("text")
        right = answer.word("label", {"1": "yes", "0": "no"})
        return choose(f"{text}\n\nQuestion: {asks}\nAnswer: {given}\n\nIs this answer right?", ("yes", "no"), right)


class Record(Benchmark):
    """A sentence of the news with a name left out, and the names of the article. Example: ``Record()``."""

    name = "record"
    title = "ReCoRD, superglue_fewshot32/ReCoRD/train.jsonl and superglue_fewshot32/ReCoRD/dev32.jsonl"
    train = (Source("superglue_fewshot32/ReCoRD/train.jsonl"),)
    held_out = (Source("superglue_fewshot32/ReCoRD/dev32.jsonl"),)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a sentence."""
        for row in self.read(data, split):
            passage = row.part("passage")
            names = ", ".join(_names(passage))
            text = self.shorten(passage.text("text").replace("@highlight\n", ""))
            for asked in row.parts("qas"):
                blank = asked.text("query").replace("@placeholder", "___")
                right = list(dict.fromkeys(answer.text("text") for answer in asked.parts("answers")))
                yield (
                    f"{text}\n\n{blank}\n\nWhich name is left out? Answer with one of: {names}.",
                    RewardSpec(name="span", args={"references": right}),
                )


def _names(passage: Row) -> list[str]:
    """The names in a passage, each once, in their order; the data set gives first and last character of each."""
    text = passage.text("text")
    places = [
        (entity.place("start", len(text)), entity.place("end", len(text))) for entity in passage.parts("entities")
    ]
    return list(dict.fromkeys(text[first : last + 1].strip() for first, last in places))
