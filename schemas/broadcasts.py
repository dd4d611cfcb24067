"""How a learner sends a buffer to engines that come and go: the rendezvous, and the sending itself.

    engine                                        learner: serves a torch TCPStore
    tickets + 1 = t, ask/t = Ask        ──►       gathers tickets for a moment
    round/t = Round                     ◄──       who is in, or a refusal
    Group.broadcast(rank k of n)        ◄════     Group.broadcast(rank 0 of n)

A group stays as long as its members do; with others it is formed anew. Between GPUs it is NCCL's, between
CPUs gloo's. Everything has a deadline: a member that dies costs its round, never a hang. The rendezvous
is not authenticated: like NCCL itself it belongs into a network of trusted hosts.
"""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

TICKETS: Final = "tickets"
_PIECE_BYTES: Final = 256 << 20
_LOOK_S: Final = 0.001
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

Member = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


def ask_key(ticket: int) -> str:
    """Where the engine with a ticket writes its :class:`Ask`."""
    return f"ask/{ticket}"


def round_key(ticket: int) -> str:
    """Where the learner answers it with a :class:`Round`."""
    return f"round/{ticket}"


class Ask(BaseModel):
    """What an engine's process wants. Example: ``{"member": "0f…", "version": 7, "size": 2469606400}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: Member
    """Of the process, for its life."""
    version: int
    size: int
    """Bytes of the buffer."""


class Round(BaseModel):
    """The learner's answer. Example: ``{"group": "group/3", "rank": 1, "size": 3, "refusal": null}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str = ""
    rank: int = 0
    size: int = 0
    """Members, the learner among them."""
    refusal: str | None = None
    """Why the engine is not in; null if it is."""


class Group:
    """Processes that receive what rank 0 sends."""

    def __init__(self, store: Any, place: Round, device: Any, host: str, timeout_s: float) -> None:
        """Joins; with gloo it returns when all members are there, with NCCL the first broadcast does."""
        from torch._C._distributed_c10d import PrefixStore

        self.place, self._device = place, device
        ours = PrefixStore(place.group, store)
        make = self._nccl if device.type == "cuda" else self._gloo
        self._processes = make(ours, host, timeout_s)

    def _gloo(self, store: Any, host: str, timeout_s: float) -> Any:
        from torch.distributed import distributed_c10d

        gloo: Any = distributed_c10d.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        local = host in _LOOPBACK
        options._devices = [gloo.create_device(hostname=host) if local else gloo.create_default_device()]
        return gloo(store, self.place.rank, self.place.size, options)

    def _nccl(self, store: Any, _: str, __: float) -> Any:
        from torch._C._distributed_c10d import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(days=1)  # the deadline is kept here: PyTorch's own ends the process
        before = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # read once, here: a lost member must not end this process
        try:
            return ProcessGroupNCCL(store, self.place.rank, self.place.size, options)
        finally:
            if before is None:
                del os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]
            else:
                os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = before

    def broadcast(self, buffer: Any, timeout_s: float) -> None:
        """Sends rank 0's buffer into those of the others, in pieces.

        Raises:
            TimeoutError: a member did not do its part in time; the group is of no use any more.
            RuntimeError: a member is gone; the same.
        """
        deadline = time.monotonic() + timeout_s
        for piece in buffer.split(_PIECE_BYTES):
            self._broadcast(piece, deadline)

    def _broadcast(self, piece: Any, deadline: float) -> None:
        work = self._processes.broadcast(piece, 0)
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise TimeoutError("a member of the group did not send or receive its part in time")
            time.sleep(_LOOK_S)
        work.wait()

    def abort(self) -> None:
        """Leaves, without waiting for anybody."""
        self._processes.abort()


def within(timeout_s: float, action: Callable[[], None]) -> None:
    """Does something that may block for ever in C++, and gives it up after a time.

    Raises:
        TimeoutError: it still runs, in a thread that is left behind.
        Exception: whatever the action raised.
    """
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            raised.append(error)

    thread = threading.Thread(target=act, name="broadcast", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError(f"the group was not there within {timeout_s:g} s")
    if raised:
        raise raised[0]
