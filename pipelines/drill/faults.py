"""The faults, by name: what happens to a run that works.

Each is a generator: it strikes, yields while time passes, and returns when nothing hinders the run any
more. It notes in its :class:`Blow` when something noticed and what proves that it happened.
"""

import signal
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from pipelines.drill.scene import Blow, Scene
from pipelines.local.stack import BROKER, LEARNER, PRISM, ROLLOUT, WORKER
from schemas.crash_points import LEARNER_POINTS, PIPELINE_POINTS, Action, arm, disarm, hits
from schemas.ledger import StartEntry
from schemas.manifests import MANIFEST_NAME
from schemas.producers import connect_producer

Fault = Callable[[Scene, Blow], Iterator[None]]

_STOP_S: Final = 6.0
_SLOW_S: Final = 10.0
_SLOW_PAUSE_S: Final = 0.9
_SLOW_WORK_S: Final = 0.2
_ROGUE_S: Final = 6.0
_FULL_S: Final = 4.0
_BROKER_LOOKS_S: Final = 12.0
"""A broker looks for transactions that have timed out every ten seconds."""
_FALLBACK_S: Final = 15.0
_NO_ROOM: Final = "mounting a tmpfs is not allowed here"


def _died(scene: Scene, process: str, pid: int) -> bool:
    return scene.pid(process) != pid


def kill(process: str, scene: Scene, blow: Blow) -> Iterator[None]:
    """SIGKILL."""
    pid = yield from _end(process, signal.SIGKILL, scene, blow)
    blow.witness(_died(scene, process, pid), f"{process} {pid} ended by SIGKILL")
    blow.over_at = blow.detected_at


def _end(process: str, number: signal.Signals, scene: Scene, blow: Blow) -> Generator[None, None, int]:
    """Sends a process its end and waits for it; returns the id that it had."""
    yield from scene.when_up(process)
    blow.began_at = datetime.now(UTC)
    pid = scene.pid(process) or 0
    scene.stack.supervisor.signal(process, number)
    yield from scene.until(lambda: _died(scene, process, pid))
    blow.detects()
    return pid


def stop(process: str, scene: Scene, blow: Blow) -> Iterator[None]:
    """SIGSTOP for some seconds, then SIGCONT: everything but time goes on."""
    yield from scene.when_up(process)
    blow.began_at = datetime.now(UTC)
    pid = scene.signal(process, signal.SIGSTOP)
    yield from scene.until(lambda: scene.states(process) == {"stopped"}, _STOP_S)
    blow.witness(scene.states(process) == {"stopped"}, f"{process} {pid} and its children in state stopped")
    yield from scene.pause(_STOP_S)
    scene.signal(process, signal.SIGCONT)
    blow.over_at = datetime.now(UTC)


def slow(process: str, scene: Scene, blow: Blow) -> Iterator[None]:
    """Stopped for most of the time."""
    yield from scene.when_up(process)
    blow.began_at = datetime.now(UTC)
    stopped = 0
    while (datetime.now(UTC) - blow.began_at).total_seconds() < _SLOW_S:
        scene.signal(process, signal.SIGSTOP)
        yield from scene.pause(_SLOW_PAUSE_S)
        stopped += "stopped" in scene.states(process)
        scene.signal(process, signal.SIGCONT)
        yield from scene.pause(_SLOW_WORK_S)
    blow.witness(stopped > 1, f"{process} was seen stopped {stopped} times in {_SLOW_S:g} s")
    blow.over_at = datetime.now(UTC)


def restart_broker(scene: Scene, blow: Blow) -> Iterator[None]:
    """SIGTERM to the broker, which is started again."""
    pid = yield from _end(BROKER, signal.SIGTERM, scene, blow)
    yield from scene.when_up(BROKER)
    blow.witness(scene.pid(BROKER) not in (None, pid), f"broker {pid} ended, {scene.pid(BROKER)} took its place")
    blow.over_at = datetime.now(UTC)


