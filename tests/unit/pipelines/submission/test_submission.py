"""What is read from Beam's arguments, and what is chosen where nobody says."""

import pytest

from pipelines.beam import beam_options
from pipelines.submission.submission import read
from schemas.config import validate
from schemas.errors import ConfigError

CONFIG = validate({"name": "t", "kafka": {"partitions": 6}, "rollout": {"shares": 3}}, "of the test")


def options_of(pipeline, *arguments):
    return beam_options(read(pipeline, CONFIG, arguments)).get_all_options(retain_unknown_options=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--runner=FlinkRunner", "--parallelism=2"], {"runner": "FlinkRunner", "parallelism": 2}),
        (["--prism_location=/x"], {"runner": "PrismRunner", "prism_location": "/x"}),
        (["--runner", "PortableRunner", "--job_endpoint=127.0.0.1:1"], {"runner": "PortableRunner"}),
        (["--runner=FnApiRunner"], {"runner": "FnApiRunner"}),
    ],
)
def test_what_was_given_passes_through(given, expected):
    options = options_of("rollout", *given)
    assert {name: options[name] for name in expected} == expected
    assert options["streaming"] is True
    assert options["save_main_session"] is False


def test_flink_gets_what_a_stream_needs():
    options = options_of("rollout", "--runner=FlinkRunner", "--flink_master=flink:8081")
    assert options["parallelism"] == 3
    assert (options["sdk_worker_parallelism"], options["max_bundle_size"]) == ("1", "1")
    assert int(options["checkpointing_interval"]) > 0
    assert options_of("join-feedback", "--runner=FlinkRunner")["parallelism"] == 1


def test_time_outs_are_longer_than_the_longest_bundle():
    slow = validate({"rewards": {"timeout_s": 600}}, "of the test")
    chosen = read("rollout", slow, ["--runner=FlinkRunner"]).chosen
    assert int(chosen["checkpoint_timeout_millis"].value) == 2 * 1000 * (1 + slow.rollout.group_size) * 600


def test_dataflow_keeps_the_experiments_that_were_given():
    submission = read("rollout", CONFIG, ["--runner=DataflowRunner", "--experiments=mine", "--experiments", "other"])
    assert submission.option("experiments") == "mine,other,no_use_multiple_sdk_containers"
    assert submission.option("max_num_workers") == "3"
    assert beam_options(submission).get_all_options()["experiments"] == [
        "mine", "other", "no_use_multiple_sdk_containers",
    ]  # fmt: skip


def test_prism_does_not_divide_bundles_of_keys():
    assert "prism_disable_sdf_split" in options_of("join-feedback", "--prism_location=/x")["experiments"]
    assert "experiments" not in read("rollout", CONFIG, []).chosen


@pytest.mark.parametrize(
    ("arguments", "environment", "works_here"),
    [
        ([], "LOOPBACK", True),
        (["--runner=FnApiRunner"], "LOOPBACK", True),
        (["--runner=FlinkRunner"], "LOOPBACK", True),
        (["--runner=flink", "--flink_master=[local]"], "LOOPBACK", True),
        (["--runner=FlinkRunner", "--flink_master", "flink:8081"], "DOCKER", False),
        (["--runner=FlinkRunner", "--output_executable_path=job.jar"], "DOCKER", False),
        (["--environment_type=external", "--environment_config=h:1"], "EXTERNAL", False),
        (["--runner=PortableRunner", "--job_endpoint=h:1"], "DOCKER", False),
        (["--runner=PortableRunner", "--job_endpoint=h:1", "--environment_type=LOOPBACK"], "LOOPBACK", True),
        (["--runner=DataflowRunner"], "DATAFLOW", False),
    ],
)
def test_where_workers_run_is_what_beam_makes_of_the_arguments(arguments, environment, works_here):
    submission = read("rollout", CONFIG, arguments)
    assert (submission.environment, submission.works_here) == (environment, works_here)


@pytest.mark.parametrize(
    ("runner", "part"),
    [
        ("DirectRunner", "name PrismRunner"),
        ("SparkRunner", "these pipelines are not for it; expected one of PrismRunner, FlinkRunner"),
        ("FlinkRuner", "not for it"),
    ],
)
def test_other_runners_are_refused(runner, part):
    with pytest.raises(ConfigError, match=part):
        read("rollout", CONFIG, [f"--runner={runner}"])
