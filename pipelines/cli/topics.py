"""``asyncflow topics``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cli.options import ProcessOptions, base_config, parse

_DESCRIPTION = """Creates the topics of a run that are missing, and prints their names.

Topics that exist are compared with what they should be: partitions, message sizes, retention. Example:

  asyncflow topics --name prod --kafka.bootstrap kafka-1:9092,kafka-2:9092 --kafka.partitions 12 --kafka.replication 3
"""


@dataclass(frozen=True)
class TopicsOptions(ProcessOptions):
    """Arguments of the verb."""

    json: bool = False
    """Print a JSON object: the topics that were created, and those that existed as they should be."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(TopicsOptions, "topics", arguments, _DESCRIPTION, TopicsOptions(run=base_config(arguments)))
    from pipelines.local.topics import create_topics

    config = options.run
    created = create_topics(config)
    if options.json:
        names = [spec.name for spec in config.topics.specs(config.kafka.partitions)]
        existed = [name for name in names if name not in created]
        sys.stdout.write(json.dumps({"created": created, "existed": existed}) + "\n")
    else:
        sys.stdout.write("".join(f"{name}\n" for name in created))
    return 0
