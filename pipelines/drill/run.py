"""One drill from start to verdict.

    start ─► warm up ─► baseline, nothing is hurt ─► faults, drawn by seed, some two at once ─► drain ─► audit

Between two faults the whole loop has to work again: a group that was generated after the fault is
trained. What is counted comes from the log: during the faults by :mod:`pipelines.drill.watch`, after
everything was stopped by an audit that reads the log anew.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from pipelines.audit import audit
from pipelines.drill.faults import CRASHES, FAULTS, Fault
from pipelines.drill.report import Report, show
from pipelines.drill.scene import Blow, Scene, torn
from pipelines.drill.watch import is_good
from pipelines.local.paths import DEFAULT_RUNS, build_once, cache_dir
from pipelines.local.stack import Stack
from pipelines.local.supervisor import TICK_S
from pipelines.local.tiny_model import build_tiny_model
from pipelines.log import RunReader
from schemas.config import RunConfig, validate
from schemas.errors import AsyncFlowError, ConfigError
from schemas.suggestions import did_you_mean

_WARM_STEPS: Final = 10
_WARM_S: Final = 300.0
_RECOVER_S: Final = 180.0
"""A run that does not work again after so long counts as one that did not recover."""
_AUDIT_S: Final = 60.0
_QUIET_S: Final = 90.0
_REPLAY_S: Final = 120.0
_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        seed: of order, pairs and prompts.
        minutes: how long faults are drawn, if ``times`` is null.
        times: how often each fault strikes.
        faults: their names; ``all``, ``crashes`` and ``every`` stand for those that a drill draws from,
            the crash points, and both.
        baseline_s: how long the run is watched before the first one.
        config: of the run.
        runs: where the run gets its directory.
        patience_s: how long a fault waits for what has to be seen of it.
        more: faults that only this drill knows, by name.
        make_stack: makes what is drilled, if it is to be another stack than that of this machine.
        pairs: share of the blows that are followed by the next one at once.
        replays: whether the last step is trained again in the end, which one rank alone does bit for bit.
    """

    seed: int
    minutes: float
    times: int | None
    faults: tuple[str, ...]
    baseline_s: float
    config: RunConfig
    runs: Path = DEFAULT_RUNS
    patience_s: float = 120.0
    more: Mapping[str, Fault] = field(default_factory=dict)
    make_stack: Callable[..., Stack] = Stack
    pairs: float = 0.25
    replays: bool = True


def drill_config(name: str, seed: int) -> RunConfig:
    """A run that fits two cores: a tiny model, short answers, checkpoints often, nothing learned too well."""
    tree = {
        "name": name,
        "seed": seed,
        "model": {"path": str(build_once(cache_dir() / "tiny-model", _build_model)), "dtype": "float32"},
        "kafka": {"transaction_timeout_s": 10.0},
        "worker": {"max_model_len_tokens": 256, "max_num_seqs": 32, "kv_cache_gib": 0.25},
        "rollout": {"group_size": 4, "max_in_flight": 16, "sampling": {"max_tokens": 48}},
        "rewards": {"modules": ["pipelines.drill.rewards"], "timeout_s": 1.0},
        "learner": {
            "steps": 10**9, "groups_per_step": 4, "max_staleness": 2, "checkpoint_every": 10, "learning_rate": 1e-6,
        },
    }  # fmt: skip
    return validate(tree, "of the drill")


def _build_model(target: Path) -> None:
    build_tiny_model(target)


def choose(names: Sequence[str], more: Mapping[str, Fault] | None = None) -> dict[str, Fault]:
    """The faults of these names.

    Args:
        names: of faults and of sets of them.
        more: faults of this drill alone.

    Raises:
        ConfigError: there is none of a name.
    """
    every = {**FAULTS, **CRASHES, **(more or {})}
    sets = {"all": FAULTS, "crashes": CRASHES, "every": every}
    chosen: dict[str, Fault] = {}
    for name in names:
        if name not in sets and name not in every:
            raise ConfigError(f"no fault {name!r}; {did_you_mean(name, [*sets, *every])}")
        chosen |= sets.get(name, {name: every.get(name)})  # type: ignore[dict-item]
    return chosen


