"""The one adapter of an engine, which every version replaces while requests go on.

    version's directory ──copied──► a directory of our own ──add_lora, in place──► every vLLM worker
    every request ──► add_request ──► the same adapter, by number

Whoever asks need not know that there is an adapter: all routes lead to ``add_request`` of vLLM's client, and there it
is put in. The requests in flight name it by its number too, so they go on under what lies there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import StateError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

_NAME: Final = "policy"
_NUMBER: Final = 1
"""vLLM counts from 1; 0 is the model without an adapter."""


class AdapterSlot:
    """Where the adapter of a vLLM client is replaced."""

    def __init__(self, client: Any) -> None:
        """Takes a ``vllm.engine.protocol.EngineClient`` that was started with room for one adapter."""
        self._client = client
        self._add_request = client.add_request
        self._kept = tempfile.TemporaryDirectory(prefix="asyncflow-adapter-")
        self._opened: Path | None = None
        self._served: Path | None = None

    @property
    def is_opened(self) -> bool:
        """Whether there is one to be loaded."""
        return self._opened is not None

    def open(self, directory: Path) -> None:
        """Copies a verified adapter: vLLM opens files itself, and the store may remove them before that.

        Raises:
            OSError: it has done so already, or there is no room.
        """
        self.forget()
        target = Path(tempfile.mkdtemp(dir=self._kept.name))
        self._opened = target
        shutil.copytree(directory, target, dirs_exist_ok=True)

    def forget(self) -> None:
        """Removes what was opened and not loaded."""
        if self._opened is not None:
            shutil.rmtree(self._opened, ignore_errors=True)
            self._opened = None

    async def load(self) -> None:
        """Puts what was opened in the place of the adapter that is served; the engine is paused.

        Raises:
            StateError: the engine did not take it.
        """
        if not await self._client.add_lora(_request(self._opened, load_inplace=True)):
            raise StateError("the engine did not take the adapter")
        if self._served is not None:
            shutil.rmtree(self._served, ignore_errors=True)
        self._served, self._opened = self._opened, None
        self._client.add_request = self._add

    async def _add(self, *arguments: Any, **options: Any) -> Any:
        # never in place: vLLM would read the files again for every step of the engine
        adapter = _request(self._served, load_inplace=False)
        return await self._add_request(*arguments, **{**options, "lora_request": adapter})


def _request(directory: Path | None, *, load_inplace: bool) -> LoRARequest:
    from vllm.lora.request import LoRARequest

    return LoRARequest(_NAME, _NUMBER, str(directory), load_inplace=load_inplace)
