"""The Prometheus endpoints of a run, read together and kept for some seconds, so that rates can be told.

An endpoint says itself whose it is, by the names of its figures. One that does not answer is no error: it is
what a person wants to see.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from pipelines.top.state import Endpoint, Process
from schemas.config import RunConfig
from transforms.listening import EVERY_ADDRESS

RATE_WINDOW_S: Final = 15.0
_TIMEOUT_S: Final = 1.0
_READ_AT_ONCE: Final = 16
_LARGEST_BYTES: Final = 8 << 20
_PREFIXES: Final = ("asyncflow_", "vllm:num_requests_", "vllm:generation_tokens", "vllm:kv_cache_usage_perc")
"""A page of vLLM has thousands of lines; these are all that a screen shows."""
_PROCESSES: Final[Mapping[str, Process]] = {
    "asyncflow_worker_": "worker",
    "asyncflow_learner_": "learner",
    "asyncflow_gateway_": "gateway",
    "asyncflow_feedback_": "join-feedback",
    "asyncflow_scorer_": "scorer",
    "asyncflow_rollout_": "rollout",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What an endpoint served at one moment."""

    at: float
    """Seconds since 1970."""
    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
    """By name, each with its labels."""

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over all samples of a name with these labels; null if there is none."""
        found = [value for has, value in self.samples.get(name, ()) if labels.items() <= has.items()]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums by the values of one label."""
        sums: dict[str, float] = {}
        for labels, value in self.samples.get(name, ()):
            if label in labels:
                sums[labels[label]] = sums.get(labels[label], 0.0) + value
        return sums


@dataclass(frozen=True, slots=True)
class Reading:
    """An endpoint at one moment."""

    endpoint: Endpoint
    pages: tuple[Page, ...] = ()
    """Of the last 15 seconds, oldest first; empty if it does not answer now."""

    def now(self, name: str, **labels: str) -> float | None:
        """The sum of a figure; null if it is not served."""
        return self.pages[-1].total(name, **labels) if self.pages else None

    def grown(self, name: str, label: str) -> dict[str, float]:
        """By how much each of a counter's values has grown within the pages."""
        if len(self.pages) < 2:
            return {}
        before, after = self.pages[0].by(name, label), self.pages[-1].by(name, label)
        return {each: max(0.0, value - before.get(each, 0.0)) for each, value in after.items()}

    def rate(self, name: str) -> float | None:
        """Of a counter, a second; null if it is not known or the process started anew."""
        if len(self.pages) < 2:
            return None
        first, last = self.pages[0], self.pages[-1]
        before, after, passed_s = first.total(name), last.total(name), last.at - first.at
        if before is None or after is None or after < before or passed_s <= 0:  # the clock may be set
            return None
        return (after - before) / passed_s


@dataclass
class _Source:
    url: str
    process: Process
    pages: deque[Page] = field(default_factory=deque)
    answered_at: float | None = None

    def take(self, page: Page | None) -> Reading:
        """What was just read, null if nothing answered, with what was read before."""
        if page is None:
            silent_s = None if self.answered_at is None else time.time() - self.answered_at
            return Reading(Endpoint(self.process, self.url, silent_s))
        self.pages.append(page)
        while page.at - self.pages[0].at > RATE_WINDOW_S:
            self.pages.popleft()
        self.answered_at, self.process = page.at, process_of(page, self.process)
        return Reading(Endpoint(self.process, self.url, 0.0), tuple(self.pages))


class Endpoints:
    """All endpoints that are known of a run; one thread looks, another may tell of workers.

    Args:
        urls: of pages, with the process that is expected there.
    """

    def __init__(self, urls: Mapping[str, Process]) -> None:
        self._given = {url: _Source(url, process) for url, process in urls.items()}
        self._announced: dict[str, _Source] = {}
        self._pool = ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="metrics")

    def close(self) -> None:
        """Reads no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def know(self, workers: Iterable[str]) -> None:
        """The base URLs of the workers that announce themselves now; others that did so before are forgotten."""
        urls = {f"{worker}/metrics" for worker in workers} - self._given.keys()
        self._announced = {url: self._announced.get(url) or _Source(url, "worker") for url in sorted(urls)}

    def look(self) -> tuple[Reading, ...]:
        """Reads every page once, all at the same time."""
        sources = [*self._given.values(), *self._announced.values()]
        pages = self._pool.map(read, [source.url for source in sources])
        return tuple(source.take(page) for source, page in zip(sources, pages, strict=True))


def endpoints_of(config: RunConfig) -> dict[str, Process]:
    """The pages that the processes of a run on this machine serve, by its configuration."""
    found: dict[str, Process] = {f"{worker}/metrics": "worker" for worker in config.rollout.workers}
    pages: tuple[tuple[Process, str, int], ...] = (
        ("rollout", config.rollout.metrics_host, config.rollout.metrics_port),
        ("learner", config.learner.metrics_host, config.learner.metrics_port),
        ("join-feedback", config.feedback.metrics_host, config.feedback.metrics_port),
        ("gateway", config.gateway.host, config.gateway.port),
    )
    return found | {f"http://{_as_reached(host)}:{port}/metrics": process for process, host, port in pages if port}


def _as_reached(host: str) -> str:
    """An address to listen on, from this machine."""
    if host in EVERY_ADDRESS:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def read(url: str) -> Page | None:
    """One page; null if nothing answers there within a second. A proxy of the environment is for other addresses."""
    from http.client import HTTPException
    from urllib.request import ProxyHandler, build_opener

    try:
        with build_opener(ProxyHandler({})).open(url, timeout=_TIMEOUT_S) as answer:
            return parse(answer.read(_LARGEST_BYTES).decode(errors="replace"), time.time())
    except (OSError, HTTPException, ValueError):
        return None


def parse(text: str, at: float) -> Page:
    """The figures of a page in Prometheus's text format that a screen shows; those that are not finite say nothing.

    Raises:
        ValueError: one of their lines has another form.
    """
    from prometheus_client.parser import text_string_to_metric_families

    ours = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(_PREFIXES))
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            if isfinite(sample.value):
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Page(at, samples)


def process_of(page: Page, expected: Process) -> Process:
    """Whose page it is. A pipeline imports the modules of others, so the rarest name counts first."""
    found = (process for prefix, process in _PROCESSES.items() if any(name.startswith(prefix) for name in page.samples))
    return next(found, expected)