def run(plan: Plan, *, as_json: bool = False) -> int:
    """Drills, prints the account, and writes it to ``drill.json`` in the run's directory.

    Returns:
        0 if every count is 0, else 1.
    """
    report = drill(plan)
    text = json.dumps(report.to_json(), indent=1)
    (plan.runs / plan.config.name / "drill.json").write_text(text)
    if as_json:
        sys.stdout.write(f"{text}\n")
    else:
        show(report)
    return 0 if report.ok else 1


def drill(plan: Plan) -> Report:
    """Drills and returns the account."""
    report = Report(plan.config.name, plan.seed)
    with Scene(plan.config, plan.runs, plan.patience_s, plan.make_stack) as scene:
        try:
            _Driver(plan, scene, report).run()
        except AsyncFlowError as error:
            report.ended = f"{type(error).__name__}: {error}"
        injected = scene.injected
    with scene.stack.served() as config, RunReader(config.kafka, config.name) as reader:
        report.verdict = audit(config.name, reader.advance())
    report.repeated = max(0, report.verdict.repeated - injected)
    return report


def stall_ends(blows: Sequence[Blow], until: datetime) -> Iterator[tuple[Blow, datetime]]:
    """Each blow that the run recovered from, and how long a stall is its own: until the next one begins.

    Not until it has recovered: what a fault leaves to be done, such as an election of leaders once a broker is back,
    may hold up later steps than the first.

    Args:
        blows: that struck.
        until: how far the log is known, for those that no other one follows.
    """
    for blow in blows:
        if (worked := blow.recovered_at) is not None:
            yield blow, min((each.began_at for each in blows if each.began_at > worked), default=max(worked, until))


