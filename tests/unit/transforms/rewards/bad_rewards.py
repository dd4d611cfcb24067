"""Rewards that misbehave, for tests of the processes that contain them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from transforms.rewards.registry import Arguments, Reward, reward


class When(Arguments):
    text: str = "bad"
    """Misbehave for responses with this text."""


def _is_bad(sample, arguments):
    return arguments.text in sample.response_text


@reward("hangs")
def hangs(sample, arguments: When):
    while _is_bad(sample, arguments):
        pass
    return Reward(1.0)


@reward("ignores_sigterm")
def ignores_sigterm(sample, arguments: When):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while _is_bad(sample, arguments):
        time.sleep(0.01)
    return Reward(1.0)


@reward("catches_everything")
def catches_everything(sample, arguments: When):
    for number in signal.valid_signals():
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    hoard = []
    while _is_bad(sample, arguments):
        try:
            hoard.append(bytearray(256 << 20))
        except BaseException:  # noqa: BLE001
            time.sleep(0.001)
    return Reward(1.0)


@reward("stops")
def stops(sample, arguments: When):
    if _is_bad(sample, arguments):
        os.kill(os.getpid(), signal.SIGSTOP)
    return Reward(1.0)


@reward("dies")
def dies(sample, arguments: When):
    if _is_bad(sample, arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    return Reward(1.0)


@reward("forks_and_hangs")
def forks_and_hangs(sample, arguments: When):
    child = subprocess.Popen(["sleep", "1000"])
    with open(sample.worker, "w") as file:
        file.write(str(child.pid))
    time.sleep(1000)
    return Reward(1.0)


def _start_daemon(pid_file):
    """A process in a session of its own whose parent is gone, which ignores SIGTERM."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(pid_file, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)
    os._exit(0)


@reward("starts_a_daemon_and_hangs")
def starts_a_daemon_and_hangs(sample, arguments: When):
    _start_daemon(sample.worker)
    time.sleep(1000)
    return Reward(1.0)


@reward("leaves_a_daemon")
def leaves_a_daemon(sample, arguments: When):
    _start_daemon(sample.worker)
    while not os.path.exists(sample.worker) or not os.path.getsize(sample.worker):
        time.sleep(0.001)
    return Reward(1.0)


@reward("returns_twice")
def returns_twice(sample, arguments: When):
    if _is_bad(sample, arguments):
        if os.fork() == 0:
            with open(sample.worker, "w") as file:
                file.write(str(os.getpid()))
        while not os.path.exists(sample.worker) or not os.path.getsize(sample.worker):
            time.sleep(0.01)
    return Reward(1.0)


@reward("leaves_an_alarm")
def leaves_an_alarm(sample, arguments: When):
    if _is_bad(sample, arguments):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    return Reward(1.0)


@reward("prints_a_gigabyte")
def prints_a_gigabyte(sample, arguments: When):
    chunk = b"x" * (1 << 20)
    for _ in range(1024 if _is_bad(sample, arguments) else 0):
        os.write(1, chunk)
        os.write(2, chunk[:1024])
        sys.stdout.write("y" * 1024)
    return Reward(1.0)


@reward("lists_its_files")
def lists_its_files(sample, arguments: When):
    files = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            files[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    with open(sample.worker, "w") as file:
        json.dump(files, file)
    return Reward(1.0)


@reward("closes_files")
def closes_files(sample, arguments: When):
    if _is_bad(sample, arguments):
        os.closerange(0, 4096)
    return Reward(1.0)


@reward("eats_memory")
def eats_memory(sample, arguments: When):
    if _is_bad(sample, arguments):
        return Reward(float(len(bytearray(8 << 30))))
    return Reward(1.0)


@reward("exits")
def exits(sample, arguments: When):
    if _is_bad(sample, arguments):
        raise SystemExit(3)
    return Reward(1.0)


@reward("leaves")
def leaves(sample, arguments: When):
    if _is_bad(sample, arguments):
        os._exit(3)
    return Reward(1.0)


@reward("leaves_as_if_all_were_well")
def leaves_as_if_all_were_well(sample, arguments: When):
    if _is_bad(sample, arguments):
        os._exit(0)
    return Reward(1.0)


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@reward("raises_the_unspeakable")
def raises_the_unspeakable(sample, arguments: When):
    if _is_bad(sample, arguments):
        raise UnspeakableError
    return Reward(1.0)


@reward("has_many_parts")
def has_many_parts(sample, arguments: When):
    return Reward(1.0, {str(part): 1.0 for part in range(1000 if _is_bad(sample, arguments) else 1)})


@reward("beyond_float32")
def beyond_float32(sample, arguments: When):
    return Reward(1e39 if _is_bad(sample, arguments) else 1.0)


@reward("nan")
def nan(sample, arguments: When):
    return Reward(float("nan") if _is_bad(sample, arguments) else 1.0, {"part": 0.5})


@reward("raises")
def raises(sample, arguments: When):
    if _is_bad(sample, arguments):
        raise KeyError("no such thing")
    return Reward(1.0)


@reward("returns_text")
def returns_text(sample, arguments: When):
    return "1.0"


@reward("fine")
def fine(sample, arguments: When):
    return Reward(2.0, {"half": 1.0})
