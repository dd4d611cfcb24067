"""From the configuration to the arguments and the environment of ``vllm serve``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import ConfigError
from schemas.lora import MAX_RANK
from transforms.generation.worker.lifeline import SERVER_VARIABLE
from transforms.generation.worker.names import BACKEND, EXECUTOR, EXTENSION

if TYPE_CHECKING:
    from argparse import Namespace

    from schemas.config import RunConfig
    from schemas.lora import LoraConfig
    from schemas.tracing import TracingConfig

_BLOCK_TOKENS: Final = 32
"""Granularity of the prefix cache; vLLM's 128 shares nothing between short prompts."""
_CPU_MEMORY_SHARE: Final = 0.2
"""Of a NUMA node, which must be free at the start on a CPU; vLLM's 0.92 leaves no room for a learner."""
_CPU_STEP_TOKENS: Final = 256
"""Most tokens that one step computes on a CPU. After a change of weights the requests in flight are computed
again from their first token on, and the first of them go on after one step: 2,048 tokens would take seconds."""
_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, MAX_RANK)
"""For which vLLM has room; an adapter of a smaller rank is filled up with zeros."""
_STOP_S: Final = 5
"""How long the engine processes may take to end by themselves; after 0 vLLM kills them and leaks semaphores."""
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",  # the model is a directory
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # on two cores a reserved one is half of the machine
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep, so that a learner on the same cores runs
}
_FORBIDDEN_ENVIRONMENT: Final = (
    "VLLM_SERVER_DEV_MODE",  # routes that change weights and run code
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",  # routes that load adapters
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_CPU_KVCACHE_SPACE",  # would override worker.kv_cache_gib
)
_OURS: Final = frozenset(
    {
        "model",
        "host",
        "port",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "logprobs_mode",
        "enable_scale_out",
        "generation_config",
        "weight_transfer_config",
        "worker_extension_cls",
        "scheduling_policy",
        "api_server_count",
        "enable_lora",
        "lora_modules",
        "max_loras",
        "max_lora_rank",
        "lora_dtype",
        "lora_target_modules",
    }
)
"""Settings that the promises of this project rest on, or that have a key of their own."""


def prepare_environment(*, eager: bool, tracing: TracingConfig | None = None) -> None:
    """Sets what vLLM and its child processes read; before anything imports vLLM."""
    os.environ.update(_ENVIRONMENT)
    os.environ[SERVER_VARIABLE] = str(os.getpid())
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # engine processes talk over loopback unless told otherwise
    if eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else the sampler compiles for 10 s at the first request
    for name in _FORBIDDEN_ENVIRONMENT:
        os.environ.pop(name, None)
    if tracing and tracing.exporter == "otlp":
        os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"  # vLLM's own would be gRPC
        os.environ.setdefault("OTEL_SERVICE_NAME", "vllm")  # of vLLM's spans; ours have a name that goes first


def parse_arguments(config: RunConfig, dtype: str) -> Namespace:
    """The parsed command line of ``vllm serve``.

    Raises:
        ConfigError: ``worker.engine_args`` names an argument that vLLM does not have or that is not free.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> None:
            raise ConfigError(f"worker.engine_args: {message}; see `vllm serve --help=all`")

    device = _device_arguments(config, on_cpu=current_platform.is_cpu())
    arguments = {
        **_arguments(config, dtype), **device, **_adapter_arguments(config.learner.lora),
        **_tracing_arguments(config.tracing),
    }  # fmt: skip
    line = to_command_line(arguments) + to_command_line(_free_arguments(config))
    parsed: Namespace = make_arg_parser(Parser()).parse_args(line)
    validate_parsed_serve_args(parsed)
    return parsed


def _arguments(config: RunConfig, dtype: str) -> dict[str, Any]:
    worker = config.worker
    return {
        "model": config.model.path,
        "served_model_name": Path(config.model.path).name,
        "host": worker.host,
        "port": worker.port,
        "dtype": dtype,
        "seed": config.seed,
        "max_model_len": worker.max_model_len_tokens,
        "max_num_seqs": worker.max_num_seqs,
        "block_size": _BLOCK_TOKENS,
        "enforce_eager": worker.enforce_eager,
        "generation_config": "vllm",  # the model's own would change temperature and top-k behind our back
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "enable_scale_out": True,  # serves /inference/v1/generate
        "scheduling_policy": "priority",  # the probe goes first
        "weight_transfer_config": json.dumps({"backend": BACKEND}),
        "worker_extension_cls": EXTENSION,
        "shutdown_timeout": _STOP_S,
    }


def _device_arguments(config: RunConfig, *, on_cpu: bool) -> dict[str, Any]:
    if not on_cpu:
        return {"gpu_memory_utilization": config.worker.gpu_memory_utilization}
    kv_cache_bytes = int(config.worker.kv_cache_gib * 2**30)
    return {
        "gpu_memory_utilization": _CPU_MEMORY_SHARE,
        "max_num_batched_tokens": max(_CPU_STEP_TOKENS, config.worker.max_num_seqs),
        "kv_cache_memory_bytes": kv_cache_bytes,
        "distributed_executor_backend": EXECUTOR,
    }


def _adapter_arguments(lora: LoraConfig) -> dict[str, Any]:
    """Room for one adapter, which every version replaces.

    Only the layers that have one are made ready for it. vLLM would take the head too, whose LoRA form fails on a
    prompt's logprobs beside other sequences, as the probe's are.
    """
    if not lora.trains_adapter:
        return {}
    rank = next(rank for rank in _LORA_RANKS if rank >= lora.rank)
    targets = list(lora.target_modules)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank, "lora_target_modules": targets}


def _tracing_arguments(tracing: TracingConfig) -> dict[str, Any]:
    """VLLM's own spans go where ours go, below the request's; it cannot write them to a file."""
    return {"otlp_traces_endpoint": tracing.endpoint} if tracing.exporter == "otlp" else {}


def _free_arguments(config: RunConfig) -> dict[str, Any]:
    given = {name.lstrip("-").replace("-", "_"): value for name, value in config.worker.engine_args.items()}
    if taken := sorted(given.keys() & _OURS):
        raise ConfigError(
            f"worker.engine_args: {', '.join(taken)} cannot be set here; the worker sets it from its own keys"
        )
    return given


def to_command_line(arguments: dict[str, Any]) -> list[str]:
    """``{"block_size": 32, "enforce_eager": True}`` becomes ``["--block-size=32", "--enforce-eager"]``.

    A list becomes an option and a word for each of its values.
    """
    line = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            line += [f"--{option}", *value]
        else:
            line.append(f"--{option}={value}")
    return line
