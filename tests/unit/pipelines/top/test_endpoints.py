"""Pages of figures: whose they are, and what grows how fast."""

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from pipelines.top.endpoints import Endpoints, Page, Reading, endpoints_of, parse, process_of
from pipelines.top.screen import page_of
from pipelines.top.state import Endpoint
from schemas.config import RunConfig
from schemas.errors import ConfigError

TEXT = """# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
vllm:num_requests_running{engine="2"} NaN
asyncflow_worker_weight_version 7.0
python_gc_objects_collected_total{generation="0"} 1.0
"""
SLOTS = "asyncflow_rollout_slot_seconds_total"


def test_a_page_has_what_a_screen_shows():
    page = parse(TEXT, 5.0)
    assert sorted(page.samples) == ["asyncflow_worker_weight_version", "vllm:num_requests_running"]
    assert page.total("vllm:num_requests_running") == 7
    assert page.total("vllm:num_requests_running", engine="1") == 4
    assert page.total("vllm:num_requests_waiting") is None
    assert page.by("vllm:num_requests_running", "engine") == {"0": 3, "1": 4}
    with pytest.raises(ValueError, match="could not convert"):
        parse("asyncflow_x{ 1", 0.0)


@pytest.mark.parametrize(
    ("names", "process"),
    [
        (["asyncflow_rollout_retries_total", "asyncflow_gateway_answers_total"], "gateway"),
        (["asyncflow_rollout_retries_total", "asyncflow_feedback_cases"], "join-feedback"),
        (["asyncflow_rollout_retries_total"], "rollout"),
        ([], "learner"),
    ],
)
def test_a_page_says_whose_it_is(names, process):
    page = Page(0.0, {name: [({}, 1.0)] for name in names})
    assert process_of(page, "learner") == process


def reading(*pages):
    return Reading(Endpoint("rollout", "u", 0.0), tuple(Page(at, {SLOTS: samples}) for at, samples in pages))


def test_rates_are_told_of_counters_that_grew_and_not_over_a_restart():
    before = [({"state": "filled"}, 10.0), ({"state": "admission"}, 2.0)]
    after = [({"state": "filled"}, 13.0), ({"state": "admission"}, 3.0)]
    assert reading((0.0, before), (2.0, after)).rate(SLOTS) == 2.0
    assert reading((0.0, before), (2.0, after)).grown(SLOTS, "state") == {"filled": 3.0, "admission": 1.0}
    assert reading((0.0, after), (2.0, before)).rate(SLOTS) is None
    assert reading((0.0, before)).rate(SLOTS) is None
    assert reading((2.0, before), (2.0, after)).rate(SLOTS) is None, "the clock was set"
    assert Reading(Endpoint("rollout", "u", None)).now(SLOTS) is None


def test_an_endpoint_that_does_not_answer_is_told_with_the_time():
    registry = CollectorRegistry()
    Counter("asyncflow_rollout_retries", "x", registry=registry).inc(3)
    server, _ = start_http_server(0, "127.0.0.1", registry=registry)
    urls = {f"http://127.0.0.1:{server.server_port}/metrics": "unknown", "http://127.0.0.1:1/metrics": "learner"}
    endpoints = Endpoints(urls)
    found, away = endpoints.look()
    assert (found.endpoint.process, found.endpoint.silent_s) == ("rollout", 0.0)
    assert found.now("asyncflow_rollout_retries_total") == 3
    assert (away.endpoint.process, away.endpoint.silent_s, away.pages) == ("learner", None, ())
    server.shutdown()
    server.server_close()
    found, _ = endpoints.look()
    assert found.endpoint.silent_s > 0
    assert found.pages == ()
    endpoints.know(["http://127.0.0.1:1", "http://127.0.0.1:2"])
    assert len(endpoints.look()) == 3, "one was known already"
    endpoints.know([])
    assert len(endpoints.look()) == 2, "who announces itself no more is forgotten"
    endpoints.close()


def test_an_address_is_what_a_user_means():
    for given in ("h:9", "http://h:9", "http://h:9/", "h:9/metrics", "http://h:9/metrics/"):
        assert page_of(given) == "http://h:9/metrics"
    assert page_of("https://h/prefix") == "https://h/prefix/metrics"
    for given in ("", "file:///etc/passwd", "http://", "a b"):
        with pytest.raises(ConfigError, match="--metrics"):
            page_of(given)


def test_the_pages_of_a_run_of_this_machine_stand_in_its_configuration():
    config = RunConfig.model_validate({"rollout": {"metrics_port": 9100}, "learner": {"metrics_port": 9101}})
    found = endpoints_of(config)
    assert found["http://127.0.0.1:9100/metrics"] == "rollout"
    assert found["http://127.0.0.1:8000/metrics"] == "worker"
    assert "join-feedback" not in found.values()
    elsewhere = {"rollout": {"metrics_port": 9100, "metrics_host": "0.0.0.0"},
                 "learner": {"metrics_port": 9101, "metrics_host": "::1"}}  # fmt: skip
    found = endpoints_of(RunConfig.model_validate(elsewhere))
    assert (found["http://127.0.0.1:9100/metrics"], found["http://[::1]:9101/metrics"]) == ("rollout", "learner")
