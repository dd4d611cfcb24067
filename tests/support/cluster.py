"""The stack of one run, spread over hosts: what ``asyncflow up`` starts on one machine, as production has it.

    kafka-1 kafka-2 kafka-3    one broker each, a quorum: three copies of everything, two of which agree
    worker-1 worker-2          a vLLM worker each
    prism                      Prism, and whoever submits the rollout pipeline to it
    beam                       a pool of Beam workers
    learner learner-1          a rank of the learner each

Files are the machine's, as a shared file system would be. A process has the name of its host where it is alone there.
"""

import contextlib
import sys
from dataclasses import replace

from pipelines.local.broker import Broker, Quorum, Seat
from pipelines.local.ports import accepts
from pipelines.local.prism import find_prism, prism_command
from pipelines.local.stack import LEARNER, PRISM, ROLLOUT, WORKER, Stack, _answers, environment_of
from pipelines.local.supervisor import Spec, Supervisor
from pipelines.local.topics import create_topics
from pipelines.runs import CONFIG_NAME
from schemas.config import load, validate

BROKERS = ("kafka-1", "kafka-2", "kafka-3")
WORKERS = ("worker-1", "worker-2")
BEAM = "beam"
RANKS = (LEARNER, "learner-1")
HOSTS = (*BROKERS, *WORKERS, PRISM, BEAM, *RANKS)
POOL = "beam-worker"
_KAFKA, _VOTES, _WORKER, _METRICS, _PRISM, _POOL, _RENDEZVOUS = 9092, 9093, 8000, 9100, 8073, 50000, 29500


class Cluster(Stack):
    """See the module.

    Args:
        config: of the run.
        hosts: those of :data:`HOSTS`, made already.
        engine: ``vllm``, or ``simulated`` for the named one of :mod:`tests.support.drill_engine`.
        more: as of :class:`Stack`.
    """

    def __init__(self, config, *, hosts, engine="vllm", **more):
        super().__init__(config, **more)
        self.hosts, self._engine = hosts, engine
        self._quorum = Quorum([Seat(hosts.address(name), _KAFKA, _VOTES) for name in BROKERS])

    def workers(self):
        return [f"http://{self.hosts.address(name)}:{_WORKER}" for name in WORKERS]

    def _resolve(self, ports):
        tree = super()._resolve(ports).model_dump(mode="json")
        tree["kafka"] |= {"bootstrap": self._quorum.bootstrap, "replication": self._quorum.copies}
        tree["rollout"] |= {"workers": self.workers()}
        tree["learner"] |= {"metrics_host": self.hosts.address(LEARNER), "metrics_port": _METRICS}
        return validate(tree, "of the cluster")

    def start_serving(self, on_tick=None):
        prism = find_prism()
        self.supervisor.start(*self._brokers())
        self.supervisor.wait_ready(*BROKERS, on_tick=on_tick)
        create_topics(self.config)
        self.supervisor.start(
            self._prism(prism), self._pool(), *map(self._worker, WORKERS), *(self._rank(rank) for rank in range(2))
        )
        self.supervisor.wait_ready(*WORKERS, PRISM, POOL, on_tick=on_tick)

    def start_rollout(self):
        flags = ["--runner=PortableRunner", f"--job_endpoint=localhost:{_PRISM}"]
        flags += ["--environment_type=EXTERNAL", f"--environment_config={self.hosts.address(BEAM)}:{_POOL}"]
        self.supervisor.start(self._on(PRISM, Spec(ROLLOUT, self._command(ROLLOUT, *flags), environment_of(ROLLOUT),
                                                  grace_s=30, bound=ROLLOUT)))  # fmt: skip

    @contextlib.contextmanager
    def served(self):
        """The brokers again, on their hosts, which reach each other whatever a drill has left behind."""
        self.hosts.heal()
        with Supervisor(self.directory / "logs", self.directory) as supervisor:
            supervisor.start(*self._brokers())
            supervisor.wait_ready(*BROKERS)
            yield load(self.directory / CONFIG_NAME)

    # ---- who is where ---------------------------------------------------------------------------------

    def _on(self, host, spec):
        return self.hosts.on(host, replace(spec, restarts=self._restarts))

    def _accepts(self, host, port):
        return lambda: accepts(port, self.hosts.address(host))

    def _brokers(self):
        nodes = enumerate(BROKERS, 1)
        brokers = {name: Broker(self.directory / name, quorum=self._quorum, node=node) for node, name in nodes}
        return [self._on(name, broker.spec(name)) for name, broker in brokers.items()]

    def _worker(self, name):
        address = self.hosts.address(name)
        command = self._command(WORKER, "--worker.host", address, "--worker.port", str(_WORKER))
        if self._engine == "simulated":
            command = [sys.executable, "-m", "tests.support.drill_engine", "--host", address, "--port", str(_WORKER)]
        ready, wait_s = (lambda: _answers(f"http://{address}:{_WORKER}/asyncflow/status")), 600
        return self._on(name, Spec(name, command, environment_of(WORKER), ready=ready, ready_timeout_s=wait_s))

    def _prism(self, prism):
        ready = self._accepts(PRISM, _PRISM)
        return self._on(
            PRISM, Spec(PRISM, prism_command(prism, _PRISM), environment_of(PRISM), ready=ready, bound=ROLLOUT)
        )

    def _pool(self):
        command = [*self._command(POOL)[:-2], "--host", self.hosts.address(BEAM), "--port", str(_POOL)]
        ready = self._accepts(BEAM, _POOL)
        return self._on(BEAM, Spec(POOL, command, environment_of(POOL), ready=ready, bound=ROLLOUT))

    def _rank(self, rank):
        """A rank of the learner. Without a launcher: a job of Kubernetes sets the same variables."""
        name = RANKS[rank]
        environment = environment_of(LEARNER) | {
            "RANK": str(rank), "WORLD_SIZE": str(len(RANKS)), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": self.hosts.address(LEARNER), "MASTER_PORT": str(_RENDEZVOUS), "GLOO_SOCKET_IFNAME": "wire",
        }  # fmt: skip
        ready = self._accepts(LEARNER, _METRICS) if rank == 0 else None
        spec = Spec(
            name, self._command("learn"), environment, ready=ready, ready_timeout_s=600, ends=True, bound=LEARNER
        )
        return self._on(name, spec)
