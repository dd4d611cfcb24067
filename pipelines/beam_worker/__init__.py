"""Workers for runners that stand elsewhere: Beam's EXTERNAL environment, from nothing but this package.

    runner ──StartWorker──► pool (one process) ──starts──► worker (a process for each pipeline) ──► runner
                                                             └── pools of requests, reward processes

Beam's own pool (``worker_pool_main``) listens on every address of its machine, starts whatever ``python`` is on the
PATH, and gives its workers a standard output that nobody reads, so that one which prints 64 KiB stops for ever.
"""
