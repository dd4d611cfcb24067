"""What travels between the processes: records, their Arrow schema, configuration and errors.

Every topic of a run has one module here, which says who writes it and who reads it:

    prompts.py       producers          -> rollout pipeline
    trajectories.py  rollout pipeline   -> learner, anyone
    weights.py       learner            -> workers, audit
    admission.py     learner            -> rollout pipeline, audit
    ledger.py        learner            -> learner (restart), audit
    feedback.py      people, programs   -> feedback pipeline
    evals.py         evaluation         -> people, export
    dead_letters.py  every stage        -> learner (admission), people

Nothing heavy is imported: pydantic and pyarrow are the largest dependencies, and pyarrow only in
``trajectories``.
"""
