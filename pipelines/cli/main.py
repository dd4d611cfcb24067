"""The command ``asyncflow``: one verb a process or task, each in a module of its own.

    asyncflow VERB ARGUMENT… ──► pipelines.cli.VERB.main(arguments) ──► exit code

Exit codes: 0 done; 1 something failed; 2 something that the user can mend (one message, no traceback);
130 ended by Ctrl-C, 143 by SIGTERM. A verb's module is imported only when it is called, and itself imports heavy
packages only when it has read its arguments.
"""

import errno
import importlib
import io
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from schemas.errors import AsyncFlowError, UserError
from schemas.suggestions import did_you_mean

VERBS: Final = {
    "demo": "train a small model on sums, watch it learn, and write a report",
    "up": "start everything on this machine: Kafka, worker, pipeline, learner",
    "worker": "serve a model with vLLM and follow the announced weights",
    "rollout": "run the rollout pipeline on a Beam runner",
    "join-feedback": "run the feedback pipeline on a Beam runner",
    "beam-worker": "work for a Beam runner that stands elsewhere",
    "learn": "run the learner",
    "federate": "coordinate learners of many sites, which keep their samples",
    "learn-scorer": "train a reward model or a critic from the log of a run",
    "serve-scorer": "serve a reward model, so that rewards can ask it",
    "evaluate": "ask held-out prompts of a run's weights while it trains",
    "eval": "ask the held-out prompts of tasks of a model or a run, in each benchmark's metrics",
    "gateway": "let people and programs ask the newest weights and judge the answers",
    "feedback": "send one judgement of an answer",
    "export": "write the weights of a run as a Hugging Face directory, or its samples as Parquet files",
    "submit": "write the prompts of a JSON-lines file or of a task to a run",
    "curriculum": "write prompts of several tasks by weight, and of each those that teach most now",
    "config": "show, compare and check configurations, with the origin of each value",
    "completion": "print what makes bash, zsh or fish complete verbs and flags",
    "topics": "create the topics of a run, or check those that exist",
    "kafka": "serve the log of a finished run again",
    "bundle": "write all that a machine without a network needs, in parts",
    "top": "watch a run: its flow, its workers, and what it waits for",
    "graph": "show what a pipeline is made of, and which Beam runners can run it",
    "plan": "predict what a run would do with more workers, ranks or GPUs, from its own log",
    "audit": "check every promise of a run from its topics alone",
    "report": "write one page about a run: curves, answers, faults, lineage; opens without a network",
    "replay": "train a step of a run again from the log and compare the bits",
    "simulate-users": "have a population talk to a gateway and judge its answers",
    "simulate-raters": "have users who know the right answers judge what a run answers",
    "doctor": "look whether this machine can do what a run needs, and say what to do",
    "drill": "hurt a running stack on purpose and check that nothing is lost",
    "bench": "measure this machine, with code 1 if a figure misses its bar",
}

_TOOLS: Final = "tools"
_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "start here": ("demo", "up", "doctor", "config"),
    "processes": (
        "worker", "rollout", "learn", "join-feedback", "gateway", "evaluate", "learn-scorer", "serve-scorer",
        "beam-worker", "federate",
    ),
    "data": ("submit", "curriculum", "feedback", "export"),
    "look and check": ("top", "report", "eval", "graph", "plan", "audit", "replay"),
    _TOOLS: ("topics", "kafka", "bundle", "completion", "simulate-users", "simulate-raters", "drill", "bench"),
}  # fmt: skip

_ONLY_TOKENIZE: Final = ("rollout", "join-feedback", "gateway", "evaluate")
"""Verbs whose processes use transformers for its tokenizers alone."""
_OUT_OF_MEMORY: Final = "OutOfMemoryError"
"""Of torch, by its name: torch is not imported for it."""
_NARROWEST: Final = 36
"""Columns of a box in a terminal that has fewer."""

_DONE, _FAILED, _USER_ERROR = 0, 1, 2
_DISK_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: where a locale knows no ×, → or ╭
    if not given or given[0] in ("-h", "--help"):
        return _call("asyncflow", _show_usage, given)
    verb = given.pop(0)
    if verb not in VERBS:
        return _complain("asyncflow", f"no verb {verb!r}; {did_you_mean(verb, VERBS)}")
    return _call(f"asyncflow {verb}", partial(_run, verb, is_process=arguments is None), given)


