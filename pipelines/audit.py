"""Is every promise of the log kept? ``audit`` says so from the topics alone.

    topics ──► RunLog ──► audit() ──► Verdict

Each admitted prompt must end in exactly one of trained, dropped with a reason, and dead letter; what
has no end yet is either on its way (``in_flight``: the pipeline did not commit it; ``parked``: it
waits in the pending topic for feedback; ``waiting``: its group lies in the trajectories topic, unread
by the surviving line) or ``lost``. A group is lost when
the pipeline committed its prompt as finished but no topic holds an outcome, or when the surviving
line consumed a later record of the same trajectories partition and has left the group behind: the
learner reads each partition in order, but trains the oldest weights first, so a group that it holds
is trained or dropped as stale within ``max_staleness`` updates, or ``max_feedback_staleness`` if it
was rated.

The learner of a federation's site goes on from other weights now and then, which ages what was answered before as a
step does. What it trained between is in one update for the federation at most, whatever restarted meanwhile.

Groups that are no prompts, of exchanges and of feedback, were admitted by nobody. They too end at most
once, whole, as what their id allows them to be, and none may be left behind.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from pipelines.log import GroupRecord, RunLog, RunReader
from pipelines.runs import served
from schemas.identity import GroupId
from schemas.ledger import (
    AdoptEntry,
    Adoptions,
    LedgerEntry,
    Settings,
    StartEntry,
    StepEntry,
    UpdateEntry,
    surviving_adoptions,
    surviving_steps,
)
from trainers.purposes import find_misfit

FAULTS_SHOWN = 20
"""Of a verdict, in words."""
_TRAJECTORIES = ".trajectories"


class Verdict(BaseModel):
    """The result of an audit; ``ok`` is the conjunction of all promises."""

    run: str
    ok: bool
    steps: int
    """Steps of the surviving line."""
    generations: int
    """Starts of the learner."""
    admitted: int
    """Prompts below the newest admission frontier."""
    trained: int
    """Groups that contributed to a step of the surviving line."""
    trained_by_purpose: dict[str, int]
    """The same by the purpose of their rows."""
    dropped: dict[str, int]
    """Groups dropped by the surviving line, by reason."""
    dead_letters: int
    """Admitted prompts that ended as a dead letter."""
    waiting: int
    """Finished groups that no step has consumed yet."""
    parked: int
    """Admitted prompts whose group is pending: it waits for feedback."""
    in_flight: int
    """Admitted prompts that are not finished yet."""
    lost: int
    """Must be 0: admitted prompts without an end that nothing works on."""
    duplicate: int
    """Must be 0: groups with more than one end."""
    mixed_attempts: int
    """Must be 0: trained groups that are not, whole, the attempt that the ledger names."""
    unknown_versions: int
    """Must be 0: trained groups with a token of a weight version that was never announced."""
    zombie_commits: int
    """Must be 0: records of a generation that a newer one had replaced."""
    half_commits: int
    """Must be 0: records of one of the learner's transactions without the others of it."""
    admission_excess: int
    """Must be 0: prompts in flight or lost beyond what a step's groups and staleness allow."""
    misplaced: int
    """Must be 0: trained groups that their ids do not allow to be what they were trained as."""
    unreadable: int
    """Must be 0: records that no reader can decode and that no dead letter accounts for."""
    updates: int
    """Updates that the run, as a federation's site, wrote for it."""
    adoptions: int
    """How often the surviving line went on from a global version."""
    contributed_twice: int
    """Must be 0: groups that are in two updates for the federation, and updates that one number names twice."""
    repeated: int
    """Groups that lie in the trajectories topic more than once. The pipeline never writes one twice: the
    others are somebody else's copies, or its promise is broken. The learner trains the first."""
    staleness_max: int
    """Most steps between the weights that answered a prompt and the weights that were trained."""
    staleness_bound: int
    """``max_staleness`` of the newest start."""
    feedback_staleness_max: int
    """The same of groups whose reward came as feedback, and of corrections."""
    feedback_staleness_bound: int | None
    """``max_feedback_staleness`` of the newest start; null where its learner knew of none."""
    faults: list[str]
    """The first faults, in words."""


