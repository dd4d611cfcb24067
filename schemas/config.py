"""The configuration of a run: one class a process, a docstring under each field.

A TOML file holds it, dotted flags override it (``--learner.steps 10``), unknown keys are refused.
Units are in the names: ``_s`` seconds, ``_bytes``, ``_tokens``.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from schemas.complaints import explain
from schemas.errors import ConfigError
from schemas.evaluation import EvaluationConfig
from schemas.federating import SiteConfig
from schemas.gateway import GatewayConfig
from schemas.joining import FeedbackConfig
from schemas.kafka import KafkaConfig as KafkaConfig  # noqa: PLC0414 - it is imported from here, as all sections are
from schemas.layers import Layer, merge, origins, read_layers
from schemas.limits import MAX_GROUP_SIZE, MAX_RESPONSE_TOKENS, MAX_TRAJECTORY_BYTES
from schemas.lora import LoraConfig
from schemas.objectives import ObjectiveConfig
from schemas.scorers import ScorerConfig
from schemas.secrets import holds_only_references, is_secret, reveal
from schemas.sections import Host, Positive, Seconds, Section
from schemas.services import JudgeConfig, RewardModelConfig, ServiceName, UserModelConfig
from schemas.topics import Topics
from schemas.tracing import TracingConfig
from schemas.trackers import TrackerName

AnySection = TypeVar("AnySection", bound=Section)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """The model that is trained."""

    path: str = ""
    """A Hugging Face directory: config.json, tokenizer and safetensors."""
    dtype: Dtype = "auto"
    """Of engine and learner. ``auto`` takes what this machine multiplies fastest."""


class WeightsConfig(Section):
    """The weight store."""

    root: str = "weights"
    """Where versions are written and read: an fsspec URL or a path. Each process has its own view of
    it; no path travels in a record."""
    keep: Positive = 3
    """Newest versions that stay in the store."""
    transport: Literal["store", "ipc", "nccl"] = "store"
    """How the bytes come to the engines: ``store`` as files below ``root``; ``ipc`` through the memory of the
    one GPU that learner and engine share; ``nccl`` from GPU to GPU, also between hosts."""
    delta: bool = False
    """With ``store``: write only what changed since the last version, compressed."""
    full_every: Annotated[int, Field(ge=1, le=100)] = 10
    """With ``delta``: every how many versions all bytes are written."""
    buffers: Positive = 2
    """With ``ipc`` and ``nccl``: copies of the weights that the learner holds for engines to read; 1 saves
    memory, but an engine that is slower than a step then misses versions."""
    host: str = "127.0.0.1"
    """With ``nccl``: address of the learner's host, as engines reach it."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """With ``nccl``: port of the learner's rendezvous; 0 for any free one."""
    timeout_s: Seconds = 20.0
    """With ``nccl``: how long engines and learner wait for each other before the version goes through the store."""

    @model_validator(mode="after")
    def _deltas_are_files(self) -> Self:
        if self.delta and self.transport != "store":
            raise ValueError(f'weights.delta = true is for weights.transport = "store", given {self.transport!r}')
        return self


class WorkerConfig(Section):
    """A vLLM worker."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    max_model_len_tokens: Positive = 2048
    """Longest prompt and response together."""
    max_num_seqs: Positive = 64
    """Sequences that the engine computes at once."""
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory of the key-value cache on a CPU in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the GPU's memory that the engine may take; on a CPU 0.2 is used."""
    enforce_eager: bool = True
    """Starts faster; False compiles, which answers faster on a GPU."""
    probe_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Largest mean difference between the engine's and the learner's logprobs of the probe that a new
    version may show; null for 1e-3 in float32 and 0.1 in bfloat16."""
    advertise: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\-_\[\]:]+$", max_length=300)] | None = None
    """Base URL under which the rollout pipeline reaches this worker; null for ``http://host:port``, with
    this machine's name if ``host`` is every address."""
    max_wait_for_version_s: Seconds = 120.0
    """How long a request waits for the weight version that it asks for before it is answered 503."""
    alone: bool = False
    """Serve the weights of ``model.path`` as version 1 and follow nobody: no broker is asked or told. So an evaluation
    serves a model that no run trains."""
    api_key: str = ""
    """Where the key is that a worker wants to see and that pipeline, gateway and evaluations show: ``"{env:NAME}"`` or
    ``"{file:PATH}"``. Empty for none: whoever reaches a worker's port can use the model."""
    engine_args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further arguments of ``vllm serve``, such as ``tensor_parallel_size``. Keys and tokens are not written here: vLLM
    takes them from its environment."""

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs over which one engine divides each layer."""
        return int(self.engine_args.get("tensor_parallel_size", 1))

    @field_validator("api_key")
    @classmethod
    def _says_where_it_is(cls, given: str) -> str:
        if given and not holds_only_references(given):
            raise ValueError(
                "the key is written out, and would be copied into the run's directory and its report; give "
                '"{env:NAME}" for an environment variable, or "{file:PATH}"'
            )
        return given

    def key(self) -> str | None:
        """What :attr:`api_key` refers to; null for none.

        Raises:
            ConfigError: it is not there, or cannot be sent in a header of HTTP.
        """
        if not self.api_key:
            return None
        key = str(reveal("worker.api_key", self.api_key)).strip()
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            raise ConfigError(f"worker.api_key: {self.api_key} holds no key; expected printable ASCII without spaces")
        return key

    @field_validator("engine_args")
    @classmethod
    def _holds_no_secrets(cls, given: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        for key, value in given.items():
            if is_secret(key) and isinstance(value, str):
                raise ValueError(
                    f"{key} is written out, and would be copied into the run's directory and its report; leave it out "
                    "and set the variable that vLLM reads, such as HF_TOKEN, where the worker starts; the key of its "
                    "routes is worker.api_key"
                )
        return given


class SamplingConfig(Section):
    """How answers are drawn where a prompt does not say."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the softmax; logprobs are those of the scaled distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus; below 1 the logprobs of the learner no longer match."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Most likely tokens to draw from; -1 for all."""
    max_tokens: Positive = 256
    """Longest answer."""


class EnvironmentsConfig(Section):
    """What conversations of prompts with an environment may take, and where environments run."""

    max_turns: Positive = 8
    """Answers of the model in one conversation."""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_RESPONSE_TOKENS)] = 4096
    """Tokens of one conversation after its prompt, the environment's included. The engine's context
    (``worker.max_model_len_tokens``) bounds prompt and conversation together."""
    step_timeout_s: Seconds = 10.0
    """How long the environment may take to begin, and for each turn, before the sample goes without a reward."""
    episode_timeout_s: Seconds = 600.0
    """No turn begins once engine and environment have worked on a conversation for so long; waiting for a
    worker does not count."""
    processes: Positive = 1
    """Processes that each environment runs in, by each share; its conversations are divided among them."""
    memory_bytes: Positive = 4 << 30
    """Address space of one of these processes."""
    modules: tuple[str, ...] = ()
    """Modules that register further environments: names that Python can import, or files, such as ``my_games.py``."""
    data: dict[str, Path] = Field(default_factory=dict)
    """The directory that an environment reads, by its name; ``tau_retail`` needs one."""
    user: UserModelConfig = UserModelConfig()
    """Who plays the users of prompts that ask for a model."""


