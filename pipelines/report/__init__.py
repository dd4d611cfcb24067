"""``asyncflow report``: one self-contained page that a person reads during a run, or after it.

    topics ──► gather ──► Gathered ──► facts ──► Facts ──► figures, lineage, embed ──► page ──► report.html
               (samples, flow, prompts: bounded)  (pure: faults, curves)       (compressed)

Everything comes from the topics, so that a run elsewhere can be reported too. Where the run's directory is at hand,
its configuration, tokenizer and logs add to that. The page loads nothing from anywhere.
"""
