"""The table of checks, and all of them at once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pipelines.doctor.finding import Check, Finding, Subject
from pipelines.doctor.hardware import check_cpu, check_disks, check_gpus, check_memory
from pipelines.doctor.services import check_broker, check_java, check_kafka_jars, check_prism
from pipelines.doctor.system import check_clock, check_limits, check_ports, check_sandbox
from pipelines.doctor.versions import check_packages, check_python

CHECKS: Final[Mapping[str, Check]] = {
    "python": check_python,
    "packages": check_packages,
    "cpu": check_cpu,
    "gpus": check_gpus,
    "memory": check_memory,
    "disks": check_disks,
    "limits": check_limits,
    "clock": check_clock,
    "java": check_java,
    "kafka jars": check_kafka_jars,
    "prism": check_prism,
    "ports": check_ports,
    "sandbox": check_sandbox,
    "broker": check_broker,
}
"""In the order in which they are shown."""


def examine(subject: Subject, checks: Mapping[str, Check] = CHECKS) -> list[Finding]:
    """What all checks find. They run beside each other: most of them wait for something."""
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        found = pool.map(lambda name: _examine(name, checks[name], subject), checks)
        return [finding for findings in found for finding in findings]


def _examine(name: str, check: Check, subject: Subject) -> list[Finding]:
    """One check that fails in a way nobody foresaw must not keep the others from being told."""
    try:
        return list(check(subject))
    except Exception as error:  # noqa: BLE001 - see above; what it was is told
        return [
            Finding(name, "problem", f"the check itself failed: {type(error).__name__}: {error}", "please report it")
        ]