class RolloutConfig(Section):
    """The rollout pipeline."""

    workers: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """Base URLs of vLLM workers that are always asked; may be empty if they are discovered."""
    discover: bool = True
    """Also ask the workers that announce themselves in the topic ``{run}.workers``."""
    frozen_after_s: Seconds = 10.0
    """A worker whose ``/health`` is silent for so long is taken for frozen: others get its requests."""
    group_size: Annotated[int, Field(ge=1, le=MAX_GROUP_SIZE)] = 8
    """Samples of a prompt that does not say."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling of a prompt that does not say."""
    max_in_flight: Positive = 64
    """Groups being answered at once, by each share."""
    shares: Positive = 1
    """Into how many restrictions the prompts partitions are divided."""
    attempts: Positive = 3
    """Requests for one group before it becomes a dead letter."""
    request_timeout_s: Seconds = 600.0
    """How long one request may take."""
    max_bundle_groups: Positive = 256
    """Most groups in one Beam bundle, so in one Kafka transaction."""
    poll_interval_s: Seconds = 0.02
    """Pause between two looks for finished groups."""
    max_record_bytes: Annotated[int, Field(ge=1024, le=MAX_TRAJECTORY_BYTES)] = 900_000
    """A trajectories record is closed before it exceeds this, unless one group alone does."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the Prometheus endpoint; 0 for none."""
    metrics_host: Host = "127.0.0.1"
    """Address that the Prometheus endpoint listens on. Whoever reaches it reads figures, and needs no key."""
    environments: EnvironmentsConfig = EnvironmentsConfig()
    """Conversations of several turns."""


