"""The configuration that DeepSpeed gets: the user's JSON, and over it what the learner decides.

    learner.deepspeed (a JSON file) ──► checked against the run ──► merged ──► deepspeed.initialize

A key that the run's configuration decides may say ``"auto"``, or the same; anything else is refused
before anything starts, with both numbers. All other keys go to DeepSpeed as they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from schemas.config import RunConfig
from schemas.errors import ConfigError

_AUTO: Final = "auto"
_ONE_SUBGROUP: Final = 10**13
"""Parameters that stage 3 updates at a time: all, because the norm has to be that of all."""
_DEFAULTS: Final = {"timers": {"throughput": {"enabled": False}}}
"""What the user's file may say otherwise. DeepSpeed's timer waits for the device before every pack."""
_REFUSED: Final = {
    "scheduler": "learner.schedule and learner.warmup_steps",
    "fp16": "model.dtype (float32 or bfloat16)",
    "amp": "model.dtype (float32 or bfloat16)",
}
"""What cannot be given there at all, and where it is said instead."""


def deepspeed_settings(config: RunConfig, dtype: str, ranks: int) -> dict[str, Any]:
    """What ``deepspeed.initialize`` gets.

    Args:
        config: of the run; ``learner.deepspeed`` names the user's file.
        dtype: ``float32`` or ``bfloat16``.
        ranks: number of processes that train.

    Raises:
        ConfigError: the file cannot be read, is not a JSON object, or contradicts the run's configuration.
    """
    given = read_json(config.learner.deepspeed) if config.learner.deepspeed else {}
    _check_batch(config, given, ranks)
    _check_decided(config, given, dtype)
    return merge(merge(_DEFAULTS, _without_auto(given)), _decided(config, dtype))


def read_json(path: str) -> dict[str, Any]:
    """The user's file.

    Raises:
        ConfigError: there is none, or it is not a JSON object.
    """
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"learner.deepspeed = {path!r}: {error.strerror}; give a DeepSpeed JSON file") from error
    except ValueError as error:
        raise ConfigError(f"learner.deepspeed = {path!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"learner.deepspeed = {path!r} holds a {type(found).__name__}, expected a JSON object")
    return found


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; where they differ ``over`` wins."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _without_auto(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the batch, which is packed here, without the optimizer, and without what says ``auto``."""
    ours = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer")
    kept = {key: value for key, value in given.items() if key not in ours and value != _AUTO}
    return {key: _without_auto(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _check_batch(config: RunConfig, given: Mapping[str, Any], ranks: int) -> None:
    """Samples a step = groups x samples; micro x accumulation x ranks has to be the same."""
    groups, samples = config.learner.groups_per_step, config.rollout.group_size
    step = groups * samples
    ours = f"learner.groups_per_step {groups} x rollout.group_size {samples} = {step} samples a step"
    whole = given.get("train_batch_size", _AUTO)
    if whole not in (_AUTO, step):
        raise _contradiction(config, f"train_batch_size = {whole}", ours)
    micro = given.get("train_micro_batch_size_per_gpu", _AUTO)
    accumulated = given.get("gradient_accumulation_steps", _AUTO)
    if _AUTO not in (micro, accumulated) and micro * accumulated * ranks != step:
        product = f"{micro} x {accumulated} x {ranks} ranks = {micro * accumulated * ranks}"
        raise _contradiction(
            config, f"train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks = {product}", ours
        )


def _check_decided(config: RunConfig, given: Mapping[str, Any], dtype: str) -> None:
    for key, instead in _REFUSED.items():
        section = given.get(key)
        if section and not (isinstance(section, Mapping) and section.get("enabled", True) in (False, _AUTO)):
            raise _contradiction(config, f"{key} = {json.dumps(section)}", f"{instead} decides that here")
    learner = config.learner
    decided: dict[str, tuple[Any, str]] = {
        "gradient_clipping": (learner.max_grad_norm, "learner.max_grad_norm"),
        "zero_optimization.stage": (learner.zero_stage, "learner.zero_stage"),
        "bf16.enabled": (dtype == "bfloat16", "model.dtype in bfloat16"),
        "optimizer.type": ("AdamW", "the optimizer"),
        "optimizer.params.lr": (learner.learning_rate, "learner.learning_rate"),
        "optimizer.params.betas": (list(learner.betas), "learner.betas"),
        "optimizer.params.weight_decay": (learner.weight_decay, "learner.weight_decay"),
    }
    for key, (expected, ours) in decided.items():
        found = _at(given, key)
        if found not in (None, _AUTO, expected):
            raise _contradiction(config, f"{key} = {found}", f"{ours} = {expected}")


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _contradiction(config: RunConfig, theirs: str, ours: str) -> ConfigError:
    return ConfigError(f'learner.deepspeed = {config.learner.deepspeed!r}: {theirs}, but {ours}; write "auto" there')


def _decided(config: RunConfig, dtype: str) -> dict[str, Any]:
    stage = config.learner.zero_stage
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # step() is the boundary: steps differ in their number of packs
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with an offloaded optimizer torch's AdamW steps on the CPU
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": None,
    }
    if stage == 3:
        settings["zero_optimization"]["sub_group_size"] = _ONE_SUBGROUP
    if dtype == "bfloat16" and stage:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
