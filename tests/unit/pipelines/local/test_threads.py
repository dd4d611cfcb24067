"""How processes share the cores."""

from pipelines.local.threads import cores, thread_environment


def test_on_few_cores_engine_and_learner_take_all_and_wait_asleep():
    for process in ("worker", "learner"):
        environment = thread_environment(process, 2)
        assert environment["OMP_NUM_THREADS"] == "2"
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_on_many_cores_each_takes_one_half():
    assert thread_environment("worker", 16)["OMP_NUM_THREADS"] == "8"
    assert thread_environment("learner", 16)["OMP_NUM_THREADS"] == "8"


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
