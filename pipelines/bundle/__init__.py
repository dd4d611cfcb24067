"""All that a machine without a network needs to run AsyncFlow, in parts of a given size.

    locked requirements ──► wheels for one Python and platform ─┐
    this checkout ────────► its wheel ──────────────────────────┤                      ┌─ install.py
    the cache ────────────► Kafka's jars, Prism ────────────────┼──► staged files ──►  ├─ manifest.json
    --model ──────────────► a model's directory ────────────────┘                      └─ part-000, part-001, …

The Java runtime and the demo's model are wheels among the others. ``install.py`` needs Python and nothing else.
"""
