"""What the log says of the prompts, which is all that a curriculum remembers.

    {run}.prompts (at the start) ──► its newest number, how often each prompt was drawn and where last
    {run}.trajectories ──► results of each prompt: Pool.learn; it is no longer in flight
    {run}.dead-letters ──► no longer in flight; given up, unless nobody judged it in time
    {run}.admission ──► which of its prompts are admitted, and how many wait for that

History is what was read, in plain values; Reader reads. Whatever order the records of several partitions come in, the
same records make the same history. It holds a few numbers for each prompt of the pools and for each that waits.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, NamedTuple

from pipelines.curriculum.selection import Pool
from pipelines.curriculum.settings import Selection
from pipelines.log import TopicReader
from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, RecordError
from schemas.identity import GroupId
from schemas.trajectories import decode_columns

MARK: Final = "curriculum"
"""Key of a prompt's metadata under which its number stands."""
_COLUMNS: Final = ("prompt_partition", "prompt_offset", "prompt_id", "purpose", "reward", "weight_version_max")
_RATED: Final = ("train", "feedback")
"""Purposes of rows whose reward says how good an answer was; that of a correction is a difference."""


_UNJUDGED: Final = "join"
"""The stage whose dead letters are of answers that nobody judged in time."""


class Result(NamedTuple):
    """What came of one group."""

    group: GroupId
    prompt_id: str
    rewards: tuple[float, ...]
    """Those that are known; empty if none is."""
    version: int
    """The newest weights among those that answered."""


class Place(NamedTuple):
    """A prompt of the pools."""

    pool: int
    row: int


class History:
    """What has become of the prompts so far.

    Args:
        pools: are told what is read; nothing may be known of them yet.
        selection: what a success is, and how long it counts.

    Attributes:
        number: of the newest prompt that was written; 0 if none was.
        version: the newest weights of which there is a result.
    """

    def __init__(self, pools: Sequence[Pool], selection: Selection) -> None:
        self.number, self.version = 0, 0
        self._pools, self._selection = pools, selection
        self._places = {name: Place(at, i) for at, pool in enumerate(pools) for i, name in enumerate(pool.ids)}
        self._newest: dict[Place, int] = {}
        self._flying: dict[GroupId, Place] = {}
        self._flights: dict[Place, GroupId] = {}
        self._waiting: set[GroupId] = set()
        self._frontier = AdmissionFrontier(version=0, generation=1, frontier={})

    @property
    def era(self) -> int:
        """Half-lives of weight versions until now."""
        return self.version // self._selection.half_life

    @property
    def waiting(self) -> int:
        """Prompts that were written and are not admitted yet."""
        return len(self._waiting)

    @property
    def flying(self) -> int:
        """Prompts of the pools that were written and not answered yet."""
        return len(self._flying)

    def note_prompt(self, group: GroupId, prompt_id: str, number: int) -> None:
        """A prompt was written, as number so and so, to this place."""
        self.number = max(self.number, number)
        if not self._frontier.admits(*group):
            self._waiting.add(group)
        place = self._places.get(prompt_id)
        if place is None:
            return  # drawn before this start, which names other tasks
        pool, index = self._pools[place.pool], place.row
        pool.draws[index] += 1
        if number > self._newest.get(place, 0):
            self._newest[place] = number
            self._land(place)
            self._flying[group], self._flights[place] = place, group
            pool.in_flight[index] = True

    def note_result(self, result: Result) -> None:
        """A group was answered; those that others asked for count as well."""
        self.version = max(self.version, result.version)
        self._answered(result.group)
        place = self._places.get(result.prompt_id)
        if place is not None and result.rewards:
            passed, era = self._selection.passed(result.rewards), result.version // self._selection.half_life
            self._pools[place.pool].learn(place.row, passed, len(result.rewards), era)

    def note_letter(self, letter: DeadLetter) -> None:
        """A record of the prompts topic became a dead letter. It may have killed engines, so it is not asked again."""
        place = self._answered(letter.group)
        if place is not None and letter.stage != _UNJUDGED:
            self._pools[place.pool].given_up[place.row] = True

    def note_frontier(self, frontier: AdmissionFrontier) -> None:
        """More prompts may be generated."""
        self._frontier = frontier
        self._waiting = {group for group in self._waiting if not frontier.admits(*group)}

    def _answered(self, group: GroupId) -> Place | None:
        place = self._flying.get(group)
        if place is not None:
            self._land(place)
        return place

    def _land(self, place: Place) -> None:
        group = self._flights.pop(place, None)
        if group is not None:
            del self._flying[group]
            self._pools[place.pool].in_flight[place.row] = False


