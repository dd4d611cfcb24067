"""Seeds of requests, which vLLM's engine on a CPU does not survive.

vLLM 0.32 winds a request's generator back when a step computed a part of its prompt only (``set_offset`` in
``gpu_model_runner.py``), and PyTorch's generators on CPUs cannot be wound back: the engine process ends, and with it
every request. So there a request is answered without its seed, as if it had asked for none.
"""

from typing import Any

import structlog

_LOG = structlog.get_logger(__name__)


def ignore_seeds(client: Any) -> None:
    """Lets a ``vllm.engine.protocol.EngineClient`` add requests without their seeds."""
    from vllm.sampling_params import SamplingParams

    add_request = client.add_request
    told = False

    async def add(*arguments: Any, **options: Any) -> Any:
        nonlocal told
        for given in (*arguments, *options.values()):
            if isinstance(given, SamplingParams) and given.seed is not None:
                given.seed = None
                if not told:
                    _LOG.warning("seeds_ignored", reason="vLLM's engine on a CPU does not survive them")
                told = True
        return await add_request(*arguments, **options)

    client.add_request = add
