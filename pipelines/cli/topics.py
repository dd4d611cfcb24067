"""``asyncflow topics``."""

import sys
from collections.abc import Sequence

from pipelines.cli.options import parse_process

_DESCRIPTION = """Creates the topics of a run that are missing, and prints their names.

Topics that exist are compared with what they should be: partitions, message sizes, retention. Example:

  asyncflow topics --name prod --kafka.bootstrap kafka-1:9092,kafka-2:9092 --kafka.partitions 12 --kafka.replication 3
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    config = parse_process("topics", arguments, _DESCRIPTION)
    from pipelines.local.topics import create_topics

    for name in create_topics(config):
        sys.stdout.write(f"{name}\n")
    return 0
