"""``asyncflow doctor``: whether this machine can do what a run needs, a verdict a line and what to do.

Subject ──► CHECKS, a table of small functions ──► [Finding: name, verdict, what was found, remedy] ──► text or JSON,
                                                                             └──► a block for an issue, without names
"""
