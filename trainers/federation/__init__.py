"""Federated learning: what a coordinator does with the updates of sites, and how updates are written.

    announced ──► examine ──► spool ──► merge by a strategy ──► versions ──► one transaction
                  └─ codecs, updates      └─ privacy: clipping, noise, the spent budget

``coordinator.py`` is the loop, ``state.py`` what the topics tell it when it starts. Everything here but what writes
versions works on flat float32 arrays: a model is one row of numbers, in the order of its tensors' names.
"""
