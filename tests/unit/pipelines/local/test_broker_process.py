"""What becomes of a broker's process when the one that serves a log with it dies."""

import subprocess
import sys

import psutil

PLACEHOLDER = """
import sys, time
from pathlib import Path
from pipelines.local.broker import Broker


class Listener(Broker):  # another program in the place of a JVM: what is tested is whose child it is
    def command(self):
        Path(self.directory).mkdir(exist_ok=True)
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(self.port)]


print(Listener(Path(sys.argv[1])).start().pid, flush=True)
time.sleep(60)
"""


def test_it_does_not_outlive_who_started_it(tmp_path):
    command = [sys.executable, "-c", PLACEHOLDER, str(tmp_path / "kafka")]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    broker = psutil.Process(int(owner.stdout.readline()))
    owner.kill()  # SIGTERM and a terminal that is closed end verbs that only read as abruptly
    owner.wait()
    broker.wait(30)
