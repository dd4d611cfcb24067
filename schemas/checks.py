"""What the numbers of a configuration come to together, and whether that can work.

    RunConfig ──► check ──► [Check: name, formula with the numbers filled in, verdict, what to do]

What cannot be loaded at all is refused by the models in ``schemas/config.py``. Here is what loads and still may not be
meant. Nothing is asked of the machine: each check is a pure function of the configuration and the number of ranks.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from schemas.config import RunConfig
from schemas.limits import MAX_TRAJECTORY_BYTES

Verdict = Literal["ok", "warning", "problem"]
"""``warning``: works, and is seldom meant. ``problem``: does not do what the configuration asks for."""


class Check(NamedTuple):
    """What one relation between fields comes to.

    Example: ``Check("shares", "kafka.partitions 4 ÷ rollout.shares 2 = 2 prompts partitions a share", "ok", "")``.
    """

    name: str
    """One or a few words."""
    formula: str
    """The fields with their numbers, and what these come to."""
    verdict: Verdict
    remedy: str
    """What is wrong and what to change; empty where all is well."""


_ROW_BYTES: Final = 256
"""About what a sample takes in a trajectories record beside its tokens."""
_ANSWER_TOKEN_BYTES: Final = 13
"""Id, logprob, mask and about four letters of text."""
_PROMPT_TOKEN_BYTES: Final = 4
_SHORT_PROMPT_TOKENS: Final = 64
"""Less room than this for a prompt and its chat template is seldom meant."""
_BROKERS_TRANSACTION_S: Final = 900.0
"""Kafka's ``transaction.max.timeout.ms``: a producer that asks for more is refused."""
_SPARSE_ENGINE: Final = 4
"""An engine that is never filled to this part of its sequences could be smaller, or the pipeline faster."""


def check(config: RunConfig, ranks: int = 1) -> list[Check]:
    """All relations between fields of a configuration, in the order of the flow.

    Args:
        config: of the run.
        ranks: processes that the learner is to have.
    """
    return [*(each(config) for each in _CHECKS), *_of_batch(config, ranks), *_enforced(config)]


def problems(checks: list[Check]) -> list[Check]:
    """Those that do not work."""
    return [each for each in checks if each.verdict == "problem"]


def _verdict(remedy: str, otherwise: Verdict) -> tuple[Verdict, str]:
    return (otherwise, remedy) if remedy else ("ok", "")


def _admission(config: RunConfig) -> Check:
    learner = config.learner
    formula = (
        f"(1 + learner.max_staleness {learner.max_staleness}) × learner.groups_per_step {learner.groups_per_step} = "
        f"{learner.admitted_groups} prompts may be under way before a step is done; the staleness of a trained sample "
        f"is at most {learner.max_staleness}"
    )
    return Check("admission and staleness", formula, "ok", "")


def _in_flight(config: RunConfig) -> Check:
    rollout, worker, learner = config.rollout, config.worker, config.learner
    room = rollout.shares * rollout.max_in_flight
    admitted = learner.admitted_groups
    sequences = min(room, admitted) * rollout.group_size
    capacity = max(1, len(rollout.workers)) * worker.max_num_seqs
    formula = (
        f"min(rollout.shares {rollout.shares} × rollout.max_in_flight {rollout.max_in_flight}, {admitted} admitted) × "
        f"rollout.group_size {rollout.group_size} = {sequences} sequences in flight at most; {len(rollout.workers)} "
        f"named workers × worker.max_num_seqs {worker.max_num_seqs} = {capacity} at once: {sequences / capacity:.0%}"
    )
    remedy = ""
    if room < min(admitted, learner.groups_per_step):
        remedy = f"a step of {learner.groups_per_step} groups is never in flight whole: raise rollout.max_in_flight"
    elif sequences * _SPARSE_ENGINE < capacity:
        remedy = "engines stay mostly empty: raise learner.groups_per_step or max_staleness, or lower max_num_seqs"
    return Check("engine occupancy", formula, *_verdict(remedy, "warning"))


