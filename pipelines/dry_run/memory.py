"""The model, and whether engine and learner fit into the memory that is there. Pure functions.

What is compared is the least that is needed: what does not fit even so does not work.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from pipelines.dry_run.facts import Facts
from pipelines.local.placement import place
from pipelines.model_facts import ModelFacts
from pipelines.sizes import BYTES_OF, gib, kv_token_bytes, learner_bytes, trained_numbers
from schemas.checks import Check
from schemas.config import RunConfig
from schemas.errors import ConfigError, ModelError

_BROKER_BYTES: Final = 512 << 20
"""Kafka's heap: see ``pipelines/local/broker.py``."""
_SMALLER: Final = "take a smaller model or model.dtype, or a machine with more"


def model_checks(config: RunConfig, facts: Facts) -> Iterator[Check]:
    """What the model is, and whether the engine's context and the adapter fit it."""
    model = facts.model
    if model is None:
        yield Check("model", "SmolLM2-135M-Instruct, which is converted once, at the first start", "ok", "")
        return
    if isinstance(model, str):
        yield Check("model", config.model.path or "none", "problem", model)
        return
    given = "as configured" if config.model.dtype != "auto" else "expected of this machine; a run measures it"
    formula = (
        f"{model.architecture}, {model.parameters:,} parameters, {', '.join(model.dtypes)} on disk "
        f"({gib(model.file_bytes)}); {facts.dtype} in memory, {given}"
    )
    yield Check("model", formula, "ok", "")
    yield from _positions(config, model)
    yield from _adapter(config, model)


def _positions(config: RunConfig, model: ModelFacts) -> Iterator[Check]:
    if model.max_tokens is None:
        return
    longest = config.worker.max_model_len_tokens
    formula = f"worker.max_model_len_tokens {longest} ≤ the model's max_position_embeddings {model.max_tokens}"
    remedy = "" if longest <= model.max_tokens else f"lower worker.max_model_len_tokens to {model.max_tokens}"
    yield Check("positions", formula, "problem" if remedy else "ok", remedy)


def _adapter(config: RunConfig, model: ModelFacts) -> Iterator[Check]:
    if not config.learner.lora.trains_adapter:
        return
    try:
        numbers = trained_numbers(config, model)
    except ModelError as error:
        yield Check("adapter", f"rank {config.learner.lora.rank}", "problem", str(error))
        return
    share = numbers / model.parameters
    yield Check("adapter", f"rank {config.learner.lora.rank}: {numbers:,} numbers are trained, {share:.2%}", "ok", "")


def memory_checks(config: RunConfig, facts: Facts, *, engine: bool, learner: bool) -> Iterator[Check]:
    """Whether the parts that are started here fit.

    Args:
        config: of the run.
        facts: of the machine and the model.
        engine: whether a worker is started.
        learner: whether a learner is started.
    """
    if not (engine or learner):
        return
    yield Check("machine", _machine(facts), "ok", "")
    if facts.model is None or isinstance(facts.model, str) or adapter_is_wrong(config, facts.model):
        return
    engine_bytes = learner_total = 0
    if engine:
        engine_bytes, checks = _engine(config, facts, facts.model)
        yield from checks
    if learner:
        learner_total, formula = learner_bytes(config, facts.model, facts.dtype, facts.ranks)
        yield _learner(config, facts, learner_total, formula)
    if engine and learner:
        yield _together(config, facts, engine_bytes, learner_total)


def _machine(facts: Facts) -> str:
    gpus = ", ".join(f"{gpu.name} with {gib(gpu.total_bytes)}" for gpu in facts.gpus) or "no GPU"
    available, total = gib(facts.memory.available_bytes), gib(facts.memory.total_bytes)
    return f"{facts.cores} cores, {available} of {total} memory available, {gpus}"


def adapter_is_wrong(config: RunConfig, model: ModelFacts) -> bool:
    """Whether the model has no layers for the adapter, so that nothing can be reckoned with it."""
    return any(each.verdict == "problem" for each in _adapter(config, model))


