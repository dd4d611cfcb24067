"""vLLM's own offline generation, as a process: what the pipeline's rate is compared with.

    python -m tests.benchmarks.offline FILE     FILE: JSON with "config" (a run's, whose worker the engine is like),
                                                "prompts" (lists of token ids), "sampling" and "rounds"

Prints one JSON list: tokens, seconds of each round. If ``rounds`` is null, it is ready when it prints ``[]``; each
line on standard input then asks for a round, and is answered by the list of that one.
"""

import json
import sys
import time
from pathlib import Path

from schemas.config import RunConfig
from transforms.generation.worker.arguments import parse_arguments, prepare_environment


def main():
    given = json.loads(Path(sys.argv[1]).read_text())
    config = RunConfig.model_validate(given["config"])
    prepare_environment(eager=config.worker.enforce_eager)
    from vllm import LLM, SamplingParams

    llm = LLM(**engine_arguments(config))
    sampling = SamplingParams(**given["sampling"])
    prompts = [{"prompt_token_ids": ids} for ids in given["prompts"]]
    llm.generate(prompts[: max(1, len(prompts) // 8)], sampling, use_tqdm=False)
    if given["rounds"] is None:
        say([])
        for _ in sys.stdin:
            say([one_round(llm, prompts, sampling)])
    else:
        say([one_round(llm, prompts, sampling) for _ in range(given["rounds"])])


def engine_arguments(config):
    """What the worker starts its engine with, as far as it has to do with speed; not what a worker adds to it."""
    parsed = parse_arguments(config, config.model.dtype)
    names = ("dtype", "max_model_len", "max_num_seqs", "block_size", "enforce_eager", "gpu_memory_utilization", "seed")
    engine = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    engine |= {name: decoded(value) for name, value in config.worker.engine_args.items()}
    return {"model": config.model.path, "generation_config": "vllm", "logprobs_mode": "processed_logprobs", **engine}


def decoded(value):
    """``vllm serve`` takes JSON where ``LLM`` takes a mapping."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


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
