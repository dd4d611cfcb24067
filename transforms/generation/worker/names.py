"""Names that two processes of a worker have to agree on. Imports nothing, so that both may import it."""

from typing import Final

BACKEND: Final = "asyncflow"
"""Of the weight transfer, in vLLM's registry."""
EXTENSION: Final = "transforms.generation.worker.transfer.WorkerExtension"
"""Mixed into vLLM's worker class; importing it registers the backend."""
EXECUTOR: Final = "transforms.generation.worker.executor.PatientExecutor"
"""Starts vLLM's worker processes on a CPU."""