def _run(verb: str, arguments: list[str], *, is_process: bool) -> int:
    """With ``is_process`` the verb has the process for itself, whose settings are its own then."""
    from pipelines.cli.logs import configure_logging

    configure_logging()
    if is_process and verb in _ONLY_TOKENIZE:
        from transforms.generation.tokenizer import spare_torch

        spare_torch()
    return int(importlib.import_module(f"pipelines.cli.{verb.replace('-', '_')}").main(arguments))


def _call(who: str, run: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return _flushed(run, arguments)
    except KeyboardInterrupt as interrupt:
        return _interrupted(who, interrupt)
    except UserError as error:
        return _complain(who, str(error), arguments)
    except AsyncFlowError as error:
        _complain(who, f"{type(error).__name__}: {error}", arguments)
        return _FAILED
    except BrokenPipeError:  # whoever read our output has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        fault = (
            f"{error.strerror}: {error.filename or 'a file'}; make room there, or choose a place that can be written"
        )
        return _complain(who, fault, arguments)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != _OUT_OF_MEMORY:
            raise
        return _complain(who, _of_memory(error), arguments)


def _flushed(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Writes what is left of the output while a full disk or a closed pipe can still be told in one line."""
    try:
        code = run(arguments)
    except SystemExit:  # of --help
        _flush()
        raise
    _flush()
    return code


def _flush() -> None:
    if sys.stdout is not None:  # a process may be started without one
        sys.stdout.flush()


def _of_memory(error: Exception) -> str:
    said = str(error).split(". ", 1)[0] or "out of memory"
    return (
        f"{said}: model, activations and engine do not fit; lower learner.micro_batch_tokens or "
        "learner.kept_logits_bytes, set learner.activation_checkpointing = true, raise learner.zero_stage with more "
        "ranks, lower worker.gpu_memory_utilization where both share a GPU, or take a smaller model"
    )


def _interrupted(who: str, interrupt: KeyboardInterrupt) -> int:
    from pipelines.cli.interrupts import describe, exit_code

    sys.stderr.write(f"{who}: {describe(interrupt)}\n")
    return exit_code(interrupt)


def _complain(who: str, message: str, arguments: Sequence[str] = ()) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    sys.stderr.write(f"{who}: {message}\n")
    return _USER_ERROR


def _show_usage(arguments: list[str]) -> int:
    sys.stdout.write(_usage())
    return _DONE if arguments else _USER_ERROR


def _usage() -> str:
    boxes = [line for title, verbs in _grouped().items() for line in _box(title, verbs)]
    return "\n".join(
        [
            "usage: asyncflow VERB [ARGUMENT ...]",
            "",
            "Streaming reinforcement-learning post-training for language models on a durable log.",
            "",
            *boxes,
            "",
            "asyncflow VERB --help tells its arguments, with defaults and an example. For a first look: asyncflow demo",
            "",
        ]
    )


def _grouped() -> dict[str, list[str]]:
    """The verbs by what they are for; one without a group is a tool."""
    groups = {title: [verb for verb in verbs if verb in VERBS] for title, verbs in _GROUPS.items()}
    grouped = {verb for verbs in groups.values() for verb in verbs}
    return {**groups, _TOOLS: [*groups[_TOOLS], *(verb for verb in VERBS if verb not in grouped)]}


def _box(title: str, verbs: list[str]) -> list[str]:
    """A frame as those of tyro's help, drawn by hand: rich takes longer to import than the help may take."""
    first = max(map(len, VERBS)) + 2
    longest = first + max(map(len, VERBS.values()))
    width = max(_NARROWEST, min(longest, shutil.get_terminal_size((longest + 4, 24)).columns - 4))
    rows = [row for verb in verbs for row in _rows(verb, first, width - first)]
    head = f"╭─ {title} ".ljust(width + 3, "─") + "╮"
    return [head, *(f"│ {row:<{width}} │" for row in rows), f"╰{'─' * (width + 2)}╯"]


def _rows(verb: str, first: int, rest: int) -> list[str]:
    """A verb and its summary, in as many lines as that takes."""
    head, *more = textwrap.wrap(VERBS[verb], rest)
    return [f"{verb:<{first}}{head}", *(f"{'':<{first}}{line}" for line in more)]


if __name__ == "__main__":
    raise SystemExit(main())