@dataclass
class _Findings:
    """Counts of faults, and the first of them in words."""

    counts: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.words) < FAULTS_SHOWN:
            self.words.append(f"{kind}: {text}")


def audit(run: str, log: RunLog) -> Verdict:
    """Checks everything that DESIGN.md promises of the log of ``run``."""
    line, findings = surviving_steps(log.ledger), _Findings()
    admitted = _admitted(log)
    ends = _ends(log, line)
    settings = _settings(log.ledger)
    ages = Ages.of(log, line, settings)
    states = _unfinished(log, line, (admitted | _uninvited(log)) - ends.keys(), ages, findings)
    _check_ends(ends, findings)
    _check_trained(log, line, findings)
    _check_order(log, findings)
    _check_transactions(log, findings)
    _check_updates(log.ledger, findings)
    staleness, late = _staleness(log, line, ages)
    for found, bound in ((staleness, settings.max_staleness), (late, settings.max_feedback_staleness)):
        if bound is not None and found > bound:
            findings.add("staleness", f"{found} versions, bound {bound}")
    if log.ledger:
        _check_admission(states, settings, findings)
    counts = findings.counts
    return Verdict(
        run=run,
        ok=not counts,
        steps=len(line),
        generations=sum(isinstance(entry, StartEntry) for entry in log.ledger),
        admitted=len(admitted),
        trained=sum(len(step.trained) for step in line),
        trained_by_purpose=_by_purpose(log, line),
        dropped=dict(Counter(group.reason for step in line for group in step.dropped)),
        dead_letters=sum(1 for group in admitted if "dead letter" in ends.get(group, ())),
        waiting=states["waiting"],
        parked=states["parked"],
        in_flight=states["in_flight"],
        lost=counts["lost"],
        duplicate=counts["duplicate"],
        mixed_attempts=counts["mixed_attempts"],
        unknown_versions=counts["unknown_versions"],
        zombie_commits=counts["zombie_commits"],
        half_commits=counts["half_commits"],
        admission_excess=counts["admission_excess"],
        misplaced=counts["misplaced"],
        unreadable=counts["unreadable"],
        updates=len({_name(entry) for entry in log.ledger if isinstance(entry, UpdateEntry)}),
        adoptions=len(surviving_adoptions(log.ledger)),
        contributed_twice=counts["contributed_twice"],
        repeated=_repeated(log),
        staleness_max=staleness,
        staleness_bound=settings.max_staleness,
        feedback_staleness_max=late,
        feedback_staleness_bound=settings.max_feedback_staleness,
        faults=findings.words,
    )


def _admitted(log: RunLog) -> set[GroupId]:
    frontier = log.admission[-1].frontier if log.admission else {}
    return {
        GroupId(partition, offset)
        for partition, offsets in log.prompts.items()
        for offset in offsets
        if offset < frontier.get(partition, 0)
    }


def _uninvited(log: RunLog) -> set[GroupId]:
    """Groups of the trajectories topic that are no prompts, but those whose record became a dead letter."""
    refused = {(letter.partition, letter.offset) for letter in log.dead_letters if letter.topic.endswith(_TRAJECTORIES)}
    return {record.group for record in log.groups if not record.group.is_prompt and record.at not in refused}


def _settings(ledger: Iterable[LedgerEntry]) -> Settings:
    found = [entry.settings for entry in ledger if isinstance(entry, StartEntry) and entry.settings]
    return found[-1] if found else Settings(max_staleness=0, groups_per_step=1)


