"""How processes share the cores."""

from pipelines.local.threads import cores, thread_environment


def test_on_few_cores_the_learner_takes_all_and_on_many_one_half():
    assert thread_environment("learner", 2)["OMP_NUM_THREADS"] == "2"
    assert thread_environment("learner", 16)["OMP_NUM_THREADS"] == "8"


def test_vllm_counts_its_threads_itself():
    assert "OMP_NUM_THREADS" not in thread_environment("worker", 16)


def test_threads_of_engine_and_learner_wait_asleep():
    for process in ("worker", "learner"):
        assert thread_environment(process, 2)["OMP_WAIT_POLICY"] == "PASSIVE"


def test_everything_else_computes_with_one_thread():
    assert thread_environment("rollout", 16)["OMP_NUM_THREADS"] == "1"


def test_only_cores_of_this_process_count():
    import os

    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
