"""The pool of workers: what it starts, and that nothing of it stays."""

import subprocess
import sys
from contextlib import contextmanager

import grpc
import psutil
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from pipelines.beam_worker.options import PoolAddress, examine
from pipelines.beam_worker.pool import run
from pipelines.local.ports import free_ports
from schemas.checks import problems
from schemas.errors import PortError
from tests.pipeline.rollout_process import wait_for


@contextmanager
def a_pool():
    """A pool in a process of its own: its client, and the process."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "pipelines.cli.main", "beam-worker", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(60)
            yield beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel), psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def another_client(pool):
    """By a connection of its own, as another process has one."""
    (address,) = {each.laddr for each in pool.net_connections() if each.status == psutil.CONN_LISTEN}
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{address.port}", options) as channel:
        yield beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)


def workers(pool):
    return {each.pid for each in pool.children()}


def stop(client, worker_id="1-1"):
    client.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=worker_id), timeout=60)


def start(client, worker_id="1-1"):
    (nobody,) = free_ports(1)
    endpoint = {"url": f"127.0.0.1:{nobody}"}
    return client.StartWorker(
        beam_fn_api_pb2.StartWorkerRequest(worker_id=worker_id, control_endpoint=endpoint), timeout=60
    )


def test_workers_come_and_go_as_the_runner_says():
    with a_pool() as (client, pool):
        assert start(client).error == ""
        (worker,) = pool.children()
        assert worker.cmdline()[:3] == [sys.executable, "-m", "pipelines.beam_worker.worker"]
        stop(client)
        assert not pool.children()
        stop(client)


def test_runners_that_give_the_same_name_end_their_own_worker():
    with a_pool() as (client, pool), another_client(pool) as other:
        start(client)
        first = workers(pool)
        start(other)
        second = workers(pool) - first
        assert len(first) == len(second) == 1
        stop(other)
        assert workers(pool) == first
        stop(other)  # a runner that has connected anew
        assert not workers(pool)


def test_one_stop_ends_one_of_two_workers_of_a_name():
    with a_pool() as (client, pool):
        start(client)
        first = workers(pool)
        start(client)
        stop(client)
        assert len(workers(pool) - first) == len(workers(pool)) == 1


def test_sigterm_ends_pool_and_workers():
    with a_pool() as (client, pool):
        start(client)
        (worker,) = pool.children()
        pool.terminate()
        assert pool.wait(60) == 0
        assert not worker.is_running()


def test_a_worker_does_not_outlive_a_pool_that_was_killed():
    with a_pool() as (client, pool):
        start(client)
        (worker,) = pool.children()
        pool.kill()
        wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 60)


def test_a_port_that_is_taken_is_told():
    with a_pool() as (_, pool):
        (address,) = {each.laddr for each in pool.net_connections() if each.status == psutil.CONN_LISTEN}
        assert address.ip.endswith("127.0.0.1"), "the loopback interface alone"
        assert problems(list(examine(PoolAddress(port=address.port))))
        with pytest.raises(PortError, match=f"--port {address.port}: it cannot be listened on"):
            run(PoolAddress(port=address.port))