class Reader:
    """Reads the log into a history, first all of it and then what is new.

    Raises:
        BrokerError: Kafka cannot be reached, or a topic is missing.
    """

    def __init__(self, config: RunConfig, history: History, opened: ExitStack) -> None:
        self._config, self._history = config, history
        topics = config.topics
        names = (topics.admission, topics.trajectories, topics.dead_letters)
        self._admission, self._trajectories, self._letters = (self._follow(name, opened) for name in names)
        with ExitStack() as once:
            prompts = self._follow(topics.prompts, once)
            self.partitions = len(prompts.partitions)
            self._read_prompts(prompts)
        for _ in self.read_on():
            pass

    def _follow(self, topic: str, opened: ExitStack) -> TopicReader:
        reader = TopicReader(self._config.kafka, topic)
        opened.callback(reader.close)
        return reader

    def _read_prompts(self, prompts: TopicReader) -> None:
        """The frontier goes first: so only those that wait are kept by their places."""
        with self._in_words():
            self._read_frontier()
            for record in prompts.read_on():
                if mark := mark_of(record.value):
                    self._history.note_prompt(GroupId(record.partition, record.offset), *mark)

    def read_on(self) -> Iterator[Result]:
        """Reads to the present end; gives the results that are new."""
        with self._in_words():
            self._read_frontier()
            for record in self._trajectories.read_on():
                for result in results_in(record):
                    self._history.note_result(result)
                    yield result
            self._read_letters()

    def _read_frontier(self) -> None:
        newest = None
        for record in self._admission.read_on():
            with suppress(RecordError):
                newest = AdmissionFrontier.decode(record.value)
        if newest is not None:
            self._history.note_frontier(newest)

    def _read_letters(self) -> None:
        for record in self._letters.read_on():
            with suppress(RecordError):
                letter = DeadLetter.decode(record.value)
                if letter.topic == self._config.topics.prompts:
                    self._history.note_letter(letter)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        from kafka.errors import KafkaError

        try:
            yield
        except KafkaError as error:
            raise BrokerError(f"Kafka at {self._config.kafka.bootstrap} cannot be read: {error!r}") from error


def mark_of(value: bytes | None) -> tuple[str, int] | None:
    """Id and number of a prompt that a curriculum wrote; null for those of others."""
    if value is None or f'"{MARK}"'.encode() not in value:
        return None
    try:
        prompt: Any = json.loads(value)
        name, number = prompt["prompt_id"], prompt["metadata"][MARK]["number"]
    except (ValueError, RecursionError, TypeError, LookupError):
        return None
    return (name, number) if isinstance(name, str) and type(number) is int and number > 0 else None


def results_in(record: Any) -> Iterator[Result]:
    """The results of a trajectories record; none of one that cannot be read, which is the audit's business."""
    try:
        table = decode_columns(record.value, dict(record.headers), _COLUMNS)
    except RecordError:
        return
    groups: dict[GroupId, Result] = {}
    for partition, offset, name, purpose, reward, version in zip(*table.to_pydict().values(), strict=True):
        if name is None or purpose not in _RATED:
            continue
        group = GroupId(partition, offset)
        known = groups.setdefault(group, Result(group, name, (), version))
        rewards = known.rewards if reward is None or not math.isfinite(reward) else (*known.rewards, reward)
        groups[group] = known._replace(rewards=rewards, version=max(known.version, version))
    yield from groups.values()