def crash(point: str, process: str, scene: Scene, blow: Blow) -> Iterator[None]:
    """The process kills itself at a named point."""
    pid, found = yield from _hit(point, "kill", process, scene)
    if found:
        blow.began_at = datetime.fromtimestamp(found[0].stat().st_ctime, UTC)
        yield from scene.until(lambda: _died(scene, process, pid))
        blow.detects()
    blow.witness(bool(found), f"{process} {pid} left {', '.join(path.name for path in found)}")
    blow.over_at = blow.detected_at or datetime.now(UTC)


def _hit(point: str, action: Action, process: str, scene: Scene) -> Generator[None, None, tuple[int, list[Path]]]:
    """Arms a point until a process comes there; returns the id that it had, and the witnesses."""
    yield from scene.when_up(process)
    before, pid = len(hits(scene.points, point)), scene.pid(process) or 0
    arm(scene.points, point, action)
    yield from scene.until(lambda: len(hits(scene.points, point)) > before)
    disarm(scene.points, point)
    return pid, hits(scene.points, point)[before:]


def freeze_in_transaction(scene: Scene, blow: Blow) -> Iterator[None]:
    """The learner stops within a transaction until the broker has given it up, and is woken then."""
    pid = yield from _stop_learner_at("in_transaction", scene, blow)
    yield from scene.pause(scene.config.kafka.transaction_timeout_s + _BROKER_LOOKS_S)
    since = scene.log_size(LEARNER)
    scene.signal(LEARNER, signal.SIGCONT)
    yield from scene.until(lambda: _died(scene, LEARNER, pid))
    blow.detects()
    blow.witness(scene.said(LEARNER, "newer learner", since), f"learner {pid} woke and was fenced")
    blow.over_at = datetime.now(UTC)


def _stop_learner_at(point: str, scene: Scene, blow: Blow) -> Generator[None, None, int]:
    pid, _ = yield from _hit(point, "stop", LEARNER, scene)
    blow.began_at = datetime.now(UTC)
    yield from scene.until(lambda: scene.states(LEARNER) == {"stopped"}, 5)
    blow.witness(scene.states(LEARNER) == {"stopped"}, f"learner {pid} stopped at {point}")
    return pid


def second_learner(scene: Scene, blow: Blow) -> Iterator[None]:
    """Another learner is started on the same run, and fences the first."""
    yield from scene.when_up(LEARNER)
    blow.began_at = datetime.now(UTC)
    pid, generations = scene.pid(LEARNER), _generations(scene)
    other = scene.start_another("learn", [*scene.flags(), "--learner.metrics_port", "0"])
    yield from scene.until(lambda: _died(scene, LEARNER, pid or 0))
    blow.detects()
    yield from scene.until(lambda: other.poll() is not None)
    blow.witness(other.poll() is not None, f"the first learner ended, then the second with code {other.poll()}")
    yield from scene.until(lambda: _generations(scene) >= generations + 2)
    blow.witness(_generations(scene) >= generations + 2, "two more generations in the ledger")
    blow.over_at = datetime.now(UTC)


def _generations(scene: Scene) -> int:
    return sum(isinstance(entry, StartEntry) for entry in scene.watch.log.ledger)


def second_pipeline(scene: Scene, blow: Blow) -> Iterator[None]:
    """Another rollout pipeline is started on the same run, and fences the first."""
    yield from scene.when_up(ROLLOUT)
    blow.began_at = datetime.now(UTC)
    pid, since = scene.pid(ROLLOUT), scene.log_size(ROLLOUT)
    flags = [*scene.flags(), "--rollout.metrics_port", "0", *scene.stack.beam_flags()]
    other = scene.start_another("rollout", flags)
    yield from scene.until(lambda: _died(scene, ROLLOUT, pid or 0))
    blow.detects()
    blow.witness(scene.said(ROLLOUT, "newer rollout pipeline", since), f"pipeline {pid} was fenced and ended")
    yield from scene.until(lambda: other.poll() is not None)
    blow.witness(other.poll() is not None, f"the second pipeline ended with code {other.poll()}")
    blow.over_at = datetime.now(UTC)


