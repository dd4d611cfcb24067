"""Held-out prompts, asked of the weights while they are trained: see docs/evaluation.md.

weights topic ──► follow ──► ask ──► workers, reward processes ──► figures ──► evals topic
                    └── best: which version leads, held in the weight store

benchmarks: GLUE and SuperGLUE in their own metrics, from prompts and answers.
"""
