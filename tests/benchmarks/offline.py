"""vLLM's own offline generation, as a process: what the pipeline's rate is compared with.

    python -m tests.benchmarks.offline FILE     FILE: JSON with "engine" (arguments of LLM), "prompts"
                                                (lists of token ids), "sampling" and "rounds"

Prints one JSON list: tokens, seconds of each round. If ``rounds`` is null, it is ready when it prints ``[]``; each
line on standard input then asks for a round, and is answered by the list of that one.
"""

import json
import sys
import time
from pathlib import Path

from transforms.generation.worker.arguments import prepare_environment


def main():
    given = json.loads(Path(sys.argv[1]).read_text())
    prepare_environment(eager=given["engine"].get("enforce_eager", False))
    from vllm import LLM, SamplingParams

    llm = LLM(**given["engine"])
    sampling = SamplingParams(**given["sampling"])
    prompts = [{"prompt_token_ids": ids} for ids in given["prompts"]]
    llm.generate(prompts[: max(1, len(prompts) // 8)], sampling, use_tqdm=False)
    if given["rounds"] is None:
        say([])
        for _ in sys.stdin:
            say([one_round(llm, prompts, sampling)])
    else:
        say([one_round(llm, prompts, sampling) for _ in range(given["rounds"])])


def one_round(llm, prompts, sampling):
    started = time.monotonic()
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    return sum(len(sample.token_ids) for answer in answers for sample in answer.outputs), seconds


def say(rounds):
    sys.stdout.write("\n" + json.dumps(rounds) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
