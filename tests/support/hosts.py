"""Hosts on one machine: each with an address of its own, and links between them that can be hurt.

    with Hosts(["kafka-1", "learner"], seed=1) as hosts:
        hosts.address("kafka-1")                        198.18.7.2
        hosts.command("learner", ["asyncflow", ...])    what starts a program there, for a supervisor
        hosts.run("learner", ["asyncflow", ...])        the same, started; it ends with the hosts
        hosts.cut("kafka-1")                            from everybody
        hosts.cut("kafka-1", "learner")                 only these two
        hosts.slow("learner", delay_s=0.1, rate=1e6)    bytes a second
        hosts.lossy("learner", share=0.02)
        hosts.heal()                                    everything

A host is a network namespace, see :mod:`tests.support.switch`; files, processes and time are the machine's. The
process that makes them is a host too, ``outside``: it reaches all of them and is reached, until it is cut off.
Needs root (or CAP_NET_ADMIN and CAP_SYS_ADMIN), ``ip``, ``nsenter`` and /dev/net/tun, on Linux.
"""

import itertools
import json
import os
import selectors
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.local.supervisor import tied_to_us
from tests.support.switch import OUTSIDE

_ROOT = Path(__file__).parents[2]
_START_S = 30.0
_HEALED = {"is_cut": False, "loss": 0.0, "delay_s": 0.0, "rate": 0.0}


class NoHostsError(Exception):
    """No hosts can be made on this machine; the message says why."""


class Hosts:
    """Namespaces, from enter to exit.

    Args:
        names: of the hosts.
        seed: of the packets that lossy links lose.
    """

    def __init__(self, names, seed=0):
        self.names = list(names)
        self._seed = seed
        self._processes = []
        self._switch = None

    def __enter__(self):
        """Makes them.

        Raises:
            NoHostsError: that is not possible or not allowed here.
        """
        _require_tools()
        command = [sys.executable, "-m", "tests.support.switch", str(self._seed), *self.names]
        self._switch = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            made = self._answer(_START_S)
        except BaseException:
            self.stop()
            raise
        self._addresses, self._namespaces = made["addresses"], made["namespaces"]
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends what :meth:`run` started, then the hosts."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        self._processes.clear()
        if self._switch:
            self._switch.stdin.close()
            self._switch.wait()
            self._switch.stdout.close()
            self._switch.stderr.close()
            self._switch = None

    # ---- what is on them ------------------------------------------------------------------------------

    def address(self, name):
        """Its IPv4 address."""
        return self._addresses[name]

    def command(self, name, command):
        """What starts a command on a host; the process is the command itself, not a parent of it."""
        namespace = f"/proc/{self._switch.pid}/fd/{self._namespaces[name]}"
        return ["nsenter", f"--net={namespace}", "--", *map(str, command)]

    def on(self, name, spec):
        """A process for a supervisor, on a host."""
        return replace(spec, command=self.command(name, spec.command))

    def run(self, name, command, **options):
        """Starts a command on a host, as ``Popen`` would; it ends with the hosts, and with this process."""
        process = subprocess.Popen(tied_to_us(self.command(name, command)), start_new_session=True, **options)
        self._processes.append(process)
        return process

    # ---- the links ------------------------------------------------------------------------------------

    def cut(self, one, other=None):
        """Nothing passes between two hosts, or between one and all others."""
        self._set(one, other, is_cut=True)

    def slow(self, one, other=None, *, delay_s=0.0, rate=0.0):
        """Packets take ``delay_s`` each way, and at most ``rate`` bytes a second pass each way; 0 for no limit."""
        self._set(one, other, delay_s=delay_s, rate=rate)

    def lossy(self, one, other=None, *, share):
        """A share of the packets is lost, each way."""
        self._set(one, other, loss=share)

    def heal(self, one=None, other=None):
        """Links are as in the beginning: of one host, between two, or all."""
        self._set(one, other, **_HEALED)

    def counts(self, one=None, other=None):
        """How many packets passed and were lost so far, both ways: ``{"passed": 10, "lost": 0}``."""
        return self._set(one, other)

    def _set(self, one, other, **values):
        every = [OUTSIDE, *self.names]
        if unknown := {one, other} - {None, *every}:
            raise ValueError(f"no host {', '.join(map(str, unknown))}; there are {', '.join(every)}")
        pairs = itertools.permutations(every, 2)
        links = [pair for pair in pairs if (one is None or one in pair) and (other is None or other in pair)]
        self._switch.stdin.write(json.dumps({"links": links, "set": values}) + "\n")
        self._switch.stdin.flush()
        return self._answer()

    def _answer(self, timeout_s=_START_S):
        with selectors.DefaultSelector() as selector:
            selector.register(self._switch.stdout, selectors.EVENT_READ)
            line = self._switch.stdout.readline() if selector.select(timeout_s) else ""
        if not line:
            self._switch.kill()
            raise NoHostsError(self._switch.stderr.read().strip()[-1000:] or f"no answer in {timeout_s:g} s")
        return json.loads(line)


def _require_tools():
    if not sys.platform.startswith("linux"):
        raise NoHostsError(f"no hosts can be made here: namespaces are Linux's, and this is {sys.platform}")
    if missing := [tool for tool in ("ip", "nsenter") if not shutil.which(tool)]:
        raise NoHostsError(f"no hosts can be made here: {', '.join(missing)} not found; install iproute2, util-linux")


@pytest.fixture
def make_hosts():
    """Makes hosts of these names; skips the test, with the reason, where that is not possible."""
    made = []

    def make(*names, seed=0):
        hosts = Hosts(names, seed)
        try:
            hosts.__enter__()
        except NoHostsError as error:
            pytest.skip(str(error))
        made.append(hosts)
        return hosts

    yield make
    for hosts in made:
        hosts.stop()