def _engine(config: RunConfig, facts: Facts, model: ModelFacts) -> tuple[int, list[Check]]:
    """Weights, and with what is left room for at least one sequence of the longest kind."""
    parallel = config.worker.tensor_parallel_size
    weights = model.parameters * BYTES_OF[facts.dtype] // parallel
    if not facts.gpus:
        cache = int(config.worker.kv_cache_gib * 2**30)
        total = weights + cache
        formula = f"{gib(weights)} of weights + worker.kv_cache_gib {config.worker.kv_cache_gib:g} = {gib(total)}"
        return total, [_fits("engine", formula, total, facts.memory.available_bytes), *_cache(config, facts, cache)]
    gpu = facts.gpus[0]
    total = int(config.worker.gpu_memory_utilization * gpu.total_bytes)
    formula = (
        f"worker.gpu_memory_utilization {config.worker.gpu_memory_utilization:g} × {gib(gpu.total_bytes)} = "
        f"{gib(total)}, of that {gib(weights)} weights"
    )
    if weights >= total:
        remedy = "no room for keys and values: raise worker.gpu_memory_utilization or tensor_parallel_size"
        return total, [Check("engine", formula, "problem", remedy)]
    fits = _fits("engine", formula, total, gpu.free_bytes)
    return total, [fits, *_cache(config, facts, (total - weights) * parallel)]


def _cache(config: RunConfig, facts: Facts, cache_bytes: int) -> list[Check]:
    assert isinstance(facts.model, ModelFacts)
    each = kv_token_bytes(facts.model, facts.dtype)
    if each is None:
        return [Check("keys and values", "the model's configuration does not say how many", "ok", "")]
    tokens, longest = cache_bytes // each, config.worker.max_model_len_tokens
    formula = (
        f"{gib(cache_bytes)} ÷ {each:,} bytes a token = {tokens:,} tokens = {tokens / longest:.1f} sequences of "
        f"worker.max_model_len_tokens {longest}; worker.max_num_seqs {config.worker.max_num_seqs}"
    )
    if tokens < longest:
        remedy = "not even one fits: lower worker.max_model_len_tokens, or give the engine more memory"
        return [Check("keys and values", formula, "problem", remedy)]
    return [Check("keys and values", formula, "ok", "")]


def _learner(config: RunConfig, facts: Facts, total: int, formula: str) -> Check:
    available = facts.gpus[0].free_bytes if facts.gpus else facts.memory.available_bytes
    found = _fits("learner", formula, total, available)
    if found.verdict == "problem" and config.learner.deepspeed:
        return found._replace(verdict="warning", remedy="fits only if learner.deepspeed offloads what is too much")
    return found


def _together(config: RunConfig, facts: Facts, engine: int, learner: int) -> Check:
    if facts.gpus:
        engines, ranks = _fullest(config, facts, engine, learner)
        total = engines * engine + ranks * learner
        parts = [f"{_times(engines)}engine {gib(engine)}"] * bool(engines) + [f"learner {gib(learner)}"] * ranks
        found = _fits("together", f"{' + '.join(parts)} = {gib(total)} on one GPU", total, facts.gpus[0].total_bytes)
        if found.verdict == "problem" and config.learner.deepspeed:
            return found._replace(verdict="warning")
        return found
    engines, ranks = config.local.workers, config.local.ranks
    total = engines * engine + ranks * learner + _BROKER_BYTES
    formula = (
        f"{_times(engines)}engine {gib(engine)} + {_times(ranks)}learner {gib(learner)} + Kafka {gib(_BROKER_BYTES)} = "
        f"{gib(total)}"
    )
    return _fits("together", formula, total, facts.memory.available_bytes)


def _times(number: int) -> str:
    return f"{number} × " if number > 1 else ""


def _fullest(config: RunConfig, facts: Facts, engine: int, learner: int) -> tuple[int, int]:
    """Engines and ranks of the learner on the GPU that has to hold most; one of each where nothing can be placed."""
    try:
        placed = place(config, facts.visible_gpus)
    except ConfigError:  # told where it is said what would be started
        return 1, 1
    engines = Counter(gpu for gpus in placed.workers for gpu in gpus.split(","))
    ranks = Counter(placed.learner.split(","))
    shares = ((engines[gpu], ranks[gpu]) for gpu in engines | ranks)
    return max(shares, key=lambda share: share[0] * engine + share[1] * learner)


def _fits(name: str, formula: str, needed: int, available: int) -> Check:
    text = f"{formula}; {gib(available)} are available"
    return Check(name, text, "ok", "") if needed <= available else Check(name, text, "problem", _SMALLER)
