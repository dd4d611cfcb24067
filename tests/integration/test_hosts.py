"""Hosts that tests are run on: they reach each other as the links say, and nothing of them stays."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import hosts as module
from tests.support.hosts import Hosts, NoHostsError

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[2]
PORT = 5000
ECHO = f"""
import socket, sys
server = socket.create_server((sys.argv[1], {PORT}))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    while data := client.recv(1 << 20):
        client.sendall(data)
"""
ASK = f"""
import socket, sys
client = socket.create_connection((sys.argv[1], {PORT}), timeout=float(sys.argv[2]))
client.sendall(b"x")
print(client.getsockname()[0], client.recv(1).decode())
"""


@pytest.fixture
def hosts(make_hosts):
    """Two hosts; ``b`` says everything back."""
    made = make_hosts("a", "b")
    serve(made, "b")
    return made


def serve(hosts, name, address=None):
    process = hosts.run(name, [sys.executable, "-c", ECHO, address or hosts.address(name)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def ask(hosts, one, other, timeout_s=30.0):
    """What a program on one host gets from another: the address that it asks from, and the answer; None if nothing."""
    command = hosts.command(one, [sys.executable, "-c", ASK, hosts.address(other), timeout_s])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() or None


def connect(hosts):
    client = socket.create_connection((hosts.address("b"), PORT), timeout=30)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def say(client, text):
    """Sends a text and returns what comes back."""
    client.sendall(text)
    heard = b""
    while len(heard) < len(text):
        heard += client.recv(1 << 20)
    return heard


def test_each_has_its_own_address_and_reaches_the_others(hosts):
    assert ask(hosts, "a", "b") == [hosts.address("a"), "x"]
    with connect(hosts) as client:
        assert client.getsockname()[0] == hosts.address("outside")
    assert len({hosts.address(name) for name in ("outside", "a", "b")}) == 3


def test_the_loopback_of_one_is_not_that_of_another(make_hosts):
    hosts = make_hosts("a", "b")
    serve(hosts, "a", "127.0.0.1")
    answers = [hosts.command(name, [sys.executable, "-c", ASK, "127.0.0.1", 5]) for name in ("a", "b")]
    codes = [subprocess.run(command, capture_output=True, check=False).returncode for command in answers]
    assert codes == [0, 1]


def test_a_cut_host_is_reached_again_when_it_is_healed(hosts):
    with connect(hosts) as client:
        hosts.cut("b")
        client.sendall(b"late")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(4)
        assert ask(hosts, "a", "b", 0.5) is None
        hosts.heal("b")
        client.settimeout(30)
        assert client.recv(4) == b"late"
    assert ask(hosts, "a", "b") is not None


def test_a_cut_link_leaves_the_others(hosts):
    hosts.cut("a", "b")
    assert ask(hosts, "a", "b", 0.5) is None
    with connect(hosts) as client:
        assert say(client, b"still there") == b"still there"


def test_a_slow_link_takes_its_time_each_way(hosts):
    hosts.slow("b", delay_s=0.1)
    with connect(hosts) as client:
        began = time.monotonic()
        assert say(client, b"x") == b"x"
        assert time.monotonic() - began >= 0.2


def test_a_narrow_link_lets_so_many_bytes_pass(hosts):
    text = bytes(2_000_000)
    hosts.slow("b", rate=4e6)
    with connect(hosts) as client:
        began = time.monotonic()
        assert say(client, text) == text
        assert time.monotonic() - began >= 0.4


def test_what_a_lossy_link_loses_is_sent_again(hosts):
    text = os.urandom(3_000_000)
    hosts.lossy("b", share=0.1)
    with connect(hosts) as client:
        assert say(client, text) == text
    counts = hosts.counts("b")
    assert counts["lost"] > 0
    assert counts["passed"] > counts["lost"]


def test_two_sets_do_not_meet(make_hosts):
    one, other = make_hosts("a", "b"), make_hosts("a", "b")
    for hosts in (one, other):
        serve(hosts, "b")
        assert ask(hosts, "a", "b") == [hosts.address("a"), "x"]
    assert one.address("a") != other.address("a")
    one.cut("b")
    assert ask(other, "a", "b") == [other.address("a"), "x"]


def test_an_unknown_host_is_named(hosts):
    with pytest.raises(ValueError, match="no host c; there are outside, a, b"):
        hosts.cut("c")


def test_nothing_is_left(make_hosts):
    hosts = make_hosts("a", "b")
    echo, switch = serve(hosts, "b"), hosts._switch.pid
    assert f"hosts{switch}" in os.listdir("/sys/class/net")
    hosts.stop()
    assert echo.returncode is not None
    assert_gone(switch, echo.pid)


HOLD = """
import subprocess, sys
from tests.support.hosts import Hosts
with Hosts(["a"]) as hosts:
    sleep = hosts.run("a", ["sleep", "1000"])
    print(hosts._switch.pid, sleep.pid, flush=True)
    sleep.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_test_that_is_ended_by_a_signal(make_hosts, number):
    make_hosts("a")  # or it is skipped
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, cwd=ROOT)
    switch, sleep = map(int, holder.stdout.readline().split())
    holder.send_signal(number)
    holder.communicate()
    assert_gone(switch, sleep)


def assert_gone(switch, pid):
    """Neither process is there any more, nor the device."""
    deadline = time.monotonic() + 30
    device = Path(f"/sys/class/net/hosts{switch}")
    while time.monotonic() < deadline and (device.exists() or is_alive(switch) or is_alive(pid)):
        time.sleep(0.05)
    assert not device.exists()
    assert not is_alive(switch)
    assert not is_alive(pid)


def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_machine_that_cannot_have_them_says_why(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda tool: None)
    with pytest.raises(NoHostsError, match="ip, nsenter not found; install iproute2, util-linux"):
        Hosts(["a"]).__enter__()


def test_whoever_may_not_make_them_is_told(make_hosts):
    make_hosts("a")  # or it is skipped
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = [*powerless, sys.executable, "-m", "tests.support.switch", "0", "a"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("no hosts can be made here: [Errno 1] ")
