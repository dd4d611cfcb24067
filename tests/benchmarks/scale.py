"""Scale: what ``asyncflow plan`` predicts of 32 to 10,000 GPUs, for the tables of docs/scale.md.

    docs/plans/*.toml ──► asyncflow plan ──► docs/results/scale.json ──► docs/scale.md

    make -s bench BENCH=scale                   what is not in docs/results/scale.json, then the page
    python -m tests.benchmarks.scale --anew     all, a quarter of an hour of one core

Nothing is measured but how long a simulation takes. Prints one JSON object: the linearity of each table. No bar.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.cli.main import main as asyncflow
from pipelines.plan.prediction import Prediction
from pipelines.plan.report import to_markdown

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE = DOCS / "results/scale.json", DOCS / "scale.md"
BEGIN, END = "<!-- tables: made by tests/benchmarks/scale.py -->\n", "<!-- end of tables -->\n"
GPUS = (32, 64, 128, 256, 512)
BEYOND = (512, 2048, 10_000)
"""With a large batch: one of 4,096 samples leaves most of so many without work."""
STEPS = 8
TITLES = {"7b": "7 B", "32b": "32 B"}
FLAGS = {"fixed": (), "growing": ("--scale-batch",), "large": ("--groups-per-step", "4096")}
BATCHES = {"fixed": "512 groups a step", "growing": "512 groups for each 32 GPUs", "large": "4,096 groups a step"}


@dataclass(frozen=True)
class Table:
    """One table of the page."""

    model: str
    max_staleness: int
    batch: str

    @property
    def name(self):
        return f"{self.model}, staleness {self.max_staleness}, {self.batch} batch"

    @property
    def gpus(self):
        return BEYOND if self.batch == "large" else GPUS

    def command(self, gpus):
        return [
            "plan", "--calibration", f"docs/plans/{self.model}.toml", "--gpus", *map(str, gpus),
            "--max-staleness", str(self.max_staleness), *FLAGS[self.batch],
            "--steps", str(STEPS),
        ]  # fmt: skip


TABLES = [Table(model, staleness, batch) for model in TITLES for staleness in (1, 4) for batch in ("fixed", "growing")]
TABLES += [Table(model, 4, "large") for model in TITLES]


def run(command):
    """What the verb predicts, as it prints it; paths are seen from the checkout."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.chdir(DOCS.parent):
        code = asyncflow([*command, "--json"])
    assert code == 0, command
    return json.loads(told.getvalue())["predicted"]


def predict(table):
    """A table's lines, and how long the simulation took."""
    command, started = table.command(table.gpus), time.monotonic()
    predicted = run(command)
    return {"command": " ".join(["asyncflow", *command]), "seconds": time.monotonic() - started, "predicted": predicted}


def linearity(predicted, gpus=512):
    """Tokens a second of a GPU over those of a GPU of the first line."""
    rates = {line["gpus"]: line["tokens_per_s"] / line["gpus"] for line in predicted}
    return rates[gpus] / rates[predicted[0]["gpus"]]


# ---- the page -----------------------------------------------------------------------------------------


def page(found, text):
    """The page with the tables that are in it now."""
    before, rest = text.split(BEGIN)
    tables = [summary(found), *(section(table, found[table.name]) for table in TABLES)]
    return before + BEGIN + "\n" + "\n".join(tables) + "\n" + END + rest.split(END)[1]


def summary(found):
    """The linearity at 512 GPUs of every table, and what is published."""
    head = f"| from 32 to 512 GPUs | {' | '.join(TITLES.values())} |\n| --- | ---: | ---: |\n"
    rows = [f"| predicted, {BATCHES[batch]}, staleness {staleness} | {cells(found, staleness, batch)} |\n"
            for batch in ("fixed", "growing") for staleness in (1, 4)]  # fmt: skip
    return head + "".join(rows) + "| published: AsyncFlow, arXiv 2507.01663 | 0.65 | 0.88 |\n"


def cells(found, staleness, batch):
    names = [Table(model, staleness, batch).name for model in TITLES]
    return " | ".join(f"{linearity(found[name]['predicted']):.2f}" for name in names)


def section(table, found):
    lines = [Prediction(**{name: value for name, value in line.items() if name != "waits_for"})
             for line in found["predicted"]]  # fmt: skip
    title = f"### {TITLES[table.model]}, {BATCHES[table.batch]}, staleness {table.max_staleness}"
    return f"{title}\n\n`{found['command']}`\n\n{to_markdown(lines)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", action="store_true", help="also what is there")
    found = {} if parser.parse_args().anew or not RESULTS.exists() else json.loads(RESULTS.read_text())
    for table in TABLES:
        if table.name not in found:
            found[table.name] = predict(table)
            sys.stderr.write(f"{table.name}: {found[table.name]['seconds']:.0f} s\n")
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found, PAGE.read_text()))
    told = {name: linearity(each["predicted"], each["predicted"][-1]["gpus"]) for name, each in found.items()}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
