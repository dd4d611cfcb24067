"""Supervised fine-tuning by the learner's own engine: prompts with their right answers, each once, in their order.

    examples.jsonl ──tokenizer──► prompt, answer, end of turn ──batches──► Engine.train ──► a Hugging Face directory

    python -m tests.benchmarks.supervised --config run.toml --examples examples.jsonl --learning-rate 1e-5 --to DIR

A batch has as many examples as a step of the run has groups. They are trained as demonstrations, whose gradient is
that of the cross entropy (docs/objectives.md); with the objective ``rloo`` the loss is its value too. Prints one line
of JSON.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import structlog

from schemas.config import load, validate
from schemas.prompts import Prompt
from transforms.generation.tokenizer import Tokenizer


def main():
    options = parse()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    tree = load(options.config).model_dump(mode="json")
    tree["learner"] |= {"learning_rate": options.learning_rate, "objective": {"name": "rloo"}}
    config = validate(tree, "supervised")
    from trainers.engine import Engine
    from trainers.precision import fastest_dtype
    from trainers.ranks import Ranks

    started = time.monotonic()
    ranks = Ranks()
    dtype = fastest_dtype() if config.model.dtype == "auto" else config.model.dtype
    engine = Engine(config, dtype, ranks)
    loaded = time.monotonic() - started
    figures = train(config, engine, read(options.examples, config), options)
    export(engine, Path(config.model.path), options.to, dtype)
    ranks.leave()
    sys.stdout.write(json.dumps({"learning_rate": options.learning_rate, "seconds_loading": loaded, **figures}) + "\n")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="after which training ends")
    parser.add_argument("--steps-file", type=Path, required=True, help="every step is a line of it at once")
    parser.add_argument("--to", type=Path, required=True)
    return parser.parse_args()


def read(file, config):
    """The examples as the engine takes them."""
    tokenizer = Tokenizer.load(config.model.path)
    with file.open() as lines:
        return [to_example(json.loads(line), tokenizer) for line in lines]


def to_example(row, tokenizer):
    """A prompt, and its answer as the model would have written it, the end of its turn included."""
    from trainers.batch import Example

    prompt = tokenizer.encode(Prompt.decode(json.dumps(row["prompt"]).encode()))
    answer = tokenizer.encode_answer(row["answer"])
    undrawn, trained = (0.0,) * len(answer), (True,) * len(answer)
    return Example((*prompt, *answer), len(prompt), undrawn, trained, 1.0, as_given=True, demonstrated=True)


def train(config, engine, examples, options):
    """One step after the other until all examples were trained or the time is over."""
    from trainers.aggregation import weigh
    from trainers.engine import Work
    from trainers.optimizer import learning_rate
    from trainers.packing import share_out

    size = config.learner.groups_per_step
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    begun, trained, tokens, step = time.monotonic(), 0, 0, 0
    with options.steps_file.open("w") as file:
        for step, batch in enumerate(batches, start=1):
            packs = share_out(weigh(batch, "token_mean", 1), 1, config.learner.micro_batch_tokens)[0]
            outcome = engine.train(Work([packs], learning_rate(config.learner, step - 1, len(batches))))
            trained, tokens = trained + len(batch), tokens + sum(len(each.token_ids) for each in batch)
            seconds = time.monotonic() - begun
            figures = {"step": step, "examples": trained, "loss": outcome.loss, "grad_norm": outcome.grad_norm}
            file.write(json.dumps({**figures, "applied": outcome.applied, "at_s": seconds}) + "\n")
            file.flush()
            if seconds > options.seconds:
                break
    return {"seconds": time.monotonic() - begun, "steps": step, "examples": trained, "tokens": tokens,
            "ended": "all examples are trained" if trained == len(examples) else "the time is over"}  # fmt: skip


def export(engine, model, target, dtype):
    """The trained weights beside configuration and tokenizer of the model."""
    from safetensors.torch import save_file

    engine.wait()
    target.mkdir(parents=True)
    for file in (each for each in model.iterdir() if each.is_file() and "safetensors" not in each.name):
        shutil.copyfile(file, target / file.name)
    tensors = {name: each.detach().cpu().contiguous() for name, each in engine.state_dict().items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    tree = json.loads((target / "config.json").read_text())
    tree.pop("torch_dtype", None)  # the old name of the same key
    (target / "config.json").write_text(json.dumps({**tree, "dtype": dtype}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