def garbage_worker(scene: Scene, blow: Blow) -> Iterator[None]:
    """A second worker comes up that answers rubbish."""
    blow.began_at = datetime.now(UTC)
    before, since = sum(scene.rogue.served.values()), scene.log_size(ROLLOUT)
    scene.rogue.switch_on()
    yield from scene.until(lambda: sum(scene.rogue.served.values()) - before > 2)
    yield from scene.until(lambda: scene.said(ROLLOUT, "engine_error", since), _ROGUE_S)
    blow.detects()
    yield from scene.pause(_ROGUE_S)
    scene.rogue.switch_off()
    served = sum(scene.rogue.served.values()) - before
    blow.witness(served > 2, f"{served} answers of rubbish")
    blow.over_at = datetime.now(UTC)


def full_disk(what: str, scene: Scene, blow: Blow) -> Iterator[None]:
    """No room where checkpoints or weights are written."""
    disk = scene.checkpoints if what == "checkpoints" else scene.weights
    if not disk.is_small:
        blow.not_possible = _NO_ROOM
        return
    yield from scene.when_up(LEARNER)
    since = scene.log_size(LEARNER)
    blow.began_at = datetime.now(UTC)
    disk.fill()
    yield from scene.until(lambda: scene.said(LEARNER, "cannot be written", since))
    blow.detects()
    blow.witness(scene.said(LEARNER, "cannot be written", since), f"{disk.free_bytes()} bytes free for {what}")
    yield from scene.pause(_FULL_S)
    disk.empty()
    blow.over_at = datetime.now(UTC)


def rotten_weights(scene: Scene, blow: Blow) -> Iterator[None]:
    """A bit of a version flips after its hash was taken and before it is announced."""
    yield from _stop_learner_at("weights_written", scene, blow)
    directory = max(scene.weights.directory.glob(f"*/{MANIFEST_NAME}"), key=lambda path: int(path.parent.name)).parent
    scene.damaged.add(directory)
    _flip_a_bit(directory / "model.safetensors")
    since = scene.log_size(WORKER)
    scene.signal(LEARNER, signal.SIGCONT)
    yield from scene.until(lambda: scene.said(WORKER, "version_refused", since))
    blow.detects()
    blow.witness(scene.said(WORKER, "version_refused", since), f"version {int(directory.name)} was refused")
    blow.over_at = datetime.now(UTC)


def rotten_checkpoint(scene: Scene, blow: Blow) -> Iterator[None]:
    """A bit of the newest checkpoint flips, and the learner is killed."""
    yield from scene.when_up(LEARNER)
    yield from scene.until(lambda: len(_checkpoints(scene)) > 1)
    scene.signal(LEARNER, signal.SIGSTOP)
    newest = max(_checkpoints(scene), key=lambda directory: directory.stat().st_mtime)
    scene.damaged.add(newest)
    shard = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    _flip_a_bit(shard)
    since = scene.log_size(LEARNER)
    yield from kill(LEARNER, scene, blow)
    yield from scene.when_up(LEARNER)
    yield from scene.until(lambda: scene.said(LEARNER, "checkpoint cannot be used", since), _FALLBACK_S)
    fell_back = scene.said(LEARNER, "checkpoint cannot be used", since)
    blow.witness(fell_back, f"{newest.name} was passed over for an older one")
    blow.over_at = datetime.now(UTC)


def _checkpoints(scene: Scene) -> set[Path]:
    whole = {path.parent for path in scene.checkpoints.directory.glob(f"*/{MANIFEST_NAME}")}
    return whole - scene.damaged


def _flip_a_bit(path: Path) -> None:
    value = bytearray(path.read_bytes())
    value[-100] ^= 1
    path.write_bytes(value)


