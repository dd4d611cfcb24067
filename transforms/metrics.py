"""Figures of the rollout pipeline, stage by stage, for Prometheus.

They belong to the process: a pipeline that runs on several Beam workers has one set in each.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)

PROMPTS_TAKEN: Final = Counter("asyncflow_rollout_prompts_taken_total", "Prompts taken from their topic.")
PROMPTS_IN_FLIGHT: Final = Gauge("asyncflow_rollout_prompts_in_flight", "Prompts being answered.", ["share"])
SLOT_SECONDS: Final = Counter(
    "asyncflow_rollout_slot_seconds_total",
    "Time of the max_in_flight slots by what they did: filled, or why they were empty. All states add up to the clock.",
    ["share", "state"],
)
QUEUE_SECONDS: Final = Histogram(
    "asyncflow_rollout_queue_seconds", "From a prompt's writing to its topic until it is taken.", buckets=_SECONDS
)
GROUPS_UNCOMMITTED: Final = Gauge(
    "asyncflow_rollout_groups_uncommitted", "Groups that are answered and not yet committed.", ["share"]
)
GROUPS_FINISHED: Final = Counter("asyncflow_rollout_groups_finished_total", "Groups answered in full.")
RESPONSE_TOKENS: Final = Counter("asyncflow_rollout_response_tokens_total", "Tokens of finished groups.")
GENERATION_SECONDS: Final = Histogram(
    "asyncflow_rollout_generation_seconds", "From taking a prompt to its whole group.", buckets=_SECONDS
)
ENGINE_ERRORS: Final = Counter(
    "asyncflow_rollout_engine_errors_total", "Requests to an engine that gave no group.", ["kind"]
)
RETRIES: Final = Counter("asyncflow_rollout_retries_total", "Groups asked for once more.")
WORKERS_UP: Final = Gauge("asyncflow_rollout_workers_up", "Workers that take requests.", ["share"])

CONVERSATIONS: Final = Counter(
    "asyncflow_environment_conversations_total", "Conversations, by how they ended.", ["environment", "finish_reason"]
)
TURNS: Final = Counter("asyncflow_environment_turns_total", "Answers within conversations.", ["environment"])
ENVIRONMENT_FAULTS: Final = Counter(
    "asyncflow_environment_faults_total", "Samples without a reward for their environment's fault.",
    ["environment", "reason"],
)  # fmt: skip
ENVIRONMENT_SECONDS: Final = Histogram(
    "asyncflow_environment_seconds", "One step of an environment.", ["environment"], buckets=_SECONDS
)

SAMPLES_SCORED: Final = Counter("asyncflow_score_samples_total", "Samples with a reward.", ["reward"])
REWARD_FAILURES: Final = Counter(
    "asyncflow_score_failures_total", "Samples whose reward is null, by reason.", ["reward", "reason"]
)
SCORE_SECONDS: Final = Histogram(
    "asyncflow_score_seconds", "From a group's last token to its rewards.", buckets=_SECONDS
)
SERVICE_REQUESTS: Final = Counter(
    "asyncflow_score_service_requests_total",
    "Requests to judges and reward models by what came of them: answered, refused, failed or unavailable.",
    ["service", "outcome"],
)
SERVICE_SECONDS: Final = Histogram(
    "asyncflow_score_service_seconds", "One request to a judge or a reward model.", ["service"], buckets=_SECONDS
)
SERVICE_WAITING: Final = Gauge(
    "asyncflow_score_service_waiting", "Answers that wait for a judge or a reward model.", ["service"]
)
SERVICE_LEFT_ALONE: Final = Gauge(
    "asyncflow_score_service_left_alone", "1 while a judge or a reward model is left alone after failures.", ["service"]
)
ASSEMBLE_SECONDS: Final = Histogram("asyncflow_assemble_seconds", "One bundle's groups to records.", buckets=_SECONDS)

DEAD_LETTERS: Final = Counter("asyncflow_dead_letters_total", "Dead letters committed.", ["stage", "reason"])
GROUPS_WRITTEN: Final = Counter("asyncflow_write_groups_total", "Groups committed, dead letters included.")
RECORDS_WRITTEN: Final = Counter("asyncflow_write_records_total", "Records committed, by topic.", ["topic"])
BYTES_WRITTEN: Final = Counter("asyncflow_write_bytes_total", "Bytes of committed record values, by topic.", ["topic"])
COMMIT_SECONDS: Final = Histogram("asyncflow_write_commit_seconds", "One Kafka transaction.", buckets=_SECONDS)
COMMIT_LATENCY_SECONDS: Final = Histogram(
    "asyncflow_write_latency_seconds", "From the last token of a group to its commit.", buckets=_SECONDS
)
