"""``--dry-run``: what a verb would start, what that needs, and what is wrong, without starting or writing anything.

RunConfig ──► facts (probes: model, machine, broker, ports) ──► plan (pure) ──► Sections of Checks ──► printed, 0 or 2
"""
