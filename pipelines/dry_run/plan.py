"""From a configuration and the facts to what would be started and what is wrong: pure functions, a section each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipelines.dry_run.facts import Facts, ports_of
from pipelines.dry_run.memory import adapter_is_wrong, memory_checks, model_checks
from pipelines.dry_run.verbs import STACK, VERBS
from pipelines.local.broker import KAFKA_VERSION
from pipelines.local.placement import place
from pipelines.local.ports import LOOPBACK
from pipelines.local.stack import HELD_BY_EVALUATOR, SPARE_BYTES, local_port, worker_name
from pipelines.sizes import checkpoint_bytes, gib, version_bytes
from schemas.checks import Check, Verdict, check
from schemas.config import KafkaConfig, RunConfig
from schemas.errors import ConfigError
from schemas.topics import TopicSpec


@dataclass(frozen=True, slots=True)
class Start:
    """What was asked for."""

    verb: str
    config: RunConfig
    directory: Path | None = None
    """Of the run, if the verb starts a local stack there."""
    resume: bool = False
    gateway: bool = False
    feedback: bool = False
    evaluates: bool = False
    said: tuple[Check, ...] = ()
    """What the verb itself found in its arguments."""

    @property
    def is_stack(self) -> bool:
        """Whether everything is started on this machine."""
        return self.verb in STACK


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of the plan. A section may be empty."""

    title: str
    checks: tuple[Check, ...]


def plan(start: Start, facts: Facts) -> list[Section]:
    """All sections that a verb has, in the order in which they are read; empty ones are left out."""
    if start.is_stack:
        facts = replace(facts, ranks=start.config.local.ranks)
    sections = [Section(title, tuple(make(start, facts))) for title, make in _SECTIONS.items()]
    return [section for section in sections if section.checks]


def wrong(sections: list[Section]) -> list[Check]:
    """What would not work."""
    return [each for section in sections for each in section.checks if each.verdict == "problem"]


# ---------------------------------------------------------------- what would start


def _processes(start: Start, facts: Facts) -> Iterator[Check]:
    if not start.is_stack:
        yield Check(start.verb, VERBS[start.verb].describe(start.config), "ok", "")
        yield from start.said
        return
    yield _run(start, facts)
    yield from _parts(start, facts)
    yield from start.said


def _run(start: Start, facts: Facts) -> Check:
    name, where = start.config.name, f"run {start.config.name} in {start.directory}"
    if facts.is_locked:
        return Check("run", where, "problem", "another process has it: end that one first")
    if facts.exists and not start.resume:
        taken = f"it exists already: give another --name, or go on with asyncflow up --name {name} --resume"
        return Check("run", where, "problem", taken)
    if start.resume and not facts.exists:
        return Check("run", where, "problem", "there is nothing to resume: leave --resume out")
    return Check("run", f"{where}, {'resumed' if start.resume else 'new'}", "ok", "")


def _parts(start: Start, facts: Facts) -> Iterator[Check]:
    config = start.config
    yield _broker_part(config, facts)
    yield _prism_part(facts)
    yield from _computing_parts(config, facts)
    yield Check("rollout", f"Beam on Prism, rollout.shares {config.rollout.shares}", "ok", "")
    if start.evaluates:
        yield Check("evaluate", f"asks held-out prompts of every {config.evaluation.every}. version", "ok", "")
    if start.feedback or start.gateway:
        yield Check("join-feedback", "Beam on a Prism of its own", "ok", "")
    if start.gateway:
        yield Check("gateway", f"web page on {_address(config.gateway.port, 'gateway.port')}", "ok", "")


def _computing_parts(config: RunConfig, facts: Facts) -> Iterator[Check]:
    """Workers and learner, and the GPUs that they get."""
    try:
        placed = place(config, facts.visible_gpus)
    except ConfigError as error:
        yield Check("GPUs", f"{len(facts.gpus)} here", "problem", str(error))
        return
    for number, gpus in enumerate(placed.workers, 1):
        where = _address(config.worker.port, "worker.port") if number == 1 else f"http://{LOOPBACK}:a free port"
        yield Check(worker_name(number), f"vLLM on {where}{_on(gpus)}", "ok", "")
    ranks = f" by {config.local.ranks} ranks" if config.local.ranks > 1 else ""
    what = f"{config.learner.steps} steps{ranks}{_on(placed.learner)}; its metrics on a free port unless given"
    yield Check("learner", what, "ok", "")


def _on(gpus: str) -> str:
    return f", GPU {gpus}" if gpus else ""


def _broker_part(config: RunConfig, facts: Facts) -> Check:
    try:
        port = local_port(config.kafka.bootstrap)
    except ConfigError as error:
        return Check("kafka", f"Kafka {KAFKA_VERSION}", "problem", str(error))
    chosen = config.kafka.bootstrap == KafkaConfig().bootstrap
    what = f"Kafka {KAFKA_VERSION} on {LOOPBACK}:{'a free port' if chosen else port}"
    if facts.jars is None:
        return Check("kafka", what, "warning", "its jars are downloaded from the Maven repository first, once")
    return Check("kafka", f"{what}, jars in the cache", "ok", "")


def _prism_part(facts: Facts) -> Check:
    if isinstance(facts.prism, str):
        return Check("prism", "Beam's local runner", "problem", facts.prism)
    if facts.prism is None:
        return Check("prism", "Beam's local runner", "warning", "it is downloaded or built first, once")
    return Check("prism", f"Beam's local runner, {facts.prism.name}", "ok", "")


def _address(port: int, key: str) -> str:
    default = ports_of(RunConfig())[key]
    return f"http://{LOOPBACK}:{'a free port' if port == default else port}"


# ---------------------------------------------------------------- Kafka


