"""``asyncflow federate --dry-run``: what a coordinator would do, what it needs, and what is wrong."""

import shutil
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Final

from pipelines.dry_run.show import tell
from pipelines.local.ports import is_free, is_ours
from pipelines.local.topics import inspect_topics
from pipelines.sizes import gib
from schemas.checks import Check
from schemas.errors import AsyncFlowError
from schemas.federating import FederationConfig
from trainers.federation.coordinator import strategy_of

_ROW_BYTES: Final = 4


def rehearse(config: FederationConfig) -> int:
    """Prints it.

    Returns:
        0 if nothing is wrong, else 2.
    """
    numbers = _numbers(config)
    return tell("federate", {
        "what would start": [*_of_rounds(config), *_of_sites(config)],
        "what it starts from": [_model(config, numbers), _spool(config, numbers)],
        "what it reaches": [_store(config), *_topics(config)],
        "what it serves": [_endpoint(config)],
    })  # fmt: skip


def _of_rounds(config: FederationConfig) -> Iterator[Check]:
    chosen = config.strategy
    told = f"strategy {chosen.name} {chosen.arguments or ''}".rstrip()
    if config.asynchronous:
        yield Check("merges", f"{told}: one for every buffer {config.buffer} updates, as they come", "ok", "")
    else:
        asked = f"{config.selection.by}, share {config.selection.share:g}, steps {config.selection.steps}"
        rounds = f"selection {asked}; deadline_s {config.deadline_s:g}, quorum {config.quorum}"
        yield Check("rounds", f"{told}; {rounds}", "ok", "")
    private = config.privacy
    if private.noise_multiplier:
        told = f"noise {private.noise_multiplier:g} × clip_norm {private.clip_norm:g}, delta {private.delta:g}"
        yield Check("privacy", told, "ok", "")


def _of_sites(config: FederationConfig) -> Iterator[Check]:
    if not config.sites:
        told = "sites is empty: whoever can write to the updates topic takes part, and nothing is signed"
        yield Check("sites", told, "warning", "name the sites and their keys, or trust all who reach the broker")
    for name in sorted(config.sites):
        try:
            signs = "signs its updates" if config.key_of(name) else "does not sign"
        except AsyncFlowError as error:
            yield Check(f"site {name}", str(error), "problem", "set it where the coordinator starts")
        else:
            yield Check(f"site {name}", signs, "ok", "")


def _numbers(config: FederationConfig) -> int:
    """Of the model or the adapter; 0 if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    found = 0
    for path in sorted(Path(config.model).glob("*.safetensors")) if config.model else []:
        try:
            with safe_open(path, framework="np") as tensors:
                names: Any = tensors.keys()
                for name in names:
                    found += prod(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError):
            return 0
    return found


def _model(config: FederationConfig, numbers: int) -> Check:
    if numbers:
        return Check("model", f"{config.model}: {numbers:,} numbers", "ok", "")
    told = f"{config.model or 'none'}: no safetensors that can be read"
    return Check("model", told, "warning", "a federation that has no version yet needs a model to begin with")


def _spool(config: FederationConfig, numbers: int) -> Check:
    where = Path(config.spool or tempfile.gettempdir())
    rows = _rows(config)
    needed = sum(rows.values()) * numbers * _ROW_BYTES
    there = next(each for each in (where, *where.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    what = " + ".join(f"{count} {name}" for name, count in rows.items() if count)
    told = f"{where}: ({what}) × {numbers:,} numbers × {_ROW_BYTES} = {gib(needed)}, of {gib(free)} free"
    if needed > free:
        return Check("spool", told, "problem", "give another directory: spool")
    if not config.asynchronous and not config.sites:
        return Check("spool", told, "warning", "sites is empty: there may be more updates in a round than its quorum")
    return Check("spool", told, "ok", "")


def _rows(config: FederationConfig) -> dict[str, int]:
    """What lies in the spool at once, at most; of a round without named sites at least."""
    round_of = config.selection.most(len(config.sites)) if config.sites else config.quorum
    mixes = config.asynchronous and strategy_of(config).mixes
    return {
        "updates": config.buffer if config.asynchronous else round_of,
        "versions they start from": config.max_staleness + 1 if mixes else 0,
        "of noise": 1 if config.privacy.noise_multiplier else 0,
    }


def _endpoint(config: FederationConfig) -> Check:
    port, host = config.metrics_port, config.metrics_host
    if not port:
        return Check("metrics", "metrics_port 0: no figures for Prometheus", "ok", "")
    if is_free(port) and is_ours(host):
        return Check("metrics", f"http://{host}:{port}/metrics", "ok", "")
    return Check("metrics", f"{host}:{port} is taken, or not this machine's", "problem", "give another metrics_port")


def _store(config: FederationConfig) -> Check:
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(config.store)
        there = files.exists(root)
    except Exception as error:  # noqa: BLE001 - whatever somebody's file system raises
        return Check("store", f"{config.store}: {error}", "problem", "give a path or an fsspec URL that can be reached")
    return Check("store", f"{config.store}: {'is there' if there else 'would be made'}", "ok", "")


def _topics(config: FederationConfig) -> Iterator[Check]:
    try:
        found = inspect_topics(config)
    except AsyncFlowError as error:
        yield Check("Kafka", str(error), "problem", "start it, or correct kafka.bootstrap")
        return
    for spec in config.topics.specs():
        faults = found.get(spec.name)
        if faults:
            yield Check("topic", "; ".join(faults), "problem", "correct it, delete it, or give another name")
        else:
            yield Check("topic", f"{spec.name}: {'would be created' if faults is None else 'is there'}", "ok", "")