def _ends(log: RunLog, line: list[StepEntry]) -> dict[GroupId, list[str]]:
    """How each group ended on the surviving line: more than one entry is a fault."""
    ends: dict[GroupId, list[str]] = {}
    for step in line:
        for trained in step.trained:
            ends.setdefault(trained.group, []).append(f"trained in step {step.step}")
        for dropped in step.dropped:
            if dropped.reason != "duplicate":
                ends.setdefault(dropped.group, []).append(f"dropped in step {step.step}")
    prompts = {GroupId(partition, offset) for partition, offsets in log.prompts.items() for offset in offsets}
    for group in {letter.group for letter in log.dead_letters if letter.topic.endswith(".prompts")} & prompts:
        ends.setdefault(group, []).append("dead letter")
    return ends


def _check_ends(ends: dict[GroupId, list[str]], findings: _Findings) -> None:
    for group, ways in ends.items():
        if len(ways) > 1:
            findings.add("duplicate", f"group {group}: {', '.join(ways)}")


_LATE = ("feedback", "correction")
"""Purposes of groups that come when people have judged them."""


@dataclass(frozen=True)
class Ages:
    """How old weights are along the surviving line: in updates, since a step that trained nothing ages no sample."""

    step_of: dict[int, int]
    """The step of each announced version."""
    updates: list[int]
    """Updates up to and with each step, step 0 first."""
    settings: Settings
    adopted: Adoptions = field(default_factory=Adoptions)
    """Where the line went on from other weights: what was there before is older by one since then."""
    generations: dict[int, int] = field(default_factory=dict)
    """Of each announced version."""

    @classmethod
    def of(cls, log: RunLog, line: list[StepEntry], settings: Settings) -> Self:
        """The ages along the surviving ``line`` of a run; ``settings`` are only asked by :meth:`are_over`."""
        updates = list(accumulate((bool(step.trained) for step in line), initial=0))
        steps = {version.version: version.step for version in log.weights}
        ages = cls(steps, updates, settings, generations={each.version: each.generation for each in log.weights})
        for entry in log.ledger:
            ages.adopted.add(entry)
        return ages

    def staleness(self, version: int, steps_done: int) -> int:
        """Updates between the version and the weights after so many steps; negative for one of a dead line."""
        step = min(self.step_of.get(version, 0), len(self.updates) - 1)
        adopted = self.adopted.until(steps_done) - self.adopted.of(version, self.generations.get(version, 0))
        return self.updates[steps_done] - self.updates[step] + adopted

    def are_over(self, record: GroupRecord) -> bool:
        """Whether the newest step found the group too old to train."""
        before, settings = max(0, len(self.updates) - 2), self.settings
        ages = [self.staleness(version, before) for version in record.spanned]
        if record.purpose in _LATE:
            bound = settings.max_feedback_staleness
            return bound is not None and max(ages) > bound
        if record.purpose == "demonstration":
            return False
        by_token = settings.max_token_staleness
        return max(ages) > settings.max_staleness if by_token is None else min(ages) > by_token


def _unfinished(
    log: RunLog, line: list[StepEntry], unfinished: set[GroupId], ages: Ages, findings: _Findings
) -> Counter[str]:
    """Sorts the groups without an end: how many are ``waiting``, ``parked`` and ``in_flight``."""
    written = {record.group: record for record in reversed(log.groups)}
    pending = {record.group for record in log.pending}
    consumed = dict(_consumed_up_to(line))
    states: Counter[str] = Counter()
    for group in unfinished:
        record = written.get(group)
        passed = record is not None and record.at[1] < consumed.get(record.at[0], 0)
        if record is not None and passed and ages.are_over(record):
            findings.add("lost", f"group {group} at trajectories {record.at}: passed over by the learner")
        elif record is not None:
            states["waiting"] += 1
        elif group in pending:
            states["parked"] += 1
        elif group.partition in log.finished and group.offset in log.finished[group.partition]:
            findings.add("lost", f"group {group}: committed as finished, but no topic holds an outcome")
        else:
            states["in_flight"] += 1
    return states