def _topics(start: Start, facts: Facts) -> Iterator[Check]:
    """The broker, and each topic with its settings; of a local stack all would be created."""
    if not start.is_stack and not VERBS[start.verb].asks_broker(start.config):
        return
    if isinstance(facts.topics, str):
        yield Check("broker", start.config.kafka.bootstrap, "problem", facts.topics)
    elif facts.topics is not None:
        yield Check("broker", f"Kafka at {start.config.kafka.bootstrap} answers", "ok", "")
    for spec in start.config.topics.specs(start.config.kafka.partitions, start.config.kafka.replication):
        yield _topic(start, facts, spec)


def _topic(start: Start, facts: Facts, spec: TopicSpec) -> Check:
    settings = ", ".join(f"{key}={value}" for key, value in spec.settings.items())
    shape = f"partitions {spec.partitions}, copies {start.config.kafka.replication}, {settings}"
    if start.is_stack:
        return Check(spec.name, f"{shape}: {'is there or is' if start.resume else 'would be'} created", "ok", "")
    if not isinstance(facts.topics, dict):
        return Check(spec.name, shape, "ok", "")
    faults = facts.topics.get(spec.name)
    if faults is None:
        needed = spec.name.removeprefix(f"{start.config.name}.") in VERBS[start.verb].topics
        verdict: Verdict = "problem" if needed else "warning"
        return Check(spec.name, f"{shape}: missing", verdict, "create the run's topics with asyncflow topics")
    if faults:
        return Check(spec.name, shape, "problem", f"{'; '.join(faults)}; use another --name, or alter the topic")
    return Check(spec.name, f"{shape}: exists", "ok", "")


# ---------------------------------------------------------------- model, memory, disk, ports, arithmetic


def _model(start: Start, facts: Facts) -> Iterator[Check]:
    if start.is_stack or VERBS[start.verb].model:
        yield from model_checks(start.config, facts)


def _memory(start: Start, facts: Facts) -> Iterator[Check]:
    needs = VERBS["up" if start.is_stack else start.verb]
    yield from memory_checks(start.config, facts, engine=needs.engine, learner=needs.learner)


def _disk(start: Start, facts: Facts) -> Iterator[Check]:
    """Versions and checkpoints that are kept, and one of each while the oldest is still there."""
    if not VERBS["up" if start.is_stack else start.verb].store or facts.model is None or isinstance(facts.model, str):
        return
    config = start.config
    if adapter_is_wrong(config, facts.model):
        return
    versions = config.weights.keep + 1 + (HELD_BY_EVALUATOR if start.evaluates else 0)
    checkpoints = config.learner.keep_checkpoints + 1
    each = version_bytes(config, facts.model, facts.dtype)
    held = " + 2 held by the evaluator" if start.evaluates else ""
    yield from _room(
        "weights.root",
        versions * each,
        f"(weights.keep {config.weights.keep} + 1{held}) × {gib(each)} = {gib(versions * each)} of weight versions",
        facts,
        "lower weights.keep, or make room",
    )
    each = checkpoint_bytes(config, facts.model)
    yield from _room(
        "learner.checkpoint_root",
        checkpoints * each,
        f"(learner.keep_checkpoints {config.learner.keep_checkpoints} + 1) × {gib(each)} = "
        f"{gib(checkpoints * each)} of checkpoints",
        facts,
        "lower learner.keep_checkpoints, or make room",
    )
    yield from _both(versions * version_bytes(config, facts.model, facts.dtype) + checkpoints * each, facts)


def _room(key: str, needed: int, formula: str, facts: Facts, remedy: str) -> Iterator[Check]:
    free = facts.free_bytes.get(key)
    if free is None:
        yield Check(key, f"{formula}; the store is elsewhere", "ok", "")
        return
    fits = needed <= free
    yield Check(key, f"{formula}; {gib(free)} are free", "ok" if fits else "problem", "" if fits else remedy)


def _both(needed: int, facts: Facts) -> Iterator[Check]:
    if not facts.one_disk:
        return
    total, free = needed + SPARE_BYTES, min(facts.free_bytes.values())
    formula = f"both, and {gib(SPARE_BYTES)} for the log and the rest: {gib(total)}; {gib(free)} are free"
    remedy = "" if total <= free else "make room, or lower weights.keep or learner.keep_checkpoints"
    yield Check("disk", formula, "problem" if remedy else "ok", remedy)


def _ports(start: Start, facts: Facts) -> Iterator[Check]:
    """Those that were asked for; a local stack takes free ones in the place of defaults."""
    default = ports_of(RunConfig())
    for key, port in ports_of(start.config).items():
        if port and (port != default[key] if start.is_stack else key in VERBS[start.verb].ports):
            busy = port in facts.busy_ports
            remedy = "something else listens there: give another port, or end it" if busy else ""
            yield Check(key, f"{port} {'is taken' if busy else 'is free'}", "problem" if busy else "ok", remedy)


def _files(start: Start, facts: Facts) -> Iterator[Check]:
    """What the configuration names and is not there."""
    beginnings = VERBS["up" if start.is_stack else start.verb].files
    for key, fault in facts.missing.items():
        if key.startswith(beginnings):
            yield Check(key, fault, "problem", "correct the path or the name, or leave it out")


def _arithmetic(start: Start, facts: Facts) -> Iterator[Check]:
    if start.is_stack or VERBS[start.verb].arithmetic:
        yield from check(start.config, facts.ranks)


_SECTIONS: Final[dict[str, Callable[[Start, Facts], Iterator[Check]]]] = {
    "what would be started": _processes,
    "Kafka": _topics,
    "files": _files,
    "model": _model,
    "memory": _memory,
    "disk": _disk,
    "ports": _ports,
    "arithmetic": _arithmetic,
}
