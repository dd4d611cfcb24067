"""``asyncflow graph``: what a pipeline is made of, what it asks of a runner, and which runners can do that.

build ──► portable proto ──► Graph ──┬──► verdict of each runner ──► text or JSON
                                     └──► Mermaid, dot
"""