class _Driver:
    """The loop that strikes and waits."""

    def __init__(self, plan: Plan, scene: Scene, report: Report) -> None:
        self._plan, self._scene, self._report = plan, scene, report
        self._random = random.Random(plan.seed)

    def run(self) -> None:
        """The whole drill on a scene that is set up."""
        scene, report = self._scene, self._report
        scene.start(self._plan.seed)
        if not self._tick_until(lambda: len(scene.watch.line) >= _WARM_STEPS, _WARM_S):
            report.ended = f"no {_WARM_STEPS} steps within {_WARM_S:g} s"
            return
        begin = datetime.now(UTC)
        self._tick_until(lambda: False, self._plan.baseline_s)
        struck = datetime.now(UTC)
        try:
            for pair in self._pairs(struck):
                self._strike(pair)
        finally:
            self._measure_stalls()
        self._drain()
        if self._plan.replays:
            self._replay()
        ended = datetime.now(UTC)
        report.seconds = (ended - struck).total_seconds()
        windows = {"without": (begin, struck), "with": (struck, ended)}
        report.productive_share = {name: self._share(*window) for name, window in windows.items()}
        report.groups_per_s = {name: scene.watch.groups_per_s(*window) for name, window in windows.items()}
        report.steps_per_minute = {name: scene.watch.steps_per_minute(*window) for name, window in windows.items()}
        self._account()

    def _pairs(self, struck: datetime) -> Iterator[list[str]]:
        """Names to strike together, one or two, until all are done or the time is over."""
        names = self._names()
        while not self._is_over(struck):
            first = next(names, None)
            if first is None:
                return
            second = next(names, None) if self._random.random() < self._plan.pairs else None
            yield [first, second] if second else [first]

    def _names(self) -> Iterator[str]:
        rounds = 0
        while self._plan.times is None or rounds < self._plan.times:
            names = list(choose(self._plan.faults, self._plan.more))
            self._random.shuffle(names)
            yield from names
            rounds += 1

    def _is_over(self, struck: datetime) -> bool:
        spent_s = (datetime.now(UTC) - struck).total_seconds()
        return self._plan.times is None and spent_s > 60 * self._plan.minutes

    def _strike(self, names: list[str]) -> None:
        watch = self._scene.watch
        before, tokens = dict(watch.counts), watch.tokens_again
        letters = len(watch.log.dead_letters)
        blows = [Blow(name, datetime.now(UTC)) for name in names]
        self._report.blows += blows
        faults = choose(names, self._plan.more)
        _LOG.info("fault", names=names)
        self._drive([faults[blow.fault](self._scene, blow) for blow in blows])
        self._look_for_torn()
        for blow in blows:
            if not blow.not_possible:
                self._recover(blow)
        self._settle()
        for blow in blows:
            blow.counts = {name: max(0, watch.counts[name] - before[name]) for name in before}
            blow.tokens_again = max(0, watch.tokens_again - tokens)
            blow.dead_letters = len(watch.log.dead_letters) - letters

    def _look_for_torn(self) -> None:
        """Now, since what is torn is pruned in the end."""
        found = [
            fault
            for disk in (self._scene.weights, self._scene.checkpoints)
            for fault in torn(disk.directory, self._scene.damaged)
        ]
        self._report.torn += [fault for fault in found if fault not in self._report.torn]

    def _drive(self, strikes: list[Iterator[None]]) -> None:
        while strikes:
            self._tick()
            strikes = [strike for strike in strikes if next(strike, self) is not self]

    def _recover(self, blow: Blow) -> None:
        watch, since = self._scene.watch, blow.over_at or datetime.now(UTC)
        self._tick_until(lambda: watch.recovered_at(since) is not None, _RECOVER_S)
        blow.recovered_at = watch.recovered_at(since)
        if not blow.recovered_at:
            blow.missing.append(f"the loop did not work again within {_RECOVER_S:g} s")
        _LOG.info("recovered", fault=blow.fault, detect_s=blow.detect_s, recover_s=blow.recover_s)

    def _measure_stalls(self) -> None:
        watch = self._scene.watch
        for blow, end in stall_ends(self._report.struck, watch.audited_at):
            blow.stall_s = watch.longest_stall_s(blow.began_at, end)

    def _settle(self) -> None:
        """Two audits that began after everything worked again: what both find counts."""
        for _ in range(2):
            now = datetime.now(UTC)
            if not self._tick_until(lambda now=now: self._scene.watch.audited_at > now, _AUDIT_S):  # type: ignore[misc]
                self._report.ended = f"the log could not be audited within {_AUDIT_S:g} s"

    def _drain(self) -> None:
        """No more prompts: what is admitted has to end."""
        watch = self._scene.watch
        self._scene.feed.stop()
        quiet = self._tick_until(lambda: watch.verdict is not None and watch.verdict.in_flight == 0, _QUIET_S)
        if not quiet and watch.verdict:
            self._report.ended = f"{watch.verdict.in_flight} prompts did not end within {_QUIET_S:g} s"
        self._settle()

    def _replay(self) -> None:
        """Trains the last step again from the newest checkpoint and the log: the weights must be equal, bit for bit."""
        process = self._scene.start_another("replay", [str(self._scene.stack.directory)])
        self._tick_until(lambda: process.poll() is not None, _REPLAY_S)
        self._report.replay_equal = process.poll() == 0

    def _share(self, begin: datetime, end: datetime) -> float:
        seconds = (end - begin).total_seconds()
        return round(self._scene.watch.productive_s(begin, end) / seconds, 4) if seconds else 0.0

    def _account(self) -> None:
        scene, watch, report = self._scene, self._scene.watch, self._report
        announced = {version.version for version in watch.log.weights}
        rotten = {int(path.name) for path in scene.damaged if path.name.isdigit()}
        for version in sorted(watch.served - {0}):
            if version in rotten or version not in announced:
                report.bad_weight_loads.append(f"version {version} was served")
        report.defaulted_rewards = list(watch.defaulted)
        report.given_up = dict(Counter(letter.reason for letter in watch.log.dead_letters if is_good(letter)))
        self._look_for_torn()
        report.tokens = {"generated": watch.tokens_generated, "committed": watch.tokens_committed}

    def _tick(self) -> None:
        self._scene.tick()
        time.sleep(TICK_S)

    def _tick_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._tick()
        return True
