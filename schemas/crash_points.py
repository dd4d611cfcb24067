"""Named places at which a process can be made to end or to stop: for tests and drills, off otherwise.

    ASYNCFLOW_CRASH_POINTS=DIR      switches them on
    DIR/after_step                  arms one; the first process that comes there takes the file and obeys
    DIR/after_step.hit.1            what it leaves: the witness that it really happened

A process obeys by SIGKILL to itself, which no handler and no ``finally`` sees, or, if the file says
``stop``, by SIGSTOP: whoever armed it looks around and wakes it. Arming is a file, so that a running
process can be hit, once, and the one that takes its place is not.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

VARIABLE: Final = "ASYNCFLOW_CRASH_POINTS"
"""The environment variable that names the directory."""

LearnerPoint = Literal[
    "before_forward",
    "after_backward",
    "after_step",
    "weights_half_written",
    "weights_written",
    "in_transaction",
    "after_transaction",
    "checkpoint_half_written",
    "before_manifest",
    "after_manifest",
    "before_cleanup",
]
PipelinePoint = Literal["request_sent", "group_finished", "record_sent", "before_finalize", "after_finalize"]
JoinPoint = Literal["outcomes_sent", "outcomes_committed"]
CurriculumPoint = Literal["prompts_sent", "prompts_committed"]
SitePoint = Literal["update_written", "update_recorded", "update_announced", "before_adoption"]
CoordinatorPoint = Literal[
    "round_ordered", "update_examined", "server_state_written", "merge_written", "merge_in_transaction",
    "merge_committed", "updates_removed",
]  # fmt: skip
Action = Literal["kill", "stop"]

LEARNER_POINTS: Final[tuple[str, ...]] = get_args(LearnerPoint)
PIPELINE_POINTS: Final[tuple[str, ...]] = get_args(PipelinePoint)
JOIN_POINTS: Final[tuple[str, ...]] = get_args(JoinPoint)
CURRICULUM_POINTS: Final[tuple[str, ...]] = get_args(CurriculumPoint)
SITE_POINTS: Final[tuple[str, ...]] = get_args(SitePoint)
COORDINATOR_POINTS: Final[tuple[str, ...]] = get_args(CoordinatorPoint)
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def are_on() -> bool:
    """Whether this process has crash points at all."""
    return VARIABLE in os.environ


def crash_point(
    name: LearnerPoint | PipelinePoint | JoinPoint | CurriculumPoint | SitePoint | CoordinatorPoint,
) -> None:
    """Marks a place. Costs a look at the environment, and at one file where the points are on."""
    room = os.environ.get(VARIABLE)
    if room:
        _obey(Path(room), name)


def _obey(room: Path, name: str) -> None:
    with suppress(FileNotFoundError):  # not armed, or another process was faster
        taken = room / f"{name}.taken.{os.getpid()}"
        (room / name).rename(taken)
        number = _SIGNALS[taken.read_text().strip() or "kill"]
        taken.rename(room / f"{name}.hit.{1 + len(hits(room, name))}")
        os.kill(os.getpid(), number)


def arm(room: Path, name: str, action: Action = "kill") -> None:
    """Arms a point in one atomic act.

    Raises:
        ValueError: there is no such point.
    """
    known = (
        *LEARNER_POINTS, *PIPELINE_POINTS, *JOIN_POINTS, *CURRICULUM_POINTS, *SITE_POINTS, *COORDINATOR_POINTS,
    )  # fmt: skip
    if name not in known:
        raise ValueError(f"no crash point {name!r}; there are {', '.join(known)}")
    beside = room / f".{name}"
    beside.write_text(action)
    beside.rename(room / name)


def disarm(room: Path, name: str) -> None:
    """Takes back what nobody has come to."""
    (room / name).unlink(missing_ok=True)


def hits(room: Path, name: str) -> list[Path]:
    """The witnesses of a point, one for each time it was hit."""
    return sorted(room.glob(f"{name}.hit.*"))
