"""Generation: prompts in, finished groups out, in completion order.

    generate.py ──► source.py ──► pool.py ──► request.py ──► workers.py ──► engine.py ──► vLLM
    (transform)     (Beam's view) (Kafka,     (checks and    (which one,    (HTTP, answer
                                   in flight)  tokenizer.py)  how often)     to samples)
                                     └─ frontier.py (which prompts may be answered, by which version)

``worker/`` is the other side: the vLLM server with its weight follower.
"""
