"""The command line and the environment that vLLM gets."""

import os

import pytest

from schemas.config import ModelConfig, RunConfig, WorkerConfig
from schemas.errors import ConfigError
from schemas.tracing import TracingConfig
from transforms.generation.worker.arguments import parse_arguments, prepare_environment, to_command_line


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A copy that the test may spoil."""
    monkeypatch.setattr(os, "environ", {**os.environ})


def make_config(**engine_args):
    return RunConfig(model=ModelConfig(path="/models/tiny"), worker=WorkerConfig(engine_args=engine_args), seed=7)


def test_switches_and_values_become_options():
    assert to_command_line({"block_size": 32, "enforce_eager": True, "enable_lora": False}) == [
        "--block-size=32",
        "--enforce-eager",
        "--no-enable-lora",
    ]


def test_the_promises_are_in_the_arguments():
    parsed = parse_arguments(make_config(), "bfloat16")
    assert (parsed.model, parsed.served_model_name, parsed.dtype) == ("/models/tiny", ["tiny"], "bfloat16")
    assert (parsed.logprobs_mode, parsed.generation_config, parsed.seed) == ("processed_logprobs", "vllm", 7)
    assert parsed.enable_scale_out
    assert (parsed.scheduling_policy, parsed.block_size) == ("priority", 32)


def test_free_arguments_reach_vllm():
    parsed = parse_arguments(make_config(**{"tensor-parallel-size": 2, "enable_chunked_prefill": False}), "float32")
    assert (parsed.tensor_parallel_size, parsed.enable_chunked_prefill) == (2, False)


@pytest.mark.parametrize("name", ["logprobs_mode", "worker-extension-cls", "--port", "generation_config"])
def test_arguments_that_would_break_a_promise_are_refused(name):
    with pytest.raises(ConfigError, match="cannot be set here"):
        parse_arguments(make_config(**{name: "x"}), "float32")


@pytest.mark.parametrize(("name", "value"), [("no_such_argument", 1), ("tensor_parallel_size", "many")])
def test_arguments_that_vllm_does_not_take_are_the_users_to_mend(name, value):
    with pytest.raises(ConfigError, match=r"worker\.engine_args"):
        parse_arguments(make_config(**{name: value}), "float32")


def test_vllms_own_spans_go_where_ours_go():
    tracing = TracingConfig(exporter="otlp", endpoint="http://127.0.0.1:4318/v1/traces")
    prepare_environment(eager=True, tracing=tracing)
    assert os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    parsed = parse_arguments(make_config().model_copy(update={"tracing": tracing}), "float32")
    assert parsed.otlp_traces_endpoint == tracing.endpoint
    assert parse_arguments(make_config(), "float32").otlp_traces_endpoint is None


def test_development_routes_cannot_be_switched_on_from_outside():
    os.environ |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    prepare_environment(eager=True)
    assert not os.environ.keys() & {"VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION"}
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("eager", [True, False])
def test_only_an_eager_engine_goes_without_the_compiler(eager):
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    prepare_environment(eager=eager)
    assert ("TORCHDYNAMO_DISABLE" in os.environ) is eager
