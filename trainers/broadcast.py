"""The learner's end of the transport ``nccl``: a thread that sends the newest snapshot to whoever asks.

    Snapshot ──offer──► SOURCE.json (address)      main thread
             ──round──► engines that asked          this module's thread, while the learner trains

Engines that come later get a round of their own; those that left are not waited for. A round that fails
is told to the main thread, which publishes the same weights through the store: see trainers/learn.py.
"""

import socket
import threading
import time
from datetime import timedelta
from typing import Any, Final

import structlog
from pydantic import ValidationError

from schemas.broadcasts import TICKETS, Ask, Group, Round, ask_key, round_key, within
from schemas.config import WeightsConfig
from schemas.errors import PortError
from schemas.snapshots import Broadcast
from trainers.snapshots import Snapshot

_log = structlog.get_logger(__name__)

_LOOK_S: Final = 0.005
_GATHER_S: Final = 0.25
"""How long a round waits for engines that took the last version, or for the first ones, from its first ticket on."""
_ASK_S: Final = 1.0
"""How long after its ticket an engine may take to say what it wants."""
_FAILURES = (RuntimeError, TimeoutError, OSError)
"""What PyTorch's stores and groups raise."""


class Broadcaster:
    """Serves the rendezvous from the first offer on."""

    def __init__(self, config: WeightsConfig) -> None:
        self._host, self._port, self._timeout_s = config.host, config.port, config.timeout_s
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._store: Any = None
        self._stream: Any = None
        self._current: Snapshot | None = None
        self._offered: set[int] = set()
        self._sent: set[int] = set()
        self._expected: set[str] = set()
        """Engines that took the version before."""
        self._took: set[str] = set()
        """Engines that took this one."""
        self._faults: dict[int, str] = {}
        self._members: tuple[str, ...] = ()
        self._group: Group | None = None
        self._groups = 0

    def offer(self, snapshot: Snapshot) -> Broadcast:
        """From now on engines get this snapshot; returns where they ask for it.

        Raises:
            PortError: ``weights.host`` is not this machine's, or something else has ``weights.port``.
        """
        if self._thread is None:
            self._store = self._listen()
            self._thread = threading.Thread(target=self._serve, name="broadcaster", daemon=True)
            self._thread.start()
        self._offered.add(snapshot.version)
        with self._turn:
            self._expected, self._took = self._took or self._expected, set()
            self._current = snapshot
        return Broadcast(version=snapshot.version, host=self._host, port=self._port, timeout_s=self._timeout_s)

    def _listen(self) -> Any:
        from torch._C._distributed_c10d import TCPStore

        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise PortError(
                f"weights.host {self._host!r}, weights.port {self._port}: {error.strerror}; "
                "set them to an address of the learner's host and a free port"
            ) from error
        listener.listen()
        self._port = listener.getsockname()[1]
        patience = timedelta(seconds=self._timeout_s)
        descriptor = listener.detach()  # the store's from here on
        return TCPStore(
            self._host, self._port, is_master=True, timeout=patience, wait_for_workers=False,
            master_listen_fd=descriptor,
        )  # fmt: skip

    def fault(self, version: int, *, even_unasked: bool) -> str | None:
        """Why engines did not get a version that was offered."""
        if version in self._faults:
            return self._faults[version]
        if even_unasked and version in self._offered - self._sent:
            return f"no engine has asked for version {version} at {self._host}:{self._port}"
        return None

    def close(self) -> None:
        """Ends the thread; engines that wait for a round time out."""
        self._stop.set()
        if self._thread:
            self._thread.join(self._timeout_s)
        self._leave()

    # ----------------------------------------------------------------- thread

    def _serve(self) -> None:
        answered = 0
        while not self._stop.wait(_LOOK_S):
            if self._store.add(TICKETS, 0) > answered:
                asked = self._gather(answered)
                self._answer(range(answered + 1, asked + 1))
                answered = asked

    def _gather(self, answered: int) -> int:
        """The number of tickets, when all that are expected have one or the moment is over."""
        deadline = time.monotonic() + _GATHER_S
        while not self._are_enough(asked := int(self._store.add(TICKETS, 0)) - answered):
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        return answered + asked

    def _are_enough(self, tickets: int) -> bool:
        with self._turn:
            nobody_known = not self._expected and not self._took
            return not nobody_known and tickets >= len(self._expected - self._took)

    def _answer(self, tickets: range) -> None:
        snapshot = self._current
        assert snapshot is not None
        with snapshot.in_use:
            version = snapshot.version
            asks = {ticket: ask for ticket in tickets if (ask := self._read(ticket))}
            members = self._admit(asks, snapshot)
            if not members:
                return
            try:
                within(self._timeout_s, lambda: self._send(members, snapshot))
            except _FAILURES as error:
                self._faults[version] = f"version {version} could not be sent to {len(members)} engines: {error}"[:500]
                _log.error("broadcast failed", version=version, engines=len(members), error=str(error)[:300])
                self._leave()
            else:
                self._sent.add(version)
                with self._turn:
                    self._took |= set(members)

    def _read(self, ticket: int) -> Ask | None:
        key = ask_key(ticket)
        try:
            self._store.wait([key], timedelta(seconds=_ASK_S))
            return Ask.model_validate_json(self._store.get(key))
        except (*_FAILURES, ValidationError) as error:
            _log.warning("ticket of a broadcast ignored", ticket=ticket, error=str(error)[:200])
            return None
        finally:
            self._store.delete_key(key)

    def _admit(self, asks: dict[int, Ask], snapshot: Snapshot) -> dict[str, int]:
        """The last ticket of each member that is in; the others are refused."""
        members = {}
        for ticket, ask in asks.items():
            if (ask.version, ask.size) == (snapshot.version, snapshot.layout.size):
                members[ask.member] = ticket
            else:
                refusal = f"version {ask.version} of {ask.size} bytes is gone, here is {snapshot.version}"
                self._store.set(round_key(ticket), Round(refusal=refusal).model_dump_json())
        return members

    def _send(self, members: dict[str, int], snapshot: Snapshot) -> None:
        group = self._form(members, snapshot)
        for rank, member in enumerate(self._members, 1):
            place = group.model_copy(update={"rank": rank})
            self._store.set(round_key(members[member]), place.model_dump_json())
        if self._group is None:
            device = snapshot.buffer.device
            self._group = Group(self._store, group, device, self._host, self._timeout_s)
        with self._beside(snapshot.buffer.device):
            self._group.broadcast(snapshot.buffer, self._timeout_s)

    def _form(self, members: dict[str, int], snapshot: Snapshot) -> Round:
        """The learner's place in the group, which is the last one if its members are the same."""
        names = tuple(sorted(members))
        if self._group is not None and names == self._members:
            return self._group.place
        self._leave()
        self._members, self._groups = names, self._groups + 1
        _log.info("broadcast group", engines=len(names), number=self._groups, version=snapshot.version)
        return Round(group=f"group/{self._groups}", rank=0, size=len(names) + 1)

    def _beside(self, device: Any) -> Any:
        """A CUDA stream of its own, so that a broadcast does not wait for what the learner computes."""
        import torch

        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._stream)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._group, self._members = None, ()
