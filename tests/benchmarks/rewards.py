"""Rewards on the data sets' own right answers, and on wrong ones: how many get what they should, and how fast.

    rows ──► prompt's arguments ──► right answer ──► reward: 1?  ──► agreement, rewards a second and core
                              └───► wrong answer ──► reward: < 1?

    make -s bench BENCH=rewards BENCH_ARGS="--data DIR"

A right answer is what the data set says; of a program it is the data set's own, and a wrong one the same program with
what it returns wrapped in a list. Elsewhere the wrong answer is the right one of another row, if it is another. A
second is one of processor time, of this process and of all that it started. A reward whose data is missing is left out.
"""

import argparse
import ast
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.tasks import humaneval, mbpp
from pipelines.tasks.draw import draw
from pipelines.tasks.lines import read_lines
from pipelines.tasks.registry import find
from schemas.prompts import RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.sandbox import launch
from transforms.rewards.scoring import score_samples

WORDED: dict[str, Callable[[dict], str]] = {
    "gsm8k": lambda args: f"It is {args['answer']}.",
    "math": lambda args: f"It is $\\boxed{{{args['answer']}}}$.",
    "arith": lambda args: f"It is {args['answer']}.",
    "sst2": lambda args: args["answer"],
    "stsb": lambda args: str(args["answer"]),
    "multi30k": lambda args: args["reference"],
    "record": lambda args: args["references"][0],
}
"""How the right answer of a task's prompt reads."""
BARS = {"right": 0.99, "wrong": 1.0, "code_right": 1.0}
LEAST_S = 0.5
"""A rate is measured as long, again and again where there are few rows."""
SECONDS = 20.0
"""For the tests of one program: here it is not asked how long they may take."""


def main():
    options = parse()
    registry.load()
    figures = {}
    for name, rows in cases(options):
        figures[name] = measure(rows[: options.limit])
        sys.stderr.write(f"{name}: {figures[name]}\n")
    passed = bool(figures) and all(map(holds, figures.values()))
    sys.stdout.write(json.dumps({"rewards": figures, "bars": BARS, "passed": passed}, indent=1) + "\n")
    return 0 if passed else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the directory of the data sets")
    parser.add_argument("--limit", type=int, default=None, help="rows of a data set, all by default")
    parser.add_argument("--only", nargs="*", default=None, help="data sets, all by default")
    return parser.parse_args()


def cases(options):
    """Of each data set that is there: a row's reward, a right answer, a wrong one."""
    made = {
        "humaneval": lambda: programs_of_humaneval(options.data),
        "humaneval-continued": lambda: continued(options.data),
        "mbpp": lambda: programs_of_mbpp(options.data),
        "countdown": lambda: solutions_of_countdown(options.data),
        **{name: lambda name=name: worded(name, options.data) for name in WORDED},
    }
    for name in options.only or made:
        task = find("translation" if name == "multi30k" else name.removesuffix("-continued"))
        if all((options.data / file).is_file() for file in task.files("held_out")):
            yield name, made[name]()


def programs_of_humaneval(data):
    for_row = lambda row: RewardSpec(name="code", args=row.tests(SECONDS))  # noqa: E731
    rows = [row for _, row in read_lines(data / "humaneval/HumanEval.jsonl.gz", humaneval.Problem)]
    right = [row.prompt + row.canonical_solution for row in rows]
    return [
        (for_row(row), fenced(text), fenced(spoil(text, row.entry_point)))
        for row, text in zip(rows, right, strict=True)
    ]


def continued(data):
    """The bodies alone, as a model that was not taught to answer gives them."""
    rows = [row for _, row in read_lines(data / "humaneval/HumanEval.jsonl.gz", humaneval.Problem)]
    return [
        (RewardSpec(name="code", args=row.tests(SECONDS)), row.canonical_solution, "    return [None]\n")
        for row in rows
    ]


def programs_of_mbpp(data):
    rows = [row for _, row in read_lines(data / "mbpp/mbpp.jsonl", mbpp.Program)]
    made = []
    for row in rows:
        arguments = row.tests()
        spec = RewardSpec(name="code", args={**arguments, "seconds": SECONDS})
        calls = [node.func for node in ast.walk(ast.parse(row.test_list[0])) if isinstance(node, ast.Call)]
        name = next(name for call in calls for name in arguments["names"] if getattr(call, "id", None) == name)
        made.append((spec, fenced(row.code), fenced(spoil(row.code, name))))
    return made


def solutions_of_countdown(data):
    rows = [json.loads(line) for line in (data / "countdown/test.jsonl").read_text().splitlines()]
    right = [(RewardSpec(name="countdown", args={key: row[key] for key in ("numbers", "target")}), row) for row in rows]
    return [(spec, row["solution"], row["solution"] + " + 1 - 1 + 1") for spec, row in right]


def worded(name, data):
    task = "translation" if name == "multi30k" else name
    prompts = draw(find(task), data, "held_out")
    right = [WORDED[name](prompt.reward.args) for prompt in prompts]
    wrong = [
        next((other for other in (*right[place:], *right) if other.lower() != text.lower()), "none")
        for place, text in enumerate(right)
    ]
    return [(prompt.reward, *answers) for prompt, *answers in zip(prompts, right, wrong, strict=True)]


def fenced(code):
    return f"```python\n{code}\n```"


def spoil(code, name):
    """A program whose function computes everything and returns it wrapped in a list."""
    return f"{code}\n\n_right = {name}\n\ndef {name}(*arguments, **named):\n    return [_right(*arguments, **named)]\n"


def measure(rows):
    """Agreement, and the rate of the right answers."""
    began, before, rounds = time.monotonic(), processor_s(), 0
    while not rounds or time.monotonic() - began < LEAST_S:
        right, rounds = [score(spec, text) for spec, text, _ in rows], rounds + 1
    end()
    worked, took = (processor_s() - before) / rounds, (time.monotonic() - began) / rounds
    wrong = [score(spec, text) for spec, _, text in rows]
    end()
    return {
        "reward": rows[0][0].name,
        "rows": len(rows),
        "right": sum(value == 1 for value in right) / len(rows),
        "right_failed": [place for place, value in enumerate(right) if value != 1][:10],
        "wrong": sum(value is not None and value < 1 for value in wrong) / len(rows),
        "wrong_failed": [place for place, value in enumerate(wrong) if value is None or value >= 1][:10],
        "a_second_and_core": round(len(rows) / worked, 1),
        "a_second": round(len(rows) / took, 1),
    }


def score(spec, text):
    (found,) = score_samples(spec, [replace(SAMPLE, response_text=text)])
    return found.value and round(found.value, 6)


def end():
    """So that what the sandbox spent is counted."""
    for sandbox in launch._kept:
        sandbox.close()


def processor_s():
    """Of this process and its ended children."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def holds(figures):
    bar = BARS["code_right"] if figures["reward"] == "code" else BARS["right"]
    return figures["right"] >= bar and figures["wrong"] >= BARS["wrong"]


if __name__ == "__main__":
    sys.exit(main())
