"""What each runner can do of what a pipeline uses, and how that is known.

    Graph.uses, TABLE ──► [Verdict: runner, feature, answer, why] ──► the worst of them is the runner's

What is not in the table is answered with no: nobody has looked. The sources stand beside the entries; Beam is 2.77.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from pipelines.graph import features as f


class Answer(IntEnum):
    """Whether a runner supports something; a greater one is worse."""

    RUNS = 0
    """It was run, on a real broker, by this project."""
    SHOULD = 1
    """By its documentation or source; it was not run by this project."""
    NOT = 2


WORDS: Final = {Answer.RUNS: "runs", Answer.SHOULD: "should run", Answer.NOT: "does not"}


class Verdict(NamedTuple):
    """About one feature. Example: ``Verdict("keyed state", Answer.RUNS, "")``."""

    feature: str
    answer: Answer
    why: str
    """A condition, a setting, or what it lacks; empty if there is nothing to say."""


_Table = dict[str, tuple[Answer, str]]
_RUNS: Final = (Answer.RUNS, "")
_SHOULD: Final = (Answer.SHOULD, "")
_NOBODY: Final = (Answer.NOT, "nobody has looked whether it supports this")
_UNCALLED: Final = "none of our sources depends on it: Kafka has their positions"

# Run: tests/pipeline/test_rollout.py and test_join_feedback.py, with a real broker and kill -9; timers by the clock in
# an experiment of the project's beginning.
_PRISM: Final[_Table] = {
    f.UNBOUNDED_SOURCE: _RUNS,
    f.FINALIZATION: (Answer.RUNS, _UNCALLED),
    # pipelines/submission/chosen.py says why: two bundles of a key at a time otherwise.
    f.STATE: (Answer.RUNS, "with the experiment prism_disable_sdf_split, which join-feedback sets; state is in memory"),
    f.WATERMARK_TIMERS: (Answer.RUNS, "as long as every source moves its watermark on when it is idle, as ours do"),
    f.CLOCK_TIMERS: _RUNS,
    f.LAST_SHUFFLE: _RUNS,
    f.MERGE: _RUNS,
    f.TRIGGERS: _RUNS,
}

# Capability matrix, "What is being computed?" and "When in processing time?": fully supported by both.
_BY_THE_MATRIX: Final[_Table] = dict.fromkeys((f.SHUFFLE, f.LAST_SHUFFLE, f.MERGE, f.TRIGGERS, f.WINDOWS), _SHOULD)

_FLINK: Final[_Table] = {
    # BundleCheckpointHandlers takes getRequestedTimeDelay().getSeconds() and leaves the rest out. The capability
    # matrix, "Unbounded Splittable DoFn Support Status" of 2024, has "incomplete or broken" (apache/beam#19637).
    f.UNBOUNDED_SOURCE: (
        Answer.SHOULD,
        "the rollout pipeline ran on Flink 1.19 with Beam 2.62's job server, not with 2.77's, which could not be had; "
        "pauses between looks are cut to whole seconds, those below one to none",
    ),
    # ExecutableStageDoFnOperator.notifyCheckpointComplete finalizes; FlinkPipelineOptions.getCheckpointingInterval: -1.
    # The matrix says no.
    f.FINALIZATION: (
        Answer.SHOULD,
        f"only after a checkpoint, and checkpoints are off until --checkpointing_interval is given; {_UNCALLED}",
    ),
    # ExecutableStageDoFnOperator.getStateRequestHandler; capability matrix, "Stateful Processing".
    f.STATE: (Answer.SHOULD, "kept over a restart only with --checkpointing_interval"),
    # ExecutableStageDoFnOperator.setTimer; PortableValidatesRunner tests of timers run on it.
    f.WATERMARK_TIMERS: _SHOULD,
    f.CLOCK_TIMERS: _SHOULD,
    **_BY_THE_MATRIX,
}

_DATAFLOW: Final[_Table] = {
    # Capability matrix, "Unbounded Splittable DoFn Support Status": yes, with checkpoints of the DoFn's own. One SDK
    # process a core by default, and a pool is of a process.
    f.UNBOUNDED_SOURCE: (
        Answer.SHOULD,
        "with --experiments=no_use_multiple_sdk_containers, for one process a machine; a DoFn that raises is tried for "
        "ever",
    ),
    # The same page: "Only Dataflow Runner V2 supports this", which is the only one that Python has.
    f.FINALIZATION: (Answer.SHOULD, _UNCALLED),
    # The same two pages of the matrix: fully supported.
    f.STATE: _SHOULD,
    f.WATERMARK_TIMERS: _SHOULD,
    f.CLOCK_TIMERS: _SHOULD,
    **_BY_THE_MATRIX,
}

_STUCK: Final = "an input without an end does not get past its stage: what follows is given nothing"

# Run, November 2026: the rollout pipeline, 120 prompts in two parts, each out once, drained with 0; the feedback
# pipeline, of 300 rollouts and as many judgements none was out after 65 s; timers and shuffles in experiments of the
# project's beginning. Requirements: FnApiRunner.supported_requirements.
_FNAPI: Final[_Table] = {
    f.UNBOUNDED_SOURCE: (Answer.RUNS, "within one fused stage"),
    f.FINALIZATION: (Answer.RUNS, _UNCALLED),
    f.STATE: (Answer.NOT, _STUCK),
    f.WATERMARK_TIMERS: (Answer.NOT, "all of them fire at once"),
    f.CLOCK_TIMERS: (Answer.NOT, "all of them fire at once"),
    f.SHUFFLE: (Answer.NOT, _STUCK),
    f.LAST_SHUFFLE: _RUNS,
    f.MERGE: (Answer.NOT, _STUCK),
    f.SIDE_INPUTS: (Answer.NOT, _STUCK),
    f.TRIGGERS: _RUNS,
}

TABLE: Final[dict[str, _Table]] = {"prism": _PRISM, "flink": _FLINK, "dataflow": _DATAFLOW, "fnapi": _FNAPI}


def judge(runner: str, uses: dict[str, tuple[str, ...]]) -> list[Verdict]:
    """One verdict for each feature that a pipeline uses.

    Args:
        runner: one of ``TABLE``.
        uses: as :class:`pipelines.graph.graph.Graph` has them.
    """
    return [Verdict(feature, *TABLE[runner].get(feature, _NOBODY)) for feature in uses]


def answer_of(verdicts: list[Verdict]) -> Answer:
    """The worst of a runner's verdicts."""
    return max((each.answer for each in verdicts), default=Answer.SHOULD)
