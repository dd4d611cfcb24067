"""Rewards that misbehave, for tests of the processes that contain them."""

import os
import signal
import subprocess
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
