"""What a run is doing, read from its topics: the numbers of the live table, the summary and the report.

topics ──► RunReader ──► Monitor ──► Snapshot ──► table.py, metrics.jsonl, summary.json, report.html
"""

import json
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from pipelines.log import RunLog, RunReader
from schemas.config import RunConfig
from schemas.ledger import StepEntry, surviving_steps
from schemas.trajectories import Sample

_RATE_WINDOW_S = 15.0
_SAMPLES_KEPT = 2000


@dataclass(frozen=True, slots=True)
class StageRow:
    """One line of the live table; counts are groups."""

    stage: str
    taken: int
    """Groups that came in."""
    given: int
    """Groups that went out."""
    lag: int
    """Groups that wait in front of the stage."""
    in_flight: int
    """Groups that the stage works on."""
    errors: int
    """Groups that ended here without use, and samples without a reward."""
    tokens_per_s: float | None = None
    """Over the last 15 seconds; None where the stage has no tokens."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One answer as a person would read it."""

    group: str
    prompt: str
    answer: str
    reward: float | None
    versions: tuple[int, int]
    """Oldest and newest weight version among its tokens."""
    step: int
    """Steps that the learner had done when the answer was read."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run at one moment."""

    rows: tuple[StageRow, ...]
    steps: int
    """Steps of the surviving line."""
    reward: float | None
    """Mean reward of the newest step; None before the first."""
    version: int
    """The newest announced weight version; 0 before the first."""
    staleness_max: int
    """Of the newest step."""
    samples: tuple[ShownSample, ...]
    """The newest few, oldest first."""


class Monitor:
    """Follows the topics of one run.

    Args:
        config: of the run.
        directory: of the run; the metrics of every step are appended to its ``metrics.jsonl``.
    """

    def __init__(self, config: RunConfig, directory: Path) -> None:
        from tokenizers import Tokenizer

        self._config = config
        self._tokenizer = Tokenizer.from_file(str(Path(config.model.path) / "tokenizer.json"))
        self._metrics = directory / "metrics.jsonl"
        self._metrics.write_text("")
        self._steps_written = 0
        self._arrivals: deque[tuple[float, int]] = deque()
        self._unscored = 0
        self._steps_done = 0
        self._reader = RunReader(config.kafka, config.name, self._on_group)
        self.samples: deque[ShownSample] = deque(maxlen=_SAMPLES_KEPT)
        self.versions_taken_in_flight: set[int] = set()
        """Versions that took over in the middle of at least one answer."""
        self.response_tokens = 0
        """Of all groups in the trajectories topic."""

    @property
    def log(self) -> RunLog:
        """Everything read so far."""
        return self._reader.log

    @property
    def line(self) -> list[StepEntry]:
        """The steps of the surviving line."""
        return surviving_steps(self.log.ledger)

    def close(self) -> None:
        """Closes the connections."""
        self._reader.close()

    def advance(self) -> Snapshot:
        """Reads on, writes new steps to ``metrics.jsonl`` and says how the run stands."""
        self._reader.advance()
        self._write_metrics()
        line = self.line
        self._steps_done = len(line)
        newest = line[-1].metrics if line else {}
        return Snapshot(
            rows=self._rows(line),
            steps=len(line),
            reward=newest.get("reward_mean"),
            version=self.log.weights[-1].version if self.log.weights else 0,
            staleness_max=int(newest.get("staleness_max", 0)),
            samples=tuple(self.samples)[-4:],
        )

    def _on_group(self, samples: list[Sample]) -> None:
        tokens = sum(len(sample.response_token_ids) for sample in samples)
        self.response_tokens += tokens
        self._arrivals.append((time.monotonic(), tokens))
        self._unscored += sum(sample.reward_error is not None for sample in samples)
        for sample in samples:
            self.versions_taken_in_flight.update(span.version for span in sample.weight_version_spans[1:])
        self.samples.append(self._show(samples[0]))

    def _show(self, sample: Sample) -> ShownSample:
        return ShownSample(
            group=str(sample.group),
            prompt=self._tokenizer.decode(list(sample.prompt_token_ids)).strip(),
            answer=sample.response_text,
            reward=sample.reward,
            versions=(sample.weight_version_min, sample.weight_version_max),
            step=self._steps_done,
        )

    def _write_metrics(self) -> None:
        steps = [entry for entry in self.log.ledger if isinstance(entry, StepEntry)]
        with self._metrics.open("a") as stream:
            for entry in steps[self._steps_written :]:
                facts = {"step": entry.step, "generation": entry.generation, "version": entry.version}
                stream.write(json.dumps({"at": entry.at.isoformat(), **facts, **entry.metrics}) + "\n")
        self._steps_written = len(steps)

    def _rows(self, line: list[StepEntry]) -> tuple[StageRow, ...]:
        log = self.log
        prompts = sum(len(offsets) for offsets in log.prompts.values())
        frontier = log.admission[-1].frontier if log.admission else {}
        admitted = sum(bisect_left(offsets, frontier.get(partition, 0)) for partition, offsets in log.prompts.items())
        dead = {stage: sum(letter.stage == stage for letter in log.dead_letters) for stage in ("generate", "score")}
        written = len({record.group for record in (*log.groups, *log.pending) if record.group.is_prompt})
        answered = written + dead["score"]
        trained = sum(len(step.trained) for step in line)
        dropped = sum(len(step.dropped) for step in line)
        in_flight = max(0, admitted - answered - dead["generate"])
        waiting = max(0, len(log.groups) - trained - dropped)
        return (
            StageRow("prompts", prompts, admitted, prompts - admitted, 0, 0),
            StageRow("generate", admitted, answered, 0, in_flight, dead["generate"], self._tokens_per_s()),
            StageRow("score", answered, written, 0, 0, dead["score"] + self._unscored),
            StageRow("learn", len(log.groups), trained, waiting, 0, dropped),
        )

    def _tokens_per_s(self) -> float:
        horizon = time.monotonic() - _RATE_WINDOW_S
        while self._arrivals and self._arrivals[0][0] < horizon:
            self._arrivals.popleft()
        return sum(tokens for _, tokens in self._arrivals) / _RATE_WINDOW_S
