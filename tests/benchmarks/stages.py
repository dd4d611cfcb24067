"""What each stage of the pipeline costs for one group, in µs of one core, without anything beside it."""

import pickle
import time
from datetime import UTC, datetime

from schemas.config import RunConfig
from schemas.identity import GroupId
from schemas.trajectories import Group
from tests.support.simulated_engine import SimulatedEngine
from transforms.assemble import assemble
from transforms.generation import engine
from transforms.generation.request import PromptRecord, prepare
from transforms.generation.tokenizer import Tokenizer
from transforms.rewards import registry
from transforms.rewards.scoring import score_samples
from transforms.score import apply_scores

BUNDLE_GROUPS = 32
_REPEATS = 200


def measure(model, prompt, *, samples, tokens):
    """Microseconds a group of each stage's own code; network, broker and runner are not in it."""
    registry.load()
    config = RunConfig.model_validate({"model": {"path": model}, "rollout": {"group_size": samples}})
    tokenizer = Tokenizer.load(model)
    record = PromptRecord(GroupId(0, 5), prompt, datetime.now(UTC))
    body = _answer(samples, tokens)
    request = prepare(record, config.rollout, tokenizer)
    completions = engine.read_completions("http://x", body, samples, tokenizer.vocabulary_tokens)
    texts = tokenizer.decode([completion.token_ids for completion in completions])
    attempt = engine.Attempt("a", "http://x", datetime.now(UTC))
    rows = engine.build_samples("run", request, attempt, completions, texts)
    scores = score_samples(request.prompt.reward, rows)
    group = apply_scores(config, Group(record.id, request.prompt, rows, prompt), scores)
    spec = request.prompt.reward
    return {
        "check_and_tokenise": _us(lambda: prepare(record, config.rollout, tokenizer)),
        "read_answer": _us(lambda: engine.read_completions("http://x", body, samples, tokenizer.vocabulary_tokens)),
        "decode_text": _us(lambda: tokenizer.decode([completion.token_ids for completion in completions])),
        "build_rows": _us(lambda: engine.build_samples("run", request, attempt, completions, texts)),
        "hand_to_reward": _us(lambda: pickle.loads(pickle.dumps((score_samples, (spec, rows))))),
        "reward": _us(lambda: score_samples(spec, rows)),
        "apply_reward": _us(lambda: apply_scores(config, group, scores)),
        "assemble": _us(lambda: assemble(config, [group] * BUNDLE_GROUPS)) / BUNDLE_GROUPS,
    }


def _answer(samples, tokens):
    simulated = SimulatedEngine()
    choices = ",".join(simulated._choice(index, tokens, 1) for index in range(samples))
    return f'{{"choices": [{choices}]}}'.encode()


def _us(work):
    """The least of five runs: what else the machine does only adds."""
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(_REPEATS // 5):
            work()
        best_s = min(best_s, (time.perf_counter() - started) / (_REPEATS // 5))
    return 1e6 * best_s