def _context(config: RunConfig) -> Check:
    longest, answer = config.worker.max_model_len_tokens, config.rollout.sampling.max_tokens
    left = longest - answer
    formula = (
        f"worker.max_model_len_tokens {longest} - rollout.sampling.max_tokens {answer} = {left} tokens for a prompt"
    )
    if left <= 0:
        remedy = f"no prompt fits: raise worker.max_model_len_tokens above {answer}, or lower sampling.max_tokens"
        return Check("context", formula, "problem", remedy)
    short = "a prompt with its chat template is seldom so short: raise worker.max_model_len_tokens"
    return Check("context", formula, *_verdict(short if left < _SHORT_PROMPT_TOKENS else "", "warning"))


def _evaluated_context(config: RunConfig) -> Check:
    longest = config.worker.max_model_len_tokens
    answer = config.evaluation.max_tokens or config.rollout.sampling.max_tokens
    left = longest - answer
    formula = f"worker.max_model_len_tokens {longest} - evaluation.max_tokens {answer} = {left} tokens for a prompt"
    remedy = f"raise worker.max_model_len_tokens above {answer}, or lower evaluation.max_tokens"
    return Check("context of evaluations", formula, *_verdict(remedy if left <= 0 else "", "problem"))


def _variance(config: RunConfig) -> Check:
    recipe, size = config.learner.objective.recipe, config.rollout.group_size
    needs = recipe.needs_variance
    formula = (
        f"rollout.group_size {size} samples a prompt; advantage {recipe.advantage} needs {2 if needs else 1} or more"
    )
    remedy = (
        "a group of one has no differences to learn from and is dropped as zero_variance: raise rollout.group_size, or "
        'set learner.objective.advantage = "running_baseline"'
    )
    return Check("group size", formula, *_verdict(remedy if needs and size < 2 else "", "problem"))


def _record(config: RunConfig) -> Check:
    size, answer = config.rollout.group_size, config.rollout.sampling.max_tokens
    prompt = max(0, config.worker.max_model_len_tokens - answer)
    sample_bytes = _ROW_BYTES + _ANSWER_TOKEN_BYTES * answer + _PROMPT_TOKEN_BYTES * prompt
    formula = (
        f"rollout.group_size {size} × ({_ROW_BYTES} + {_ANSWER_TOKEN_BYTES} × rollout.sampling.max_tokens {answer} + "
        f"{_PROMPT_TOKEN_BYTES} × {prompt} tokens of prompt) = {size * sample_bytes:,} bytes a group at most; a record "
        f"takes {MAX_TRAJECTORY_BYTES:,}"
    )
    remedy = "the longest groups become dead letters: lower rollout.group_size or rollout.sampling.max_tokens"
    return Check(
        "record size", formula, *_verdict(remedy if size * sample_bytes > MAX_TRAJECTORY_BYTES else "", "problem")
    )


def _distribution(config: RunConfig) -> Check:
    sampling, trained = config.rollout.sampling, config.temperature
    formula = (
        f"rollout.sampling.temperature {sampling.temperature:g} = learner.temperature {trained:g}; "
        f"top_p {sampling.top_p:g} = 1, top_k {sampling.top_k} = -1"
    )
    same = sampling.temperature == trained and sampling.top_p == 1 and sampling.top_k == -1
    remedy = (
        "the learner's logprobs are of another distribution than the samples: leave learner.temperature out, and "
        "set top_p = 1 and top_k = -1"
    )
    return Check("sampling distribution", formula, *_verdict("" if same else remedy, "warning"))


def _schedule(config: RunConfig) -> Check:
    learner = config.learner
    formula = (
        f"learner.warmup_steps {learner.warmup_steps} of learner.steps {learner.steps}: the learning rate reaches "
        f"{learner.learning_rate:g} and then is {learner.schedule}"
    )
    remedy = "it is never reached: lower learner.warmup_steps, or raise learner.steps"
    return Check("schedule", formula, *_verdict(remedy if learner.warmup_steps >= learner.steps else "", "warning"))