class RewardsConfig(Section):
    """The processes that compute rewards."""

    processes: Positive = 1
    """How many."""
    timeout_s: Seconds = 5.0
    """How long the reward of one sample may take before its process is killed."""
    memory_bytes: Positive = 4 << 30
    """Address space of one process."""
    modules: tuple[str, ...] = ()
    """Modules that register further rewards: names that Python can import, or files, such as ``my_rewards.py``."""
    sandbox: Literal["isolated", "required", "rlimits"] = "isolated"
    """Where the reward ``code`` runs what models write: isolated by namespaces, or, where those cannot be had, not at
    all (the reward is null, ``sandbox_unavailable``). ``required``: the same, and the pipeline does not start where
    they cannot be had. ``rlimits``: with limits on time and memory alone, so that it can read, write and send what you
    can; for models that you trust."""
    judges: dict[ServiceName, JudgeConfig] = Field(default_factory=dict)
    """Language models that the reward ``judge`` asks, by the names that prompts give."""
    reward_models: dict[ServiceName, RewardModelConfig] = Field(default_factory=dict)
    """Classifiers that the reward ``reward_model`` asks, by the names that prompts give."""


class LearnerConfig(Section):
    """The learner."""

    steps: Positive = 24
    """Optimizer steps after which the learner ends."""
    groups_per_step: Positive = 8
    """Groups that contribute to one optimizer step."""
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """Most weight versions between the one that answered and the one that is trained; 0 is on policy."""
    max_token_staleness: Annotated[int, Field(ge=0)] | None = None
    """Judges tokens instead of samples: one is trained if the weights that produced it are at most so many
    updates old, and a group is dropped as stale once that holds for none of its tokens. For long answers,
    which go on while weights change. At most ``max_staleness``; null trains all tokens of a sample whose
    oldest one is young enough."""
    max_feedback_staleness: Annotated[int, Field(ge=0)] = 32
    """The same for groups whose reward came as feedback, which takes its time, and for corrections of them.
    Demonstrations are never stale."""
    max_rater_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share of a step's groups that one user's feedback may be part of; what is over it waits."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Of AdamW, after warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after warm-up, down to 0 at the last step."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What it maximises."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Of the policy that is trained; null for that of ``rollout.sampling``."""
    minibatches: Positive = 1
    """Into how many parts the groups of a step are divided; each part is one update of the weights, the step is
    still published once. Ratios, values and corrections are those of the policy before the first update."""
    micro_batch_tokens: Positive = 8192
    """Most tokens of one packed forward pass; a longer sequence gets a pass of its own."""
    kept_logits_bytes: Annotated[int, Field(ge=0)] | None = None
    """Of the logits of one forward pass, how many bytes stay until its backward pass instead of being computed again;
    a 32nd as many logits are in float32 at a time, and at least 33.5 million. Null: 1 GiB on a CPU; on a GPU an eighth
    of what is free beside weights and optimizer, with a 512th of its bytes in logits at a time."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage."""
    deepspeed: str = ""
    """A DeepSpeed JSON whose further settings apply, such as offloading; empty for none. What this configuration
    decides must be the same there, or ``"auto"``."""
    lora: LoraConfig = LoraConfig()
    """An adapter that is trained and published instead of whole weights."""
    activation_checkpointing: bool = False
    """Keeps only the inputs of each layer and computes the rest again in the backward pass: less memory, a third
    more time."""
    max_skips: Positive = 3
    """After so many steps in a row whose gradient was not finite the learner ends; its next start goes back to the
    newest checkpoint and leaves out what was trained since."""
    checkpoint_root: str = "checkpoints"
    """Where checkpoints are written: a path."""
    checkpoint_every: Positive = 10
    """Steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that stay."""
    trackers: tuple[TrackerName, ...] = ("jsonl",)
    """Where the figures of every step are also written: ``jsonl`` is ``metrics.jsonl`` beside ``checkpoint_root``,
    and ``tensorboard`` a directory there; the others are services, whose packages have to be installed."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the Prometheus endpoint; 0 for none."""
    metrics_host: Host = "127.0.0.1"
    """Address that the Prometheus endpoint listens on. Whoever reaches it reads figures, and needs no key."""

    @property
    def admitted_groups(self) -> int:
        """Prompts that may be under way beyond those that have ended: what keeps every sample within the staleness."""
        return (1 + self.max_staleness) * self.groups_per_step

    @model_validator(mode="after")
    def _minibatches_have_groups(self) -> Self:
        if self.minibatches > self.groups_per_step:
            raise ValueError(
                f"minibatches = {self.minibatches} exceeds groups_per_step = {self.groups_per_step}: "
                "an update needs a group of its own; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _tokens_within_samples(self) -> Self:
        if self.max_token_staleness is not None and self.max_token_staleness > self.max_staleness:
            raise ValueError(
                f"max_token_staleness = {self.max_token_staleness} exceeds max_staleness = {self.max_staleness}: "
                "no token may be older than admission lets a sample be; lower the one or raise the other"
            )
        return self


class LocalConfig(Section):
    """What ``asyncflow up`` starts several of on this host.

    On its GPUs the learner's ranks get the first ones, workers those after them in turn. With fewer GPUs they are
    shared, and with ``weights.transport = "ipc"`` all workers share the first. Where something else starts the
    processes, that decides.
    """

    workers: Positive = 1
    """vLLM workers, each with as many GPUs as ``worker.engine_args.tensor_parallel_size`` says. Where several share
    one, ``worker.gpu_memory_utilization`` is each one's part."""
    ranks: Positive = 1
    """Processes of the learner, by ``torchrun``, each with a GPU of its own."""


class RunConfig(Section):
    """Everything that the processes of one run read."""

    name: str = "demo"
    """Prefix of the topics and name of the run's directory."""
    seed: int = 0
    """Of everything random."""
    kafka: KafkaConfig = KafkaConfig()
    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()
    worker: WorkerConfig = WorkerConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardsConfig = RewardsConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    scorer: ScorerConfig = ScorerConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    gateway: GatewayConfig = GatewayConfig()
    tracing: TracingConfig = TracingConfig()
    federation: SiteConfig = SiteConfig()
    local: LocalConfig = LocalConfig()

    @field_validator("name")
    @classmethod
    def _is_topic_prefix(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
            raise ValueError("expected letters, digits, '_' and '-', at most 100, starting with a letter or digit")
        return name

    @model_validator(mode="after")
    def _enough_partitions(self) -> Self:
        if self.rollout.shares > self.kafka.partitions:
            raise ValueError(
                f"rollout.shares = {self.rollout.shares} exceeds kafka.partitions = {self.kafka.partitions}: "
                "a share needs a partition of its own"
            )
        return self

    @model_validator(mode="after")
    def _somebody_answers(self) -> Self:
        if not self.rollout.workers and not self.rollout.discover:
            raise ValueError(
                "rollout.workers is empty and rollout.discover is false: nobody would answer; name workers, or discover"
            )
        return self

    @model_validator(mode="after")
    def _further_workers_are_found(self) -> Self:
        if self.local.workers > 1 and not self.rollout.discover:
            raise ValueError(
                f"local.workers = {self.local.workers} needs rollout.discover: all but the first announce themselves; "
                "set rollout.discover = true, or local.workers = 1"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_files(self) -> Self:
        if not self.learner.lora.trains_adapter:
            return self
        if self.weights.transport != "store" or self.weights.delta:
            given = f"weights.transport = {self.weights.transport!r}, weights.delta = {str(self.weights.delta).lower()}"
            raise ValueError(
                f"{given}: an adapter (learner.lora.rank = {self.learner.lora.rank}) is small and travels as a file; "
                'set weights.transport = "store" and weights.delta = false'
            )
        return self

    @model_validator(mode="after")
    def _sites_hold_whole_weights(self) -> Self:
        if self.federation.is_site and self.learner.zero_stage == 3:
            raise ValueError(
                "learner.zero_stage = 3 divides every weight over the ranks, and a federation's site has to put global "
                "weights in their place; set learner.zero_stage to 2 or less, or leave federation out"
            )
        return self

    @model_validator(mode="after")
    def _pulls_no_value_head(self) -> Self:
        if self.federation.is_site and self.federation.proximal_mu and self.learner.objective.name == "ppo":
            raise ValueError(
                f"federation.proximal_mu = {self.federation.proximal_mu} pulls all that is trained towards a global "
                "version, which has no value head; set it to 0, or choose another learner.objective.name than ppo"
            )
        return self

    @model_validator(mode="after")
    def _evaluates_apart(self) -> Self:
        if self.evaluation.worker_run == self.name:
            raise ValueError(
                f"evaluation.worker_run = {self.name!r} is the run itself, whose workers follow its learner; give the "
                "name under which workers for evaluations alone are started, or leave it empty"
            )
        return self

    @model_validator(mode="after")
    def _group_fits_engine(self) -> Self:
        if self.rollout.group_size > self.worker.max_num_seqs:
            raise ValueError(
                f"rollout.group_size = {self.rollout.group_size} exceeds worker.max_num_seqs = "
                f"{self.worker.max_num_seqs}: vLLM refuses a request for more samples than it computes at once"
            )
        if self.evaluation.samples > self.worker.max_num_seqs:
            raise ValueError(
                f"evaluation.samples = {self.evaluation.samples} exceeds worker.max_num_seqs = "
                f"{self.worker.max_num_seqs}: vLLM refuses a request for more samples than it computes at once"
            )
        return self

    @model_validator(mode="after")
    def _buffer_within_length(self) -> Self:
        buffer_tokens = self.learner.objective.overlong_buffer_tokens
        if buffer_tokens >= self.length_tokens:
            raise ValueError(
                f"learner.objective.overlong_buffer_tokens = {buffer_tokens} is not below the longest answer of "
                f"{self.length_tokens} tokens (learner.objective.length_tokens, or else rollout.sampling.max_tokens)"
            )
        return self

    @property
    def length_tokens(self) -> int:
        """The longest answer that the objective reckons with."""
        return self.learner.objective.length_tokens or self.rollout.sampling.max_tokens

    @property
    def topics(self) -> Topics:
        """The names of the run's topics."""
        return Topics(self.name)

    @property
    def temperature(self) -> float:
        """The temperature of the policy that is trained."""
        return self.learner.temperature or self.rollout.sampling.temperature


def load(path: Path) -> RunConfig:
    """Reads a TOML file and what it includes.

    Raises:
        ConfigError: a file cannot be read, or a key or value is wrong.
    """
    return from_layers(read_layers(path), str(path))


def from_layers(layers: Iterable[Layer], source: str) -> RunConfig:
    """Checks what files say together.

    Raises:
        ConfigError: naming every wrong key, where it was written, what was given and what was expected.
    """
    return section_of(RunConfig, layers, source)


def section_of(kind: type[AnySection], layers: Iterable[Layer], source: str) -> AnySection:
    """As :func:`from_layers`, of files that hold another section as a whole, such as a coordinator's.

    Raises:
        ConfigError: as there.
    """
    read = list(layers)
    tree = merge(read)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"configuration {source}: {explain(error, kind, origins(read))}") from error


def validate(tree: dict[str, Any], source: str) -> RunConfig:
    """Checks a configuration tree.

    Raises:
        ConfigError: naming every wrong key, what was given and what was expected.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"configuration {source}: {explain(error, RunConfig)}") from error
