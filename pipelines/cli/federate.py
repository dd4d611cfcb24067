"""``asyncflow federate``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import structlog
import tyro

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import parse, peek
from schemas.config import section_of
from schemas.errors import ConfigError
from schemas.federating import FederationConfig
from schemas.layers import read_layers

_DESCRIPTION = """Coordinates the learners of many sites: asks for updates, merges them, publishes global versions.

It reads a TOML file of its own (docs/reference/coordinator.md), creates the federation's topics where they are missing,
and ends when all rounds are done, or on SIGTERM or Ctrl-C. Killed at any instant, it goes on when it is started again.
Examples:

  asyncflow federate --config hospitals.toml
  asyncflow federate --config hospitals.toml --strategy.name fedadam --rounds 50
  asyncflow federate --config hospitals.toml --acls create
  asyncflow federate --config hospitals.toml --audit
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class FederateOptions:
    """Arguments of the verb."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the coordinator's configuration; flags override it. Required."""
    audit: bool = False
    """Check from the topics alone that no update was lost or merged twice, print one JSON verdict, and end: with code 1
    if a promise does not hold."""
    acls: Literal["create", "json", "commands"] | None = None
    """What coordinator, sites and followers may do at the federation's broker: create it there, after the topics; print
    it as JSON, in the form of Strimzi's KafkaUser; or print commands of Kafka's own kafka-acls.sh. Then end."""
    dry_run: bool = False
    """Say what would be started where, what it needs and what is wrong (exit code 2), and start and write nothing."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""
    federation: Annotated[FederationConfig, tyro.conf.arg(name="")] = field(default_factory=FederationConfig)


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    default = FederateOptions(federation=_of_file(arguments))
    options = parse(FederateOptions, "federate", arguments, _DESCRIPTION, default, root=FederationConfig)
    if options.config is None:
        raise ConfigError("--config FILE is missing: give the coordinator's TOML file, as docs/federation.md shows")
    if options.acls:
        return _acls(options.federation, options.acls)
    if options.audit:
        return _audit(options.federation)
    _load_strategies(options.federation)
    if options.dry_run:
        from pipelines.federation.rehearse import rehearse

        return rehearse(options.federation)
    return _run(options.federation)


def _of_file(arguments: Sequence[str]) -> FederationConfig:
    file = peek(arguments, "--config")
    return section_of(FederationConfig, read_layers(Path(file)), file) if file else FederationConfig()


def _load_strategies(config: FederationConfig) -> None:
    from trainers.federation.coordinator import strategy_of
    from transforms.modules import load_module

    for module in config.strategy.modules:
        load_module(module, "strategy.modules")
    strategy_of(config)


def _run(config: FederationConfig) -> int:
    from pipelines.local.topics import create_topics
    from trainers.federation.coordinator import run

    try:
        with sigterm_is_ctrl_c():
            create_topics(config)
            return run(config)
    except KeyboardInterrupt:
        _log.info("ended", federation=config.name)
    return 0


def _acls(config: FederationConfig, how: str) -> int:
    from pipelines.acls import as_commands, as_json, create_acls
    from pipelines.local.topics import create_topics

    if not config.sites:
        _log.warning(
            "no site has any rights here: sites is empty; name them, or give rights to their principals yourself"
        )
    if how != "create":
        sys.stdout.write((as_json if how == "json" else as_commands)(config) + "\n")
        return 0
    lines = create_topics(config)
    rights = create_acls(config)
    lines += [str(rule) for rule in rights.created] + [f"not of a role: {each}" for each in rights.others]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _audit(config: FederationConfig) -> int:
    from pipelines.federation.audit import audit

    verdict = audit(config)
    sys.stdout.write(json.dumps(verdict.tell(), indent=1) + "\n")
    return 0 if verdict.holds else 1