def _check_admission(states: Counter[str], settings: Settings, findings: _Findings) -> None:
    """What is admitted and neither ended, nor parked, nor written yet must fit into the steps that staleness allows.

    Drops move admission at once and reach the ledger with the next step: until then they wait.
    """
    open_, allowed = (
        states["in_flight"] + findings.counts["lost"],
        (1 + settings.max_staleness) * settings.groups_per_step,
    )
    if open_ > allowed:
        findings.counts["admission_excess"] = open_ - allowed
        findings.words.append(f"admission_excess: {open_} in flight, at most {allowed} allowed")


def _consumed_up_to(line: list[StepEntry]) -> Iterator[tuple[int, int]]:
    """For each trajectories partition the newest record that the surviving line consumed."""
    newest: dict[int, int] = {}
    for step in line:
        for partition, offset in (*(group.at for group in step.trained), *(group.at for group in step.dropped)):
            newest[partition] = max(newest.get(partition, 0), offset)
    yield from newest.items()


def _check_trained(log: RunLog, line: list[StepEntry], findings: _Findings) -> None:
    """Every trained group must be, whole, in the record that the ledger names."""
    records = _records(log)
    known = {version.version for version in log.weights}
    for step in line:
        for trained in step.trained:
            record = records.get((trained.group, trained.at))
            if record is None or (record.attempt, record.samples) != (trained.attempt, trained.samples):
                findings.add("mixed_attempts", f"group {trained.group} of step {step.step}: the record has {record}")
            elif not record.spanned <= known or record.versions != trained.versions:
                unknown = sorted(record.spanned - known) or f"{record.versions}, the ledger says {trained.versions}"
                findings.add("unknown_versions", f"group {trained.group} of step {step.step}: {unknown}")
            elif misfit := find_misfit(record.group, record.purpose.split("+"), record.samples):
                findings.add("misplaced", f"group {trained.group} of step {step.step} has {misfit}")


def _records(log: RunLog) -> dict[tuple[GroupId, tuple[int, int]], GroupRecord]:
    return {(record.group, record.at): record for record in log.groups}


def _by_purpose(log: RunLog, line: list[StepEntry]) -> dict[str, int]:
    records = _records(log)
    found = (records.get((trained.group, trained.at)) for step in line for trained in step.trained)
    return dict(Counter(record.purpose for record in found if record))


def _check_order(log: RunLog, findings: _Findings) -> None:
    """Generations, versions and frontiers must never go back; unreadable records are faults."""
    for name, generations in (
        ("ledger", [entry.generation for entry in log.ledger]),
        ("weights", [version.generation for version in log.weights]),
        ("admission", [frontier.generation for frontier in log.admission]),
    ):
        for before, after in pairwise(generations):
            if after < before:
                findings.add("zombie_commits", f"{name}: a record of generation {after} after generation {before}")
    versions = [version.version for version in log.weights]
    for before, after in pairwise(versions):
        if after <= before:
            findings.add("versions", f"version {after} was announced after {before}")
    for older, newer in pairwise(log.admission):
        if any(newer.frontier.get(partition, 0) < offset for partition, offset in older.frontier.items()):
            findings.add("frontier", f"the admission frontier went back from {older.frontier} to {newer.frontier}")
    _check_unreadable(log, findings)


def _check_transactions(log: RunLog, findings: _Findings) -> None:
    """A step, its weight version and its admission frontier are one transaction: all of it is there, or nothing."""
    announced = {(version.generation, version.step, version.version) for version in log.weights}
    frontiers = {(frontier.generation, frontier.version) for frontier in log.admission}
    begun: set[tuple[int, int]] = set()
    for entry in log.ledger:
        if isinstance(entry, StartEntry):
            begun.add((entry.generation, entry.continues.step if entry.continues else 0))
        elif isinstance(entry, StepEntry):
            begun.add((entry.generation, entry.step))
            if entry.trained and (entry.generation, entry.step, entry.version) not in announced:
                findings.add("half_commits", f"step {entry.step} of generation {entry.generation} announced no weights")
            if (entry.generation, entry.version) not in frontiers:
                findings.add("half_commits", f"step {entry.step} of generation {entry.generation} moved no frontier")
        elif isinstance(entry, AdoptEntry) and (entry.generation, entry.step, entry.version) not in announced:
            what = f"global version {entry.global_version} at step {entry.step} of generation {entry.generation}"
            findings.add("half_commits", f"{what} was adopted and announced no weights")
    for version in log.weights:
        if (version.generation, version.step) not in begun:
            findings.add("half_commits", f"version {version.version} belongs to no step and no start of the ledger")


