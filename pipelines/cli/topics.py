"""``asyncflow topics``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.cli.options import ProcessOptions, base_config, parse
from schemas.config import RunConfig

_DESCRIPTION = """Creates the topics of a run that are missing, and prints their names.

Topics that exist are compared with what they should be: partitions, message sizes, retention. With --acls create the
roles of the run are given what they need at the broker, and nothing else; json and commands print that, and no broker
is asked. Examples:

  asyncflow topics --name prod --kafka.bootstrap kafka-1:9092,kafka-2:9092 --kafka.partitions 12 --kafka.replication 3
  asyncflow topics --config prod.toml --acls create
  asyncflow topics --config prod.toml --acls json
"""


@dataclass(frozen=True)
class TopicsOptions(ProcessOptions):
    """Arguments of the verb."""

    acls: Literal["create", "json", "commands"] | None = None
    """What each role of the run may do: create it at the broker, after the topics and as one who may; print it as JSON,
    in the form of Strimzi's KafkaUser; or print commands of Kafka's own kafka-acls.sh."""
    json: bool = False
    """Print a JSON object: the topics that were created, and those that existed as they should be."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(TopicsOptions, "topics", arguments, _DESCRIPTION, TopicsOptions(run=base_config(arguments)))
    if options.acls in ("json", "commands"):
        from pipelines.acls import as_commands, as_json

        sys.stdout.write((as_json if options.acls == "json" else as_commands)(options.run) + "\n")
        return 0
    done = _create(options.run, acls=options.acls == "create")
    sys.stdout.write(json.dumps(done) + "\n" if options.json else "".join(f"{line}\n" for line in _lines(done)))
    return 0


def _create(config: RunConfig, *, acls: bool) -> dict[str, list[str]]:
    """What was made and what was there, in words."""
    from pipelines.acls import create_acls
    from pipelines.local.topics import create_topics

    created = create_topics(config)
    names = [spec.name for spec in config.topics.specs(config.kafka.partitions)]
    done = {"created": created, "existed": [name for name in names if name not in created]}
    if acls:
        rights = create_acls(config)
        done["acls_created"] = [str(rule) for rule in rights.created]
        done["acls_existed"] = [str(rule) for rule in rights.existed]
        done["acls_of_others"] = rights.others
    return done


def _lines(done: dict[str, list[str]]) -> list[str]:
    others = [f"not of a role: {each}" for each in done.get("acls_of_others", ())]
    return [*done["created"], *done.get("acls_created", ()), *others]
