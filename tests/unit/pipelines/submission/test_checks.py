"""What is wrong with a submission: each case spoils one argument or setting of one with which nothing is."""

import pytest

from pipelines.submission import checks
from pipelines.submission.checks import check, rehearse, require
from pipelines.submission.submission import read
from schemas.checks import problems
from schemas.config import validate
from schemas.errors import ConfigError

WORKERS = ("--environment_type=EXTERNAL", "--environment_config=127.0.0.1:50000")
FLINK = ("--runner=FlinkRunner", "--flink_master=flink:8081", *WORKERS)
GOOGLE = (
    "--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t", "--sdk_container_image=i",
)  # fmt: skip


def config(**sections):
    elsewhere = {
        "name": "t",
        "model": {"path": "/models/m"},
        "kafka": {"bootstrap": "kafka:9092", "partitions": 4},
        "rollout": {"workers": (), "shares": 2},
    }
    return validate({key: {**elsewhere.get(key, {}), **value} if isinstance(value, dict) else value
                     for key, value in {**elsewhere, **sections}.items()}, "of the test")  # fmt: skip


@pytest.fixture(autouse=True)
def _a_whole_machine(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(checks, "find_spec", lambda name: name)


def told(pipeline, arguments, settings):
    return {each.name: each for each in check(read(pipeline, settings, arguments), settings)}


@pytest.mark.parametrize("pipeline", ["rollout", "join-feedback"])
@pytest.mark.parametrize("arguments", [(), WORKERS, FLINK, GOOGLE, ("--runner=FlinkRunner",)])
def test_nothing_is_wrong_with_what_is_chosen(pipeline, arguments):
    found = check(read(pipeline, config(), arguments), config())
    assert [each for each in found if each.verdict != "ok"] == []


@pytest.mark.parametrize(
    ("pipeline", "arguments", "settings", "name", "parts"),
    [
        ("join-feedback", ("--runner=FnApiRunner",), {}, "runner", ("keyed state", "name another --runner")),
        ("rollout", FLINK[:2], {}, "workers", ("DOCKER", "one with this project in it")),
        ("rollout", ("--environment_type=EXTERNAL",), {}, "workers", ("EXTERNAL", "HOST:PORT, where asyncflow")),
        ("rollout", ("--environment_type=EXTRENAL",), {}, "workers", ("EXTRENAL", "expected one of LOOPBACK, EXT")),
        ("rollout", ("--runner=FnApiRunner", *WORKERS), {}, "workers", ("in this process", "leave it out")),
        ("rollout", (*GOOGLE, *WORKERS), {}, "workers", ("--sdk_container_image for that: leave it out",)),
        ("rollout", ("--runner=FlinkRunner", "--output_executable_path=j", "--environment_type=LOOPBACK"), {},
         "workers", ("the jar runs when this process is gone",)),
        ("rollout", (*FLINK[:2], "--environment_type=LOOPBACK"), {}, "flink's way to workers",
         ("flink:8081", "EXTERNAL")),
        ("rollout", ("--runner=FlinkRunner", "--flink_submit_uber_jar"), {}, "flink", ("give --flink_master",)),
        ("rollout", GOOGLE[:3], {}, "dataflow", ("--temp_location, --sdk_container_image not given",)),
        ("rollout", (*FLINK, "--sdk_worker_parallelism=2"), {}, "processes a machine", ("=2 = 1", "fences")),
        ("rollout", (*FLINK, "--checkpointing_interval=-1"), {}, "checkpoints", ("-1 ms > 0", "give 10000")),
        ("rollout", (*FLINK, "--checkpoint_timeout_millis=40000"), {}, "checkpoint_timeout_millis",
         ("40 s > the longest bundle 45 s", "raise it above 45000")),
        ("rollout", (*GOOGLE, "--element_processing_timeout_minutes=1"), {"rewards": {"timeout_s": 60}},
         "element_processing_timeout_minutes", ("60 s > the longest bundle 540 s", "raise it above 9")),
        ("rollout", WORKERS, {"model": {"path": "models/m"}}, "model.path", ("'models/m'", "absolute path")),
        ("join-feedback", WORKERS, {"feedback": {"key_file": "a.key"}}, "feedback.key_file", ("a.key", "absolute")),
        ("rollout", WORKERS, {"kafka": {"client": {"sasl_plain_password": "{file:pw}"}}},
         "kafka.client.sasl_plain_password", ("'pw'", "absolute")),
        ("rollout", GOOGLE, {"kafka": {"bootstrap": "127.0.0.1:9092"}}, "kafka.bootstrap", ("each machine's own",)),
    ],
)  # fmt: skip
def test_wrong_combinations_are_named(pipeline, arguments, settings, name, parts):
    found = told(pipeline, arguments, config(**settings))[name]
    assert found.verdict == "problem"
    for part in parts:
        assert part in f"{found.formula} {found.remedy}"
    with pytest.raises(ConfigError, match="cannot be submitted"):
        require(read(pipeline, config(**settings), arguments), config(**settings))


@pytest.mark.parametrize(
    ("pipeline", "arguments", "settings", "name", "part"),
    [
        (
            "rollout",
            ("--environment_type=EXTERNAL", "--environment_config=pool:50000"),
            {},
            "workers",
            "Beam's own pool does not",
        ),
        ("rollout", (*FLINK, "--parallelism=3"), {}, "parallelism", "1 get nothing to do: raise rollout.shares to 3"),
        ("rollout", (*FLINK, "--parallelism=1"), {}, "parallelism", "one after the other: raise it to 2"),
        ("join-feedback", (*FLINK, "--parallelism=4"), {}, "parallelism", "leave it 1"),
        ("rollout", FLINK, {"kafka": {"bootstrap": "localhost:9092"}}, "kafka.bootstrap", "workers run on this one"),
        ("rollout", GOOGLE, {"rollout": {"workers": ("http://127.0.0.1:8000",)}}, "rollout.workers", "machine's own"),
    ],
)
def test_what_works_and_is_seldom_meant_is_a_warning(pipeline, arguments, settings, name, part):
    found = told(pipeline, arguments, config(**settings))[name]
    assert (found.verdict, part in found.remedy) == ("warning", True)
    require(read(pipeline, config(**settings), arguments), config(**settings))


@pytest.mark.parametrize(
    ("address", "verdict"),
    [("pool:50000", "warning"), ("192.0.2.1:50000", "warning"), ("[2001:db8::1]:50000", "warning"),
     ("127.0.0.2:50000", "ok"), ("0.0.0.0:50000", "ok"), ("localhost:50000", "ok")],
)  # fmt: skip
def test_a_pool_for_prism_is_warned_of_where_it_is_on_another_machine(address, verdict):
    arguments = ("--environment_type=EXTERNAL", f"--environment_config={address}")
    assert told("rollout", arguments, config())["workers"].verdict == verdict


def test_a_pool_that_has_options_instead_of_an_address_is_not_warned_of():
    arguments = ("--environment_type=EXTERNAL", "--environment_options=external_service_address=127.0.0.1:50000")
    assert told("rollout", arguments, config())["workers"].verdict == "ok"


def test_this_machines_own_address_is_as_good_as_its_loopback(monkeypatch):
    monkeypatch.setattr(checks, "is_ours", lambda address: address == "192.0.2.1")
    arguments = ("--environment_type=EXTERNAL", "--environment_config=192.0.2.1:50000")
    assert told("rollout", arguments, config())["workers"].verdict == "ok"


def test_a_machine_without_java_or_googles_clients(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert "there is no java on the PATH" in told("rollout", FLINK, config())["flink"].remedy
    served = told("rollout", (*FLINK, "--job_endpoint=127.0.0.1:8099"), config())
    assert not problems(list(served.values()))
    assert "asyncflow-rl[dataflow]" in told("rollout", GOOGLE, config())["dataflow's clients"].remedy


def test_files_of_the_user_are_said_to_travel(tmp_path):
    file = tmp_path / "mine.py"
    file.write_bytes(b"x = 1\n")
    settings = config(rewards={"modules": (str(file),)})
    assert f"{file}: 6 bytes in the pipeline" in told("rollout", WORKERS, settings)["files that travel"].formula
    assert "files that travel" not in told("rollout", (), settings)


def test_a_rehearsal_tells_a_wrong_runner_as_a_problem():
    (found,) = rehearse("rollout", config(), ["--runner=SparkRunner"])
    assert (found.verdict, "not for it" in found.remedy) == ("problem", True)


def test_a_number_that_is_none_is_told():
    with pytest.raises(ConfigError, match="--parallelism=many: expected a number"):
        told("rollout", (*FLINK, "--parallelism=many"), config())