def copied_record(scene: Scene, blow: Blow) -> Iterator[None]:
    """A program that is not ours writes a record of the trajectories topic once more."""
    at = yield from _inject(scene, blow, lambda value: value)
    yield from scene.until(lambda: at in _dropped(scene))
    blow.detects()
    blow.witness(at in _dropped(scene), f"the copy at {at} was dropped as a duplicate")
    blow.over_at = datetime.now(UTC)


def rotten_record(scene: Scene, blow: Blow) -> Iterator[None]:
    """A program that is not ours writes a damaged record to the trajectories topic."""
    at = yield from _inject(scene, blow, _with_a_wrong_byte)
    yield from scene.until(lambda: _has_letter(scene, at))
    blow.detects()
    blow.witness(_has_letter(scene, at), f"the record at {at} is a dead letter")
    blow.over_at = datetime.now(UTC)


def _with_a_wrong_byte(value: bytes) -> bytes:
    middle = len(value) // 2
    return value[:middle] + bytes([value[middle] ^ 0xFF]) + value[middle + 1 :]


def _inject(scene: Scene, blow: Blow, change: Callable[[bytes], bytes]) -> Generator[None, None, tuple[int, int]]:
    """Writes a changed copy of a committed record; returns its place."""
    from kafka import KafkaConsumer, TopicPartition

    yield from scene.when_up(BROKER)
    place = scene.watch.log.groups[-1].at
    partition = TopicPartition(scene.config.topics.trajectories, place[0])
    consumer = KafkaConsumer(**scene.config.kafka.consumer_options())
    consumer.assign([partition])
    consumer.seek(partition, place[1])
    found: list[Any] = []
    while not found:
        found = consumer.poll(200, max_records=1).get(partition, [])
        yield
    consumer.close()
    producer = connect_producer(scene.config.kafka.producer_options())
    copy = producer.send(
        partition.topic, change(found[0].value), found[0].key, list(found[0].headers), partition=place[0]
    )
    blow.began_at = datetime.now(UTC)
    at = (place[0], copy.get(timeout=30).offset)
    producer.close()
    scene.injected += sum(group.at == place for group in scene.watch.log.groups)
    blow.witness(True, f"record {place} of {partition.topic} was written again at {at}")
    return at


def _dropped(scene: Scene) -> set[tuple[int, int]]:
    return {dropped.at for step in scene.watch.line for dropped in step.dropped if dropped.reason == "duplicate"}


def _has_letter(scene: Scene, at: tuple[int, int]) -> bool:
    letters = scene.watch.log.dead_letters
    place = f"{scene.config.topics.trajectories}[{at[0]}] offset {at[1]}"
    return any(place in letter.detail for letter in letters if letter.stage == "learn")


FAULTS: Final[dict[str, Fault]] = {
    **{f"kill {process}": partial(kill, process) for process in (LEARNER, WORKER, ROLLOUT, PRISM, BROKER)},
    **{f"stop {process}": partial(stop, process) for process in (LEARNER, WORKER, ROLLOUT, PRISM, BROKER)},
    **{f"slow {process}": partial(slow, process) for process in (LEARNER, WORKER)},
    "restart kafka": restart_broker,
    "garbage worker": garbage_worker,
    "second learner": second_learner,
    "second pipeline": second_pipeline,
    "frozen transaction": freeze_in_transaction,
    "full checkpoints": partial(full_disk, "checkpoints"),
    "full weights": partial(full_disk, "weights"),
    "rotten weights": rotten_weights,
    "rotten checkpoint": rotten_checkpoint,
    "copied record": copied_record,
    "rotten record": rotten_record,
}
"""What a drill draws from."""

CRASHES: Final[dict[str, Fault]] = {
    f"crash {point}": partial(crash, point, process)
    for process, points in ((LEARNER, LEARNER_POINTS), (ROLLOUT, PIPELINE_POINTS))
    for point in points
}
"""Every crash point."""
