"""Runs many fuzz cases in processes that may die: ``python -m tests.fuzz.run --cases 1000000``.

    parent ── range of case numbers ──► process: CASES[kind](Random(seed/kind/number)) ... ──► counts, findings
       ▲                                   │ writes down which case it begins
       └── it died or stands still: that case is a finding, and the next process goes on behind it

Every case can be run again alone: ``--only "SEED/KIND/NUMBER"``.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from tests.fuzz.cases import MAX_GROWTH_KIB, Finding, grown_kib, owe

_CONTEXT = multiprocessing.get_context("spawn")
_HANG_S = 60
"""A process that is at the same case for so long is ended."""
_CASE_S = 20
"""Longest that a case may take."""
_CHUNK = 20_000
"""Cases of one process."""
_NOT_BEGUN = -1
_SHOWN = 20
"""Findings in the table; the JSON has them all."""
_RARE = {"trajectories: bomb": 8}
"""Kinds that cost more than others and are drawn only once in so many turns."""


@dataclass
class Report:
    """What a run saw."""

    seed: int
    cases: int = 0
    seconds: float = 0.0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    """From kind to ``decoded``, the reason of the refusal or ``finding`` to a number of cases."""
    findings: list[dict[str, str]] = field(default_factory=list)
    """``{"case": "SEED/KIND/NUMBER", "what": ...}``."""
    growth_mib: int = 0
    """Most that a process has grown."""

    def count(self, kind, outcome, cases=1):
        outcomes = self.outcomes.setdefault(kind, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + cases
        self.cases += cases

    def find(self, case, what):
        self.count(case.split("/")[1], "finding")
        self.findings.append({"case": case, "what": what})

    def add(self, other):
        for kind, outcomes in other.outcomes.items():
            for outcome, cases in outcomes.items():
                self.count(kind, outcome, cases)
        self.findings += other.findings
        self.growth_mib = max(self.growth_mib, other.growth_mib)

    def table(self):
        """One line a kind: cases, decoded, refused by reason, findings."""
        lines = [f"{'kind':<36}{'cases':>9}{'decoded':>9}{'findings':>9}  refused"]
        for kind, outcomes in self.outcomes.items():
            reasons = {name: cases for name, cases in sorted(outcomes.items()) if name not in ("decoded", "finding")}
            refused = ", ".join(f"{name} {cases}" for name, cases in reasons.items())
            told = (sum(outcomes.values()), outcomes.get("decoded", 0), outcomes.get("finding", 0))
            lines.append(f"{kind:<36}" + "".join(f"{cases:>9}" for cases in told) + f"  {refused}")
        lines.append(f"{self.cases} cases in {self.seconds:.0f} s, seed {self.seed}: {len(self.findings)} findings; "
                     f"no process grew by more than {self.growth_mib} MiB")  # fmt: skip
        lines += [f"FINDING {finding['case']}: {finding['what']}" for finding in self.findings[:_SHOWN]]
        return "\n".join(lines)


def kind_of(number, kinds):
    """The kinds in turn, the costly ones in some turns only."""
    turn, index = divmod(number, len(kinds))
    kind = kinds[index]
    return kind if turn % _RARE.get(kind, 1) == 0 else kinds[(index + 1 + turn) % len(kinds)]


def run_case(cases, name):
    """Runs one case by its name; returns its outcome."""
    seed, kind, number = name.split("/")
    return cases[kind](random.Random(f"{seed}/{kind}/{number}"))


def run(cases, *, seed=0, processes=1, module="tests.fuzz.cases", chunk=_CHUNK, hang_s=_HANG_S):
    """Runs cases 0 to ``cases - 1`` of ``module.CASES`` and returns the report."""
    started = time.monotonic()
    report = Report(seed)
    ranges = [range(start, min(start + chunk, cases)) for start in range(0, cases, chunk)]
    with ThreadPoolExecutor(processes) as watchers:
        for part in watchers.map(lambda numbers: _run_range(module, seed, numbers, hang_s), ranges):
            report.add(part)
    report.seconds = time.monotonic() - started
    return report


def _run_range(module, seed, numbers, hang_s):
    """Runs a range in a process; around a case that ends the process the rest is run again."""
    report, waiting = Report(seed), [numbers]
    while waiting:
        part = waiting.pop()
        current = _CONTEXT.Value("q", _NOT_BEGUN, lock=False)
        ended = _run_process(module, seed, part, current, hang_s)
        if isinstance(ended, Report):
            report.add(ended)
            continue
        at = current.value
        if at == _NOT_BEGUN:
            raise RuntimeError(f"a process that should run {part} of {module} {ended}")
        report.find(f"{seed}/{kind_of(at, list(import_module(module).CASES))}/{at}", ended)
        waiting += [rest for rest in (range(part.start, at), range(at + 1, part.stop)) if rest]
    return report


def _run_process(module, seed, numbers, current, hang_s):
    """The report of a process, or how it ended instead."""
    mine, its = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(module, seed, numbers, current, its), daemon=True)
    process.start()
    its.close()
    seen, since = None, time.monotonic()
    while not mine.poll(0.5):
        if current.value != seen or current.value == _NOT_BEGUN:
            seen, since = current.value, time.monotonic()
        elif time.monotonic() - since > hang_s:
            process.kill()
            process.join()
            return f"stood still for {hang_s} s"
    try:
        return mine.recv()
    except EOFError:
        process.join()
        return f"died with exit code {process.exitcode}"
    finally:
        process.join()


def _work(module, seed, numbers, current, results):
    """In a process of its own: runs cases and sends what it counted at the end."""
    signal.signal(signal.SIGALRM, _too_slow)
    cases = import_module(module).CASES
    report, kinds, before_kib = Report(seed), list(cases), grown_kib(0)
    first_kib = before_kib
    for number in numbers:
        current.value = number
        kind = kind_of(number, kinds)
        name = f"{seed}/{kind}/{number}"
        signal.alarm(_CASE_S)
        try:
            outcome = run_case(cases, name)
            grown = grown_kib(before_kib)
            before_kib += grown if grown > MAX_GROWTH_KIB else 0  # told once
            owe(grown <= MAX_GROWTH_KIB, f"memory grew by {grown} KiB")
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is what this looks for
            report.find(name, f"{type(error).__name__}: {error}"[:300])
        else:
            report.count(kind, outcome)
    signal.alarm(0)
    report.growth_mib = grown_kib(first_kib) // 1024
    results.send(report)


def _too_slow(*_):
    raise Finding(f"not done after {_CASE_S} s")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="where the report goes as JSON too")
    parser.add_argument("--only", metavar="SEED/KIND/NUMBER", help="one case of an earlier run, in this process")
    options = parser.parse_args(argv)
    if options.only:
        sys.stdout.write(f"{run_case(import_module('tests.fuzz.cases').CASES, options.only)}\n")
        return 0
    report = run(options.cases, seed=options.seed, processes=options.processes)
    sys.stdout.write(f"{report.table()}\n")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
