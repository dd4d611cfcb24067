"""A gateway that one user floods: how long others wait, and whether anything acknowledged is lost.

    flood (a process; its own address) ──► gateway (a process) ──► a real broker
    others, one after the other        ──►      └──► simulated engine that answers at once

    make -s bench BENCH=gateway

prints one JSON object and ends with code 1 if others wait longer than the bars, or a judgement is missing.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import tomli_w

from pipelines.local.broker import Broker
from pipelines.local.ports import free_ports
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, ModelConfig, RolloutConfig, RunConfig
from schemas.gateway import GatewayConfig
from tests.support.simulated_engine import SimulatedEngine
from tests.support.trajectories import read_all, wait_until

FLOODS = (1, 50, 1000)
"""Connections of the flood; each sends as fast as it is answered."""
SECONDS = 8.0
PAUSE_S = 0.1
"""Between two requests of the others: below the limit of their address."""
JUDGEMENT_BAR_S, QUESTION_BAR_S = 0.25, 0.5
"""Of the medians, while the flood goes on."""
FLOOD_ADDRESS = "127.0.0.2"


async def flood(port, run, connections):
    """What it was answered, by status."""
    fields = {"rollout_id": f"{run}/0/7/1", "kind": "thumb", "value": 1, "user": "mallory"}
    body = json.dumps(fields).encode()
    head = (
        f"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    counted, until_s = Counter(), time.monotonic() + SECONDS

    async def send():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(FLOOD_ADDRESS, 0))
        while time.monotonic() < until_s:
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
            counted[answer[9:12].decode()] += 1
        writer.close()

    await asyncio.gather(*(send() for _ in range(connections)))
    return counted


@contextmanager
def serving(directory, broker):
    """The configuration of a gateway that is a process of its own."""
    with SimulatedEngine(seed=1) as engine:
        config = RunConfig(
            name="flooded",
            kafka=KafkaConfig(bootstrap=broker),
            model=ModelConfig(path=str(build_tiny_model(directory / "model"))),
            rollout=RolloutConfig(workers=(engine.url,), discover=False),
            gateway=GatewayConfig(port=free_ports(1)[0]),
        )
        create_topics(config)
        file = directory / "run.toml"
        file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        command = [sys.executable, "-m", "pipelines.cli.main", "gateway", "--config", str(file)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: _is_up(config), 60)
                yield config
            finally:
                process.terminate()


def _is_up(config):
    try:
        return httpx.get(f"http://127.0.0.1:{config.gateway.port}/health").is_success
    except httpx.HTTPError:
        return False


def others(config, acknowledged):
    """Judges and asks in turn for the time of a flood; the seconds that each took."""
    judged, asked, until_s = [], [], time.monotonic() + SECONDS - 1
    with httpx.Client(base_url=f"http://127.0.0.1:{config.gateway.port}", timeout=60) as client:
        while time.monotonic() < until_s:
            name = f"f-{len(acknowledged)}"
            fields = {"rollout_id": "flooded/0/7/1", "kind": "thumb", "value": 1, "user": name, "feedback_id": name}
            judged.append(_timed(client, "/feedback", fields))
            acknowledged.append(name)
            asked.append(_timed(client, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}))
            time.sleep(PAUSE_S)
    return {"judgement_s": _summary(judged), "question_s": _summary(asked)}


def _timed(client, route, body):
    started = time.monotonic()
    client.post(route, json=body).raise_for_status()
    return time.monotonic() - started


def _summary(seconds):
    return {"median": round(statistics.median(seconds), 4), "max": round(max(seconds), 4), "n": len(seconds)}


def measure():
    """Others' seconds without a flood and under each."""
    acknowledged, found = [], {}
    with tempfile.TemporaryDirectory() as name, Broker(Path(name) / "kafka") as broker:
        with serving(Path(name), broker.bootstrap) as config:
            found["quiet"] = others(config, acknowledged)
            for connections in FLOODS:
                arguments = [str(config.gateway.port), config.name, str(connections)]
                command = [sys.executable, "-m", "tests.benchmarks.gateway", *arguments]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as flooding:
                    time.sleep(0.5)
                    figures = others(config, acknowledged)
                    counted = json.loads(flooding.communicate()[0])
                figures["flood_events_s"] = round(sum(counted.values()) / SECONDS)
                found[f"flood_of_{connections}"] = {**figures, "flood": counted}
        written = {json.loads(record.value)["feedback_id"] for record in read_all(config, config.topics.feedback)}
    return {**found, "acknowledged": len(acknowledged), "lost": len(set(acknowledged) - written)}


def main():
    found = measure()
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    slow = [
        name
        for name, figures in found.items()
        if name.startswith("flood")
        and (
            figures["judgement_s"]["median"] > JUDGEMENT_BAR_S or figures["question_s"]["median"] > QUESTION_BAR_S
        )
    ]  # fmt: skip
    return 1 if slow or found["lost"] else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(asyncio.run(flood(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))
    else:
        raise SystemExit(main())