def _checkpoints(config: RunConfig) -> Check:
    learner = config.learner
    lost = min(learner.checkpoint_every, learner.steps)
    formula = (
        f"learner.steps {learner.steps} ÷ learner.checkpoint_every {learner.checkpoint_every} = "
        f"{learner.steps // learner.checkpoint_every} checkpoints, {learner.keep_checkpoints} kept; after a crash at "
        f"most {lost} steps are trained again from the log"
    )
    return Check("checkpoints", formula, "ok", "")


def _prompts(config: RunConfig) -> Check:
    learner = config.learner
    wanted = learner.steps * learner.groups_per_step
    formula = (
        f"learner.steps {learner.steps} × learner.groups_per_step {learner.groups_per_step} = {wanted} groups are "
        "trained; so many prompts are needed, and one more for each that is dropped"
    )
    return Check("prompts", formula, "ok", "")


def _raters(config: RunConfig) -> Check:
    learner = config.learner
    share = learner.max_rater_share * learner.groups_per_step
    formula = (
        f"learner.max_rater_share {learner.max_rater_share:g} × learner.groups_per_step {learner.groups_per_step} = "
        f"{share:g} groups of a step may be one user's"
    )
    remedy = "less than one group is taken as one: raise learner.max_rater_share or learner.groups_per_step"
    return Check("raters", formula, *_verdict(remedy if share < 1 else "", "warning"))


def _transactions(config: RunConfig) -> Check:
    kafka = config.kafka
    formula = (
        f"kafka.transaction_timeout_s {kafka.transaction_timeout_s:g} ≤ {_BROKERS_TRANSACTION_S:g}, which brokers "
        "allow unless their transaction.max.timeout.ms says otherwise"
    )
    remedy = f"lower kafka.transaction_timeout_s to {_BROKERS_TRANSACTION_S:g}, or raise the brokers' setting"
    over = kafka.transaction_timeout_s > _BROKERS_TRANSACTION_S
    return Check("transactions", formula, *_verdict(remedy if over else "", "warning"))


def _waits(config: RunConfig) -> Check:
    wait_s, request_s = config.worker.max_wait_for_version_s, config.rollout.request_timeout_s
    formula = f"worker.max_wait_for_version_s {wait_s:g} < rollout.request_timeout_s {request_s:g}"
    remedy = "a request is given up while it waits for its weights: raise the second or lower the first"
    return Check("waiting for weights", formula, *_verdict(remedy if wait_s >= request_s else "", "warning"))


def _shares(config: RunConfig) -> Check:
    partitions, shares = config.kafka.partitions, config.rollout.shares
    formula = (
        f"kafka.partitions {partitions} ÷ rollout.shares {shares} = {partitions / shares:g} prompts partitions a share"
    )
    remedy = "shares get unequally many partitions: make kafka.partitions a multiple of rollout.shares"
    return Check("shares", formula, *_verdict(remedy if partitions % shares else "", "warning"))


def _ports(config: RunConfig) -> Check:
    ports = {
        "worker.port": config.worker.port,
        "gateway.port": config.gateway.port,
        "rollout.metrics_port": config.rollout.metrics_port,
        "learner.metrics_port": config.learner.metrics_port,
        "feedback.metrics_port": config.feedback.metrics_port,
    }
    fixed = {key: port for key, port in ports.items() if port}
    twice = sorted(key for key, port in fixed.items() if list(fixed.values()).count(port) > 1)
    formula = ", ".join(f"{key} {port}" for key, port in fixed.items()) + ": all different"
    remedy = f"{' and '.join(twice)} are the same: one machine cannot serve both" if twice else ""
    return Check("ports", formula, *_verdict(remedy, "warning"))


