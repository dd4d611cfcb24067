"""The simulated population: what its users like and do, and what is made of it."""

import pytest

from pipelines.simulation.chat import Change, open_chat
from pipelines.simulation.population import Habits, populate
from pipelines.simulation.preferences import PREFERENCES, find
from pipelines.simulation.results import Answered, recovery, summarise, windows
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "liked"),
    [
        ("Paris.", {"short"}),
        ("Paris is the capital of France.", {"sentence", "short"}),
        ("The capital of France, as everybody in the whole world knows, is Paris!", {"sentence", "exclaims", "wordy"}),
        ("paris, of course, it is", {"lowercase", "short"}),
        ("", set()),
        ("2 + 3", {"short"}),
    ],
)
def test_rules_like_what_they_say(text, liked):
    assert {name for name, rule in PREFERENCES.items() if rule(text)} == liked


def test_an_unknown_preference_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean short"):
        find("shrt")


def test_users_err_drop_out_and_take_their_time_as_often_as_they_should():
    (user,) = populate(1, Habits(noise=0.1, delay_s=2.0, dropout=0.2), seed=3)
    thumbs = [user.judge(likes=True) for _ in range(10_000)]
    assert thumbs.count(None) == pytest.approx(2000, abs=150)
    assert thumbs.count(False) == pytest.approx(800, abs=100)
    delays = [user.delay_s() for _ in range(10_000)]
    assert sum(delays) / len(delays) == pytest.approx(user.mean_delay_s, rel=0.05)


def test_shuffled_judgements_do_not_depend_on_the_answer():
    (user,) = populate(1, Habits(dropout=0.0, shuffled=True), seed=3)
    for likes in (True, False):
        assert [user.judge(likes=likes) for _ in range(10_000)].count(True) == pytest.approx(5000, abs=200)


def test_a_population_is_that_of_its_seed_and_its_users_differ():
    one, same, other = (populate(5, Habits(), seed) for seed in (1, 1, 2))
    assert [user.mean_delay_s for user in one] == [user.mean_delay_s for user in same]
    assert [user.mean_delay_s for user in one] != [user.mean_delay_s for user in other]
    assert len({user.mean_delay_s for user in one}) == 5
    assert [user.choose("abcdef") for user in one] == [user.choose("abcdef") for user in same]


def test_the_preference_changes_at_the_answer_that_was_named():
    change = Change(find("short"), find("wordy"), 10)
    assert (change.at(9), change.at(10)) == (find("short"), find("wordy"))


def answers(*shares, begin=0, second_s=1.0):
    """Windows of ten answers, of which so many are liked."""
    liked = [place < round(share * 10) for share in shares for place in range(10)]
    return [
        Answered(begin + number, (begin + number) * second_s, each, 2 * (begin + number), 1 + number // 10)
        for number, each in enumerate(liked)
    ]


def test_windows_are_whole_and_say_when_they_ended():
    (one, two) = windows(answers(0.2, 0.5), 10)
    assert (one.liked, two.liked, two.first, two.at_s, two.judgements) == (0.2, 0.5, 10, 19.0, 38)
    assert len(windows(answers(0.2, 0.5)[:19], 10)) == 1


def test_what_was_gained_and_how_long_recovery_took():
    given = [*answers(0.2, 0.6, 1.0), *answers(0.1, 0.5, 0.9, 1.0, begin=30)]
    figures = summarise(given, 30, 10)
    assert (figures["liked_at_first"], figures["liked_before_change"]) == (0.2, 1.0)
    assert figures["gained"] == pytest.approx(0.8)
    assert figures["recovery"] == {"liked": 0.9, "seconds": 30.0, "judgements": 60, "answers": 20}


def test_a_model_that_does_not_recover_is_said_not_to():
    assert recovery(windows(answers(1.0), 10), windows(answers(0.5, 0.8, begin=10), 10)) is None


def test_windows_tell_apart_what_users_look_at():
    looked = [Answered(number, 0.0, False, 0, 1, {"intent": number < 3, "policy": False}) for number in range(4)]
    assert [window.parts for window in windows(looked, 4)] == [{"intent": 0.75, "policy": 0.0}]
    assert windows(answers(0.2), 10)[0].parts == {}


def test_users_correct_as_often_as_they_should_and_by_default_never():
    (user,) = populate(1, Habits(corrections=0.3), seed=3)
    assert [user.corrects() for _ in range(10_000)].count(True) == pytest.approx(3000, abs=150)
    (silent,) = populate(1, Habits(), seed=3)
    state = silent.dice.getstate()
    assert not silent.corrects()
    assert silent.dice.getstate() == state, "the dice of a population without corrections fall as they always did"


def test_a_chat_asks_what_its_file_says_and_likes_what_its_rules_do(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("Who?\n\n  Where? \n")
    chat = open_chat("short", "wordy", 10, file)
    assert [question.text for question in chat.questions] == ["Who?", "Where?"]
    asked = chat.questions[0]
    assert [chat.judge(number, asked, "Paris.").likes for number in (9, 10)] == [True, False]
    assert chat.correct(asked) is None
    file.write_text("\n")
    for given, reason in ((file, "no question in it"), (tmp_path / "none", "one question a line")):
        with pytest.raises(ConfigError, match=reason):
            open_chat("short", "wordy", 10, given)
