"""Figures of the server of a reward model, for Prometheus."""

from typing import Final

from prometheus_client import Counter, Histogram

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

ROWS: Final = Counter("asyncflow_scorer_rows_total", "Answers scored, by what the classifier read.", ["read"])
FAILURES: Final = Counter("asyncflow_scorer_failures_total", "Answers without a number.", ["reason"])
PASS_SECONDS: Final = Histogram("asyncflow_scorer_pass_seconds", "One forward pass.", buckets=_SECONDS)
PASS_ROWS: Final = Histogram("asyncflow_scorer_pass_rows", "Answers of one forward pass.", buckets=_ROWS)
PADDING: Final = Counter("asyncflow_scorer_padding_tokens_total", "Padding of all forward passes.")
TOKENS: Final = Counter("asyncflow_scorer_tokens_total", "Tokens of all forward passes, without padding.")
