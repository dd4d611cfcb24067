"""The figures that people see, of literal results."""

from collections import Counter

from pipelines.curriculum.history import Result
from pipelines.curriculum.report import Window, figures
from pipelines.curriculum.settings import Selection
from schemas.identity import GroupId
from tests.support.curriculum import make_pool


def result(*rewards):
    return Result(GroupId(0, 1), "sums/0", rewards, 1)


def test_a_line_of_the_log():
    window = Window(drawn=Counter(gsm8k=3, arith=1))
    window.add([result(1.0, 1.0), result(0.0, 0.0), result(1.0, 0.0), result(0.0, -1.0), result()], Selection())
    assert window.show() == {
        "drawn": 4, "shares": {"gsm8k": 0.75, "arith": 0.25}, "pass_rate": 0.375, "too_easy": 0.25, "too_hard": 0.5
    }  # fmt: skip


def test_of_nothing_nothing_is_said():
    assert Window().show() == {"drawn": 0, "shares": {}, "pass_rate": None, "too_easy": None, "too_hard": None}
    assert figures(make_pool(size=2, weight=2.0)) == {
        "weight": 2.0, "prompts": 2, "drawn": 0, "seen": 0, "given_up": 0, "pass_rate": None, "too_easy": None,
        "too_hard": None,
    }  # fmt: skip


def test_what_is_known_of_a_task_after_some_half_lives():
    pool = make_pool(size=4)
    pool.learn(0, 8, 8, 0)
    pool.learn(1, 0, 8, 3)
    pool.learn(2, 8, 8, 0)
    pool.learn(2, 0, 8, 1)
    pool.given_up[3] = True
    told = figures(pool)
    assert (told["seen"], told["given_up"], told["too_easy"], told["too_hard"]) == (3, 1, 0.333, 0.333)
    assert told["pass_rate"] == 0.444  # of 1, 0 and a third
