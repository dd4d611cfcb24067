"""Figures of the gateway, for Prometheus."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

ANSWERS: Final = Counter("asyncflow_gateway_answers_total", "Questions, by how their answers ended.", ["end"])
ANSWERS_IN_FLIGHT: Final = Gauge("asyncflow_gateway_answers_in_flight", "Answers being generated or written.")
FIRST_TOKEN_SECONDS: Final = Histogram(
    "asyncflow_gateway_first_token_seconds", "From the exchange record to the first token.", buckets=_SECONDS
)
ANSWER_SECONDS: Final = Histogram(
    "asyncflow_gateway_answer_seconds", "From the exchange record to the acknowledged row.", buckets=_SECONDS
)
JUDGEMENTS: Final = Counter("asyncflow_gateway_judgements_total", "Judgements acknowledged by Kafka.", ["kind"])
REFUSALS: Final = Counter("asyncflow_gateway_refusals_total", "Requests that were refused.", ["status"])
APPENDS_FAILED: Final = Counter("asyncflow_gateway_appends_failed_total", "Records that Kafka did not take.", ["topic"])
VERSION: Final = Gauge("asyncflow_gateway_weight_version", "The newest weight version that was announced.")
