"""One model at a time: transformers 5.17 changes its own classes while it loads one, and puts them back afterwards.

Two loads at once, in threads of one process, can leave ``PreTrainedModel.tie_weights`` without effect for good: every
model that is loaded later has a head of its own (``transformers.initialization.no_tie_weights``).
"""

import threading
from typing import Final

LOADING: Final = threading.Lock()
"""Held while a model is loaded, by whatever other threads of its process may do at the same time."""