def _enforced(config: RunConfig) -> Iterator[Check]:
    """What the models refuse already, shown so that nobody has to look for it elsewhere."""
    evaluation, learner = config.evaluation, config.learner
    yield _holds("group in one request", ("rollout.group_size", config.rollout.group_size), _seqs(config), "≤")
    if evaluation.samples:
        most = ("evaluation.pass_at", max(evaluation.pass_at, default=0))
        yield _holds("pass@k", most, ("evaluation.samples", evaluation.samples), "≤")
        yield _holds("samples of evaluations", ("evaluation.samples", evaluation.samples), _seqs(config), "≤")
    if learner.max_token_staleness is not None:
        token = ("learner.max_token_staleness", learner.max_token_staleness)
        yield _holds("token staleness", token, ("learner.max_staleness", learner.max_staleness), "≤")
    if buffer_tokens := learner.objective.overlong_buffer_tokens:
        buffer = ("learner.objective.overlong_buffer_tokens", buffer_tokens)
        yield _holds("overlong buffer", buffer, ("the longest answer", config.length_tokens), "<")
    feedback = config.feedback
    yield _holds("feedback", ("feedback.settle_s", feedback.settle_s), ("feedback.wait_s", feedback.wait_s), "<")


def _holds(name: str, small: tuple[str, float], large: tuple[str, float], sign: str) -> Check:
    return Check(name, f"{small[0]} {small[1]:g} {sign} {large[0]} {large[1]:g}", "ok", "")


def _seqs(config: RunConfig) -> tuple[str, float]:
    return "worker.max_num_seqs", config.worker.max_num_seqs


def _of_batch(config: RunConfig, ranks: int) -> Iterator[Check]:
    """What a step of the learner is made of."""
    yield _updates(config)
    yield _samples(config, ranks)
    yield _passes(config, ranks)


def _updates(config: RunConfig) -> Check:
    groups, parts = config.learner.groups_per_step, config.learner.minibatches
    formula = (
        f"learner.groups_per_step {groups} ÷ learner.minibatches {parts} = {groups / parts:g} groups an update, "
        f"{parts} {'updates' if parts > 1 else 'update'} a step"
    )
    remedy = "updates get unequally many groups: make groups_per_step a multiple of minibatches"
    return Check("minibatches", formula, *_verdict(remedy if groups % parts else "", "warning"))


def _samples(config: RunConfig, ranks: int) -> Check:
    groups, size, parts = config.learner.groups_per_step, config.rollout.group_size, config.learner.minibatches
    each = groups * size / parts / ranks
    formula = (
        f"learner.groups_per_step {groups} × rollout.group_size {size} = {groups * size} samples a step; ÷ minibatches "
        f"{parts} ÷ ranks {ranks} = {each:g} samples a rank and update"
    )
    remedy = "ranks have nothing to do: raise learner.groups_per_step or rollout.group_size, or start fewer ranks"
    return Check("samples", formula, *_verdict(remedy if each < 1 else "", "warning"))


def _passes(config: RunConfig, ranks: int) -> Check:
    learner, longest = config.learner, config.worker.max_model_len_tokens
    samples = learner.groups_per_step * config.rollout.group_size
    tokens = samples * longest
    passes = -(-tokens // (learner.micro_batch_tokens * ranks * learner.minibatches))
    formula = (
        f"{samples} samples × at most worker.max_model_len_tokens {longest} = {tokens:,} tokens a step; ÷ minibatches "
        f"{learner.minibatches} ÷ ranks {ranks} ÷ learner.micro_batch_tokens {learner.micro_batch_tokens} = about "
        f"{passes} forward passes a rank and update at most"
    )
    return Check("forward passes", formula, "ok", "")


_CHECKS: Final[tuple[Callable[[RunConfig], Check], ...]] = (
    _prompts, _shares, _admission, _in_flight, _context, _evaluated_context, _waits, _record, _transactions, _variance,
    _distribution, _raters, _schedule, _checkpoints, _ports,
)  # fmt: skip
