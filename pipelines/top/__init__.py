"""A run as a person watches it: ``asyncflow top``, and the screen of ``asyncflow demo``.

    topics ────► topics.py ──┐
                             ├─► watch.py ─► Snapshot ─┬─► explain.py ─► sentences ─┐
    /metrics ──► endpoints.py┘    (state.py)           └────────────────────────────┴─► draw.py, lines.py, JSON

It reads and never writes: watching changes nothing, and works on a run of another machine.
"""
