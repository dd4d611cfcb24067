"""Handing a pipeline to a runner of Beam: which options it gets, and what would not work.

    Beam's arguments ──► read ──► Submission (runner, what was given) ──┬──► chosen: the options that nobody gave
    configuration ──────────────────────────────────────────────────────┼──► checks: each relation, with its numbers
                                                                        └──► Submission.flags ──► beam.Pipeline

A wrong combination is named with its formula and what to do, before anything is sent.
"""
