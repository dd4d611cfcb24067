"""The command ``asyncflow``: one verb a process or task, each in a module of its own.

    asyncflow VERB ARGUMENT… ──► pipelines.cli.VERB.main(arguments) ──► exit code

Exit codes: 0 done; 1 something failed; 2 something that the user can mend (one message, no traceback);
130 ended by Ctrl-C. A verb's module is imported only when it is called, and itself imports heavy
packages only when it has read its arguments.
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from schemas.errors import AsyncFlowError, UserError

VERBS: Final = {
    "demo": "train a small model on sums, watch it learn, and write a report",
    "up": "start everything on this machine: Kafka, worker, pipeline, learner",
    "worker": "serve a model with vLLM and follow the announced weights",
    "rollout": "run the rollout pipeline on a Beam runner",
    "join-feedback": "run the feedback pipeline on a Beam runner",
    "learn": "run the learner",
    "learn-scorer": "train a reward model or a critic from the log of a run",
    "serve-scorer": "serve a reward model, so that rewards can ask it",
    "evaluate": "ask held-out prompts of a run's weights while it trains",
    "eval": "ask the held-out prompts of tasks of a model or a run, in each benchmark's metrics",
    "gateway": "let people and programs ask the newest weights and judge the answers",
    "feedback": "send one judgement of an answer",
    "export": "write the weights of a run as a Hugging Face directory",
    "submit": "write the prompts of a JSON-lines file or of a task to a run",
    "curriculum": "write prompts of several tasks by weight, and of each those that teach most now",
    "topics": "create the topics of a run, or check those that exist",
    "kafka": "serve the log of a finished run again",
    "top": "watch a run: its flow, its workers, and what it waits for",
    "audit": "check every promise of a run from its topics alone",
    "replay": "train a step of a run again from the log and compare the bits",
    "simulate-users": "have a population talk to a gateway and judge its answers",
    "simulate-raters": "have users who know the right answers judge what a run answers",
    "drill": "hurt a running stack on purpose and check that nothing is lost",
}

_DONE, _FAILED, _USER_ERROR, _INTERRUPTED = 0, 1, 2, 130
_DISK_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return _DONE if given else _USER_ERROR
    verb = given.pop(0)
    if verb not in VERBS:
        return _complain("asyncflow", f"no verb {verb!r}{_did_you_mean(verb)}")
    return _call(verb, given)


def _call(verb: str, arguments: list[str]) -> int:
    from pipelines.cli.logs import configure_logging

    configure_logging()
    try:
        return int(importlib.import_module(f"pipelines.cli.{verb.replace('-', '_')}").main(arguments))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except UserError as error:
        return _complain(f"asyncflow {verb}", str(error), arguments)
    except AsyncFlowError as error:
        _complain(f"asyncflow {verb}", f"{type(error).__name__}: {error}", arguments)
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
        return _complain(f"asyncflow {verb}", fault, arguments)


def _complain(who: str, message: str, arguments: Sequence[str] = ()) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    sys.stderr.write(f"{who}: {message}\n")
    return _USER_ERROR


def _did_you_mean(verb: str) -> str:
    near = get_close_matches(verb, VERBS, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(VERBS)}"


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: asyncflow VERB [ARGUMENT ...]",
            "",
            "Streaming reinforcement-learning post-training for language models on a durable log.",
            "",
            *lines,
            "",
            "asyncflow VERB --help tells its arguments. For a first look: asyncflow demo",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
