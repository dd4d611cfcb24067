"""What the coordinator serves to Prometheus."""

import socket
from urllib.request import urlopen

import pytest

from pipelines.local.ports import free_ports
from schemas.errors import PortError
from schemas.federation import LeftOutUpdate, Merge, MergedUpdate
from trainers.federation.figures import Figures


def read(port):
    lines = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def merged(**metrics):
    part = MergedUpdate(site="north", sequence=1, at=0, samples=3, weight=1.0, norm=0.5)
    silent = LeftOutUpdate(site="south", reason="silent")
    spoilt = LeftOutUpdate(site="east", reason="nonfinite", sequence=1, at=1)
    return Merge(generation=1, round=1, base_version=4, version=5, strategy="fedavg", merged=(part,), position=2,
                 left_out=(silent, spoilt), metrics={"bytes": 100.0, "seconds": 4.0, **metrics})  # fmt: skip


def test_rounds_and_merges_are_counted():
    (port,) = free_ports(1)
    figures = Figures(port)
    figures.lead(4)
    figures.hear(3)
    figures.ask(2)
    figures.gather(1)
    served = read(port)
    assert served["asyncflow_federation_version"] == 4
    assert (served["asyncflow_federation_sites"], served["asyncflow_federation_sites_asked"]) == (3, 2)
    assert served["asyncflow_federation_updates_waiting"] == 1
    assert served['asyncflow_federation_updates_left_out_total{reason="forged"}'] == 0
    figures.merge(merged())
    figures.miss()
    served = read(port)
    assert served["asyncflow_federation_version"] == 5
    assert served["asyncflow_federation_updates_waiting"] == 0
    assert served["asyncflow_federation_updates_merged_total"] == 1
    assert served['asyncflow_federation_updates_left_out_total{reason="silent"}'] == 1
    assert served['asyncflow_federation_updates_left_out_total{reason="nonfinite"}'] == 1
    assert served["asyncflow_federation_rounds_missed_total"] == 1
    assert served["asyncflow_federation_update_bytes_total"] == 100
    assert served["asyncflow_federation_merge_seconds_sum"] == 4
    assert served["asyncflow_federation_epsilon"] == 0
    figures.merge(merged(epsilon=1.5))
    assert read(port)["asyncflow_federation_epsilon"] == 1.5


def test_a_taken_port_is_named_and_port_0_serves_nothing():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(PortError, match=r"metrics_port \d+: .*give a free port"):
            Figures(listener.getsockname()[1])
    Figures(0)
