"""The request that Dataflow would get, as Google's clients write it; nothing is sent."""

import pytest

from pipelines import join_feedback, rollout
from pipelines.beam import empty_pipeline, submission_of
from schemas.config import validate
from schemas.errors import ConfigError

pytest.importorskip("google.cloud.dataflow", reason="Google's clients are not installed: pip install .[dataflow]")

IMAGE = "europe-docker.pkg.dev/some-project/some/asyncflow:1"
GIVEN = (
    "--runner=DataflowRunner", "--project=some-project", "--region=europe-west1", f"--sdk_container_image={IMAGE}",
    "--temp_location=gs://some-bucket/tmp", "--dry_run=true",
)  # fmt: skip
CONFIG = validate(
    {
        "model": {"path": "/models/m"},
        "kafka": {"bootstrap": "kafka:9092", "partitions": 4},
        "rollout": {"shares": 2, "workers": ()},
    },
    "of the test",
)


@pytest.mark.parametrize(("module", "name", "machines"), [(rollout, "rollout", 2), (join_feedback, "join-feedback", 1)])
def test_the_request_is_of_a_stream_on_as_many_machines_as_there_is_work_for(module, name, machines):
    from apache_beam.runners.dataflow.internal.apiclient import Environment

    pipeline = empty_pipeline(submission_of(name, CONFIG, GIVEN))
    module.build(pipeline, CONFIG)
    job = pipeline.run().job
    assert "JOB_TYPE_STREAMING" in job.json()
    asked = Environment([], job.options, "8", "gs://some-bucket/pipeline.pb", job.proto_pipeline).proto
    (machine_pool,) = asked.worker_pools
    assert (machine_pool.num_workers, machine_pool.autoscaling_settings.max_num_workers) == (machines, machines)
    assert machine_pool.autoscaling_settings.algorithm.name == "AUTOSCALING_ALGORITHM_NONE"
    assert [each.container_image for each in machine_pool.sdk_harness_container_images] == [IMAGE]
    assert {"no_use_multiple_sdk_containers", "use_runner_v2"} <= set(asked.experiments)


def test_what_beam_refuses_is_one_message():
    arguments = [each.replace("some-project", "p") for each in GIVEN]
    with pytest.raises(ConfigError, match="Invalid Project ID"):
        empty_pipeline(submission_of("rollout", CONFIG, arguments))
