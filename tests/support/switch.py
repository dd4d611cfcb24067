"""Hosts of network namespaces, and the switch between them, in one process of its own.

    python -m tests.support.switch SEED NAME...

Each host is a namespace without a name, held open here, with one TUN device: what a host sends comes out of its
device's file as an IP packet, and is written to the file of the host whose address it bears, after the delay of the
link between the two, or never, if the link is cut or loses it. A link is one way; the first host, ``outside``, is the
namespace in which this process was started. Large packets keep Python out of the way.

Standard input takes one JSON object a line and standard output answers each with one; when the input ends, so does
this process, and with it the devices, and the namespaces once nobody is in them. So nothing can be left behind.
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

OUTSIDE = "outside"
_TUN, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI = "/dev/net/tun", 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NAMESPACE = "/proc/self/ns/net"
_NETS = [f"198.{18 + high}.{low}" for high in (0, 1) for low in range(256)]
"""Of the addresses that RFC 2544 sets aside for tests of networks."""
MTU = 32_000
_PACKET = 1 << 16
_QUEUE_S = 1.0
"""What would wait longer than this for a slow link to be free is lost, as in a router whose queue is full."""
_AT_ONCE = 64
"""Packets that are taken from one host before the next one's turn."""


@dataclass
class Link:
    """One way from a host to another.

    Attributes:
        target: the file of the other host's device.
        is_cut: nothing passes.
        loss: share of the packets that is lost.
        delay_s: how long each is on its way.
        rate: bytes a second; 0 for as many as there are.
        free_at: when the last one that was sent will have left.
        passed, lost: packets so far.
    """

    target: int
    is_cut: bool = False
    loss: float = 0.0
    delay_s: float = 0.0
    rate: float = 0.0
    free_at: float = 0.0
    passed: int = 0
    lost: int = 0


class Switch:
    """See the module."""

    def __init__(self, seed, names):
        self._random = random.Random(seed)
        self._waiting = []
        self._count = 0
        self.net, self._files, self.namespaces = _Builder().build([OUTSIDE, *names])
        self.addresses = {name: f"{self.net}.{number}" for number, name in enumerate(self._files, 1)}
        self._links = {
            (one, other): Link(self._files[other]) for one in self._files for other in self._files if one != other
        }
        self._routes = {  # the file that a packet comes from, then the last byte of the address that it goes to
            file: {number: self._links[name, other] for number, other in enumerate(self._files, 1) if other != name}
            for name, file in self._files.items()
        }

    def run(self):
        """Forwards until standard input ends."""
        selector = selectors.DefaultSelector()
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        for file in self._routes:
            selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(self._until_next()):
                if key.fd == sys.stdin.fileno():
                    if not self._obey(sys.stdin.buffer.readline()):
                        return
                else:
                    self._take(key.fd)
            self._deliver()

    def _until_next(self):
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    # ---- packets --------------------------------------------------------------------------------------

    def _take(self, file):
        routes = self._routes[file]
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(file, _PACKET)
            except BlockingIOError:
                return
            if packet[0] >> 4 == 4 and (link := routes.get(packet[19])):  # IPv4; the last byte of its destination
                self._send(link, packet)

    def _send(self, link, packet):
        if link.is_cut or (link.loss and self._random.random() < link.loss):
            link.lost += 1
        elif not link.rate and not link.delay_s:
            self._write(link, packet)
        else:
            self._queue(link, packet)

    def _queue(self, link, packet):
        now = time.monotonic()
        leaves_at = max(now, link.free_at) + (len(packet) / link.rate if link.rate else 0.0)
        if leaves_at - now > _QUEUE_S:
            link.lost += 1
            return
        link.free_at = leaves_at
        self._count += 1  # packets of the same moment keep their order
        heapq.heappush(self._waiting, (leaves_at + link.delay_s, self._count, link, packet))

    def _deliver(self):
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            *_, link, packet = heapq.heappop(self._waiting)
            if link.is_cut:
                link.lost += 1
            else:
                self._write(link, packet)

    def _write(self, link, packet):
        try:
            os.write(link.target, packet)
            link.passed += 1
        except OSError:  # its queue is full
            link.lost += 1

    # ---- orders ---------------------------------------------------------------------------------------

    def _obey(self, line):
        """One order; False when there are no more."""
        if not line:
            return False
        order = json.loads(line)
        links = [self._links[one, other] for one, other in order["links"]]
        for link in links:
            for name, value in order.get("set", {}).items():
                setattr(link, name, value)
            if not link.rate:
                link.free_at = 0.0
        self.tell({"passed": sum(link.passed for link in links), "lost": sum(link.lost for link in links)})
        return True

    def tell(self, answer):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class _Builder:
    """Makes namespaces and devices."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = os.open(_NAMESPACE, os.O_RDONLY)

    def build(self, names):
        """The network that was free, the file of each host's device, and the file that holds each namespace."""
        device = f"hosts{os.getpid()}"
        files, namespaces = {OUTSIDE: _open_device(device)}, {OUTSIDE: self._home}
        net = self._claim(device)
        for number, name in enumerate(names, 1):
            if name == OUTSIDE:
                continue
            self._check(self._libc.unshare(_CLONE_NEWNET), "unshare")
            files[name], namespaces[name] = _open_device("wire"), os.open(_NAMESPACE, os.O_RDONLY)
            _ip("link set lo up", *_up("wire", f"{net}.{number}"), f"route add {net}.0/24 dev wire")
        self._check(self._libc.setns(self._home, _CLONE_NEWNET), "setns")
        return net, files, namespaces

    def _claim(self, device):
        """A network that nobody else on this machine routes: whoever adds the route first has it."""
        for net in random.SystemRandom().sample(_NETS, len(_NETS)):
            _ip(*_up(device, f"{net}.1"))
            command = ["ip", "route", "add", f"{net}.0/24", "dev", device]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return net
            _ip(f"addr flush dev {device}")
        raise OSError(f"all of {_NETS[0]}.0/24 to {_NETS[-1]}.0/24 are routed; give one of them up")

    def _check(self, code, what):
        if code:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _open_device(name):
    """The file of a new TUN device of the namespace that this process is in; the device goes with it."""
    file = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return file


def _up(device, address):
    return f"addr add {address}/32 dev {device}", f"link set {device} mtu {MTU} txqueuelen 10000 up"


def _ip(*commands):
    text = "".join(f"{command}\n" for command in commands)
    done = subprocess.run(["ip", "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip: {done.stderr.strip()}")


def main(seed, *names):
    try:
        switch = Switch(int(seed), names)
    except OSError as error:
        sys.exit(f"no hosts can be made here: {error}")
    switch.tell({"addresses": switch.addresses, "namespaces": switch.namespaces})
    switch.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
