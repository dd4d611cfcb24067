"""An engine in this process, new weights loaded into it, and how far its tokens are from the learner's opinion.

    python -m tests.support.decode_after_load DIRECTORY {eager,graphs}

Prints ``{"before", "after", "old"}``: mean absolute differences in nats between the engine's logprobs of the
tokens it generated and those of the learner: before the load, after it, and after it with the learner's old
weights. Unlike the probe, which is computed as a prompt, these are decoded one by one: with CUDA graphs if asked.
"""

import json
import os
import sys
from pathlib import Path

PROMPTS = ("What is 2 + 3?", "Name a fruit.", "The sun rises in the", "Once upon a time", "A B C D")
TOKENS = 48
CHANGE = 0.05
"""Of every weight, relative, at random: far from what rounding does, and the model still speaks."""


def main(directory, mode):
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        HF_HUB_OFFLINE="1",
        ASYNCFLOW_SERVER_PID=str(os.getpid()),
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
    )
    from pipelines.local.demo_model import demo_model

    model = demo_model()
    llm = make_engine(model, graphs=mode == "graphs")
    policy = make_policy(model)
    found = {"before": gap(llm, policy)}
    old = make_policy(model)
    change(policy)
    load(llm, policy, directory)
    found |= {"after": gap(llm, policy), "old": gap(llm, old)}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def make_engine(model, *, graphs):
    import torch
    from vllm import LLM

    from tests.benchmarks.weights import GRAPHS
    from transforms.generation.worker.names import BACKEND, EXTENSION

    on_cpu = not torch.cuda.is_available()
    if not graphs:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    return LLM(
        str(model), dtype="bfloat16", max_model_len=512, max_num_seqs=64, block_size=32, seed=0,
        enforce_eager=not graphs, gpu_memory_utilization=0.2, logprobs_mode="processed_logprobs",
        weight_transfer_config={"backend": BACKEND}, worker_extension_cls=EXTENSION,
        **({"kv_cache_memory_bytes": 1 << 28} if on_cpu else {}),
        **({"compilation_config": json.loads(GRAPHS["compilation_config"])} if graphs else {}),
    )  # fmt: skip


def make_policy(model):
    import torch

    from trainers.policy import Policy, load_model

    return Policy(load_model(str(model), torch.bfloat16).to("cuda" if torch.cuda.is_available() else "cpu"), 1.0)


def change(policy):
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1 + CHANGE * torch.randn_like(parameter))


def load(llm, policy, directory):
    import torch
    from fsspec.implementations.local import LocalFileSystem

    from trainers import shards

    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what is written has to be there
    entries = shards.write(LocalFileSystem(), directory, shards.divide(policy.weights()), local=True)
    llm.collective_rpc("open_weights", args=([str(Path(directory) / entry.name) for entry in entries],))
    llm.collective_rpc("replace_weights")
    assert llm.reset_prefix_cache()


def gap(llm, policy):
    """Mean absolute difference over all generated tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, logprobs=0, temperature=1.0, seed=0)
    differences = []
    for answer in llm.generate(list(PROMPTS), sampling, use_tqdm=False):
        (output,) = answer.outputs
        tokens = list(output.token_ids)
        theirs = [position[token].logprob for position, token in zip(output.logprobs, tokens, strict=True)]
        ours = policy.probe([*answer.prompt_token_ids, *tokens])[-len(tokens) :]
        differences += [abs(one - other) for one, other in zip(theirs, ours, strict=True)]
    return sum(differences) / len(differences)


if __name__ == "__main__":
    main(*sys.argv[1:])
