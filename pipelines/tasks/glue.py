"""The tasks of GLUE as questions (Wang et al. 2019, arXiv:1804.07461): all are classes in words, but STS-B a number.

Which files they read, and where these divide a data set in another way than GLUE does: docs/tasks.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.tasks.benchmark import Benchmark, Labelled
from pipelines.tasks.tables import Row, Source
from pipelines.tasks.task import Split
from schemas.prompts import RewardSpec

_SIMILARITY: Final = (0.0, 5.0)
"""From nothing in common to the same meaning."""
_COLA: Final = ("source", "label", "mark", "sentence")
_WNLI: Final = ("index", "sentence1", "sentence2", "label")
_STSB: Final = ("sentence1", "sentence2", "score")


class Sst2(Labelled):
    """Sentences of film reviews. Example: ``Sst2()``."""

    name = "sst2"
    title = "SST-2, sst2/train.tsv and sst2/dev.tsv"
    train = (Source("sst2/train.tsv"),)
    held_out = (Source("sst2/dev.tsv"),)
    words = (("1", "positive"), ("0", "negative"))

    def ask(self, row: Row) -> str:
        """A sentence."""
        return f"{self.shorten(row.text('sentence', 'content'))}\n\nIs this review positive or negative?"


class Cola(Labelled):
    """Sentences of linguists, some of them ungrammatical. Example: ``Cola()``."""

    name = "cola"
    title = "CoLA, cola/train.tsv, cola/dev_in_domain.tsv and cola/dev_out_of_domain.tsv"
    train = (Source("cola/train.tsv", _COLA),)
    held_out = (Source("cola/dev_in_domain.tsv", _COLA), Source("cola/dev_out_of_domain.tsv", _COLA))
    words = (("1", "acceptable"), ("0", "unacceptable"))

    def ask(self, row: Row) -> str:
        """A sentence."""
        return f"{self.shorten(row.text('sentence'))}\n\nIs this sentence acceptable English?"


class Mrpc(Labelled):
    """Pairs of sentences of the news. Example: ``Mrpc()``."""

    name = "mrpc"
    title = "MRPC, mrpc/train.txt and mrpc/test.txt"
    train = (Source("mrpc/train.txt"),)
    held_out = (Source("mrpc/test.txt"),)
    label_column = "Quality"
    words = (("1", "yes"), ("0", "no"))

    def ask(self, row: Row) -> str:
        """Two sentences."""
        first, second = (self.shorten(row.text(f"#{number} String")) for number in (1, 2))
        return f"First: {first}\nSecond: {second}\n\nDo both sentences mean the same?"


class Stsb(Benchmark):
    """Pairs of sentences, and how alike they are in meaning, from 0 to 5. Example: ``Stsb()``."""

    name = "stsb"
    title = "STS-B, stsb/train.csv and stsb/dev.csv"
    train = (Source("stsb/train.csv", _STSB),)
    held_out = (Source("stsb/dev.csv", _STSB),)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a pair."""
        lowest, highest = _SIMILARITY
        for row in self.read(data, split):
            answer = row.number("score", lowest, highest)
            yield (
                self._ask(row),
                RewardSpec(name="closeness", args={"answer": answer, "lowest": lowest, "highest": highest}),
            )

    def _ask(self, row: Row) -> str:
        first, second = (self.shorten(row.text(f"sentence{number}")) for number in (1, 2))
        return (
            f"First: {first}\nSecond: {second}\n\nHow alike are the meanings, from 0 (not at all) to 5 (the same)? "
            "Answer with one number."
        )


class Qnli(Labelled):
    """Questions and sentences of Wikipedia. Example: ``Qnli()``."""

    name = "qnli"
    title = "QNLI, qnli/dev.tsv"
    train = (Source("qnli/dev.tsv"),)
    held_out = train
    words = (("entailment", "yes"), ("not_entailment", "no"))

    def keys(self, row: Row) -> tuple[str, ...]:
        """The question and the sentence."""
        return row.text("question"), row.text("sentence")

    def ask(self, row: Row) -> str:
        """A question, and a sentence that may answer it."""
        sentence, question = (self.shorten(row.text(name)) for name in ("sentence", "question"))
        return f"Question: {question}\nText: {sentence}\n\nDoes the text answer the question?"


class Inference(Labelled):
    """Whether one text follows from another."""

    def ask(self, row: Row) -> str:
        """Premise and hypothesis."""
        premise, hypothesis = (
            self.shorten(row.text(*names)) for names in (("premise", "sentence1"), ("hypothesis", "sentence2"))
        )
        return f"Text: {premise}\nStatement: {hypothesis}\n\nIs the statement true, given the text?"


class Mnli(Inference):
    """Inference on texts of many kinds. Example: ``Mnli()``."""

    name = "mnli"
    title = "MNLI, mnli/dev_matched.jsonl"
    train = (Source("mnli/dev_matched.jsonl"),)
    held_out = train
    words = (("entailment", "yes"), ("neutral", "maybe"), ("contradiction", "no"))

    def keys(self, row: Row) -> tuple[str, ...]:
        """The premise, which up to three rows share."""
        return (row.text("premise"),)


class Rte(Inference):
    """Inference on texts of the news. Example: ``Rte()``."""

    name = "rte"
    title = "RTE, rte/train.jsonl and rte/val.jsonl"
    train = (Source("rte/train.jsonl"),)
    held_out = (Source("rte/val.jsonl"),)
    words = (("entailment", "yes"), ("not_entailment", "no"))


class Wnli(Inference):
    """Whom a pronoun means, as inference. Example: ``Wnli()``."""

    name = "wnli"
    title = "WNLI, wnli/train.tsv, wnli/val.tsv and wnli/dev.tsv"
    train = (Source("wnli/train.tsv"), Source("wnli/val.tsv", _WNLI))
    held_out = (Source("wnli/dev.tsv"),)
    words = (("1", "yes"), ("0", "no"))
