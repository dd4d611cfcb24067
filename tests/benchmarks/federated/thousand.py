"""A coordinator and 1,000 simulated sites with updates of the tiny model: rounds a minute, and memory that stays.

    SimulatedSites (this process) ◄──── broker, store ────► asyncflow federate, a process whose memory is watched

Everything runs on the cores that there are, the sites too: their writing counts against the coordinator.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import tomli_w

from pipelines.federation.audit import audit
from pipelines.local.broker import Broker
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.federating import FederationConfig
from schemas.federation import Merge, decode_rounds_entry
from tests.support.simulated_sites import SimulatedSites
from trainers.log import read_topic

SKIPPED = 2
"""First rounds, in which the coordinator's memory comes to what it needs."""
MAX_SLOPE_MIB = 0.5
"""A round: a thousand updates of the tiny model are 800 MiB."""


def main(arguments):
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as room, Broker(Path(room) / "kafka") as broker:
        directory = Path(room)
        model = build_tiny_model(directory / "model")
        told = {"name": "thousand", "kafka": {"bootstrap": broker.bootstrap}, "store": str(directory / "store"),
                "model": str(model), "quorum": options.sites * 9 // 10, "rounds": options.rounds, "deadline_s": 600.0,
                "spool": str(directory / "spool"), "selection": {"gone_after_s": 600.0},
                "strategy": {"name": options.strategy}}  # fmt: skip
        config = FederationConfig.model_validate(told)
        create_topics(config)
        figures = measure(config, directory, options)
    figures |= {"sites": options.sites, "strategy": options.strategy, "codec": options.codec, "cores": os.cpu_count()}
    figures["holds"] = bool(figures["audit"]["holds"] and abs(figures["mib_a_round"]) <= MAX_SLOPE_MIB)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["holds"] else 1


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--codec", default="full", choices=("full", "sparse", "int8", "sparse_int8"))
    return parser.parse_args(arguments)


def measure(config, directory, options):
    """Plays until all rounds are done; what came of it."""
    file = directory / "coordinator.toml"
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    names = [f"site-{number:04d}" for number in range(options.sites)]
    sites = SimulatedSites(config, names, learn=Scaled(), codec=options.codec)
    sites.beat()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.main", "federate", "--config", str(file)], stderr=log, stdout=log
        )
    watched, memory = psutil.Process(process.pid), []

    def is_over(_):
        with contextlib.suppress(psutil.Error):
            memory.append((time.time(), watched.memory_info().rss))
        return process.poll() is not None

    try:
        sites.play(is_over, each=lambda: is_over(None))
    finally:
        process.kill()
        process.wait()
        sites.close()
    assert process.returncode == 0, (directory / "log").read_text()[-3000:]
    return summary(config, memory)


class Scaled:
    """What sites learn: the same random numbers, by each site times a factor of its own. Cheap, on purpose."""

    def __init__(self):
        self._row = None

    def __call__(self, name, row, steps):
        if self._row is None:
            self._row = np.random.default_rng(0).standard_normal(row.size, dtype=np.float32) * np.float32(1e-3)
        return self._row * np.float32(1 + int(name.rsplit("-", 1)[1]) % 7)


def summary(config, memory):
    entries = [decode_rounds_entry(record.value) for record in read_topic(config, config.topics.rounds)]
    merges = [entry for entry in entries if isinstance(entry, Merge)]
    ends = [merge.at.timestamp() for merge in merges]
    spans = [[rss for at, rss in memory if start <= at < end] for start, end in pairwise(ends)]
    most = [max(span) / 2**20 for span in spans if span]
    kept = most[SKIPPED:]
    slope = float(np.polyfit(np.arange(len(kept)), kept, 1)[0]) if len(kept) > 1 else float("nan")
    return {
        "rounds": len(merges),
        "updates_merged": sum(len(merge.merged) for merge in merges),
        "rounds_a_minute": (len(merges) - 1) / (ends[-1] - ends[0]) * 60,
        "updates_a_second": sum(len(merge.merged) for merge in merges[1:]) / (ends[-1] - ends[0]),
        "bytes_a_round": merges[-1].metrics["bytes"],
        "coordinator_rss_mib": most,
        "mib_a_round": slope,
        "audit": audit(config).tell(),
    }