def _check_updates(ledger: Iterable[LedgerEntry], findings: _Findings) -> None:
    """No group is in two updates for the federation: not in one of a dead line and one of the surviving line either."""
    line: list[StepEntry] = []
    named: dict[_Name, UpdateEntry] = {}
    contained: dict[GroupId, _Name] = {}
    for entry in ledger:
        if isinstance(entry, StartEntry):
            line = surviving_steps([*line, entry])
        elif isinstance(entry, StepEntry):
            line.append(entry)
        elif isinstance(entry, UpdateEntry):
            name = _name(entry)
            if named.setdefault(name, entry).update != entry.update:
                findings.add("contributed_twice", f"update {_words(name)} was written again with another content")
            steps = takewhile(lambda step, since=entry.since: step.step > since, reversed(line))  # type: ignore[misc]
            for group in (part.group for step in steps for part in step.trained):
                if contained.setdefault(group, name) != name:
                    told = f"{_words(contained[group])} and {_words(name)}"
                    findings.add("contributed_twice", f"group {group} is in updates {told}")


_Name = tuple[str, str, int]
"""Federation, site, sequence."""


def _name(entry: UpdateEntry) -> _Name:
    return entry.federation, entry.update.site, entry.update.sequence


def _words(name: _Name) -> str:
    federation, site, sequence = name
    return f"{sequence} of {site} for {federation}"


def _repeated(log: RunLog) -> int:
    return sum(times > 1 for times in Counter(record.group for record in log.groups).values())


def _check_unreadable(log: RunLog, findings: _Findings) -> None:
    accounted = {f"{letter.topic}/{letter.partition}/{letter.offset}" for letter in log.dead_letters}
    details = " ".join(letter.detail for letter in log.dead_letters)
    for text in log.unreadable:
        where = text.split(":", 1)[0]
        if where not in accounted and where not in details:
            findings.add("unreadable", text)


def _staleness(log: RunLog, line: list[StepEntry], ages: Ages) -> tuple[int, int]:
    """Counted again from the records: updates of the weights between a trained version and the step, at most.

    Returns:
        Of answers to prompts, and of what was rated or corrected; a demonstration has none.
    """
    records = _records(log)
    found, late = [0], [0]
    for before, step in enumerate(line):
        for trained in step.trained:
            record = records.get((trained.group, trained.at))
            purpose, versions = (record.purpose, record.spanned) if record else ("train", frozenset(trained.versions))
            if purpose in _LATE:
                late += [ages.staleness(version, before) for version in versions]
            elif purpose != "demonstration":
                found += [ages.staleness(version, before) for version in versions.difference(step.too_old)]
    return max(found), max(late)


def run(run: str | None, bootstrap: str | None = None, file: Path | None = None) -> int:
    """Audits a run and prints the verdict as JSON.

    Args:
        run: a run directory, or the name of a run.
        bootstrap: where its log is served; null for where its configuration says. The log of a
            finished run of this machine is served for the time of the audit.
        file: with its configuration, instead of ``run``.

    Returns:
        0 if every promise is kept, else 1.
    """
    with served(run, bootstrap, file) as config, RunReader(config.kafka, config.name) as reader:
        verdict = audit(config.name, reader.advance())
    print(verdict.model_dump_json(indent=2))  # noqa: T201 - the product of this command
    return 0 if verdict.ok else 1
