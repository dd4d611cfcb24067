"""``asyncflow drill``: real faults on real processes, and an independent account of what came of them.

run ─► scene (stack, feed, rogue worker, small disks) ─► schedule ─► faults ─► report
                 └──► watch: audits while it happens ──────────────────┘
"""
