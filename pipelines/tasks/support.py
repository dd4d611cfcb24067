"""``support``: messages of customers and what they are about (Bitext), scored by the right label.

Train is ``train.csv``, held out is ``test.csv``. Of a row ``utterance`` and ``category`` are read; there are eleven
categories.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import RewardSpec

LABELS: Final = (
    "account", "cancellation fee", "contact", "delivery", "feedback", "invoice", "newsletter", "order", "payment",
    "refund", "shipping address",
)  # fmt: skip
"""The categories of the data set, as words that a model knows."""
_COLUMNS: Final = ("utterance", "category")
_FILES: Final = {"train": "train", "held_out": "test"}


class Support(Task):
    """Example: ``Support()``."""

    name = "support"
    title = "Bitext customer support, bitext/train.csv and bitext/test.csv"

    def files(self, split: Split) -> tuple[str, ...]:
        """One table."""
        return (f"bitext/{_FILES[split]}.csv",)

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a message."""
        file = data / self.files(split)[0]
        for line, message, label in _read(file):
            if label not in LABELS:
                raise ConfigError(f"{file}, line {line}: category {label[:80]!r}, expected one of {', '.join(LABELS)}")
            yield ask(message), RewardSpec(name="label", args={"answer": label, "labels": list(LABELS)})


def ask(message: str) -> str:
    """What the model is asked about a customer's message."""
    return f"{message}\n\nWhat is this about? Answer with one of: {', '.join(LABELS)}."


def _read(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line, utterance and category, the latter in words."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            table = csv.DictReader(lines)
            if missing := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
                raise ConfigError(f"{file}: no column {' and '.join(missing)}, expected {', '.join(_COLUMNS)}")
            for row in table:
                message, category = (row[name] or "" for name in _COLUMNS)
                yield table.line_num, message, category.lower().replace("_", " ")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: {error}; expected CSV in UTF-8") from error
