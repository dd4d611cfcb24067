"""Settings over a benchmark's configuration: ``--set worker.gpu_memory_utilization=0.1``, values as JSON."""

import json


def add_option(parser):
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=JSON", help="over the configuration")


def put(tree, settings):
    """The tree of a configuration, changed by what was given as ``--set``."""
    for setting in settings:
        key, _, value = setting.partition("=")
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = json.loads(value)
    return tree
