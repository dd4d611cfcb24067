"""Users who know the right answers: what they say of literal answers, and how often."""

from collections import Counter
from dataclasses import replace

import pytest

from pipelines.simulation.population import Habits, populate
from pipelines.simulation.rating import Scored, windows
from pipelines.simulation.translators import Translators
from schemas.errors import ConfigError
from schemas.prompts import Prompt, RewardSpec
from tests.support.samples import SAMPLE

REFERENCES = ("Ein Hund rennt.", "Zwei Katzen spielen.", "Es regnet.")
PROMPTS = [
    Prompt(prompt_id=f"translation-de/train/{row}", text="?", reward=RewardSpec(name="chrf", args={"reference": text}))
    for row, text in enumerate(REFERENCES)
]


def translators(prompts=PROMPTS, *, threshold=0.6, seed=0, **habits):
    users = populate(5, Habits(**{"noise": 0.0, "dropout": 0.0, **habits}), seed)
    return Translators(prompts, users, threshold, seed)


def answers(text, row=0, *, number=1):
    """So many answers with the same text to one prompt, each with a name of its own."""
    answer = replace(SAMPLE, response_text=text, prompt_id=f"translation-de/train/{row}")
    return [replace(answer, prompt_offset=offset) for offset in range(number)]


def said(raters, samples):
    return [(opinion.kind, opinion.value) if (opinion := raters.judge(each)) else None for each in samples]


@pytest.mark.parametrize(
    ("text", "opinion"),
    [
        ("Ein Hund rennt.", ("thumb", 1.0)),
        ("Ein Hund rennt", ("thumb", 1.0)),
        ("Zwei Katzen spielen.", ("correction", "Ein Hund rennt.")),
        ("A dog runs.", ("correction", "Ein Hund rennt.")),
        ("", ("correction", "Ein Hund rennt.")),
    ],
)
def test_a_good_answer_is_liked_and_another_one_corrected(text, opinion):
    assert said(translators(), answers(text)) == [opinion]


def test_the_threshold_says_what_is_good():
    (near,) = answers("Ein Hund bellt.")
    score = translators().score(near)
    assert 0.3 < score < 0.9
    assert said(translators(threshold=score), [near]) == [("thumb", 1.0)]
    assert said(translators(threshold=score + 1e-6), [near]) == [("correction", "Ein Hund rennt.")]


def test_labels_are_corrected_too():
    prompts = [
        Prompt(prompt_id=name, text="?", reward=RewardSpec(name="label", args={"answer": name, "labels": ["a", "b"]}))
        for name in ("a", "b")
    ]
    given = [replace(SAMPLE, prompt_id="a", response_text=text) for text in ("It is a.", "b")]
    assert said(translators(prompts), given) == [("thumb", 1.0), ("correction", "a")]


def test_answers_to_other_prompts_have_no_score():
    assert translators().score(replace(SAMPLE, prompt_id=None)) is None
    assert translators().score(replace(SAMPLE, prompt_id="sums/2+3")) is None


def test_users_slip_and_say_nothing_as_often_as_they_should():
    counted = Counter(said(translators(noise=0.2, dropout=0.1), answers("Ein Hund rennt.", number=5000)))
    assert counted[None] == pytest.approx(500, abs=70)
    assert counted["thumb", 1.0] == pytest.approx(4500 * 0.8, abs=120)
    slips = [counted["correction", text] for text in REFERENCES[1:]]
    assert slips == pytest.approx([450, 450], abs=80)
    assert sum(counted.values()) == 5000


def test_delays_are_those_of_the_population():
    (user, *_), raters = populate(1, Habits(delay_s=2.0), 0), None
    raters = Translators(PROMPTS, [user], 0.6, 0)
    delays = [opinion.delay_s for each in answers("x", number=5000) if (opinion := raters.judge(each))]
    assert sum(delays) / len(delays) == pytest.approx(user.mean_delay_s, rel=0.06)


def test_shuffled_users_always_have_another_sentence_in_mind():
    counted = Counter(said(translators(shuffled=True), answers("Ein Hund rennt.", number=1000)))
    assert set(counted) == {("correction", text) for text in REFERENCES[1:]}
    assert min(counted.values()) > 400
    assert said(translators(PROMPTS[:2], shuffled=True), answers("Ein Hund rennt.", row=1)) == [("thumb", 1.0)]


def test_what_is_said_depends_on_the_seed_and_not_on_the_order():
    given = answers("Ein Hund bellt.", number=50)
    one, same, other = (translators(noise=0.5, dropout=0.3, seed=seed) for seed in (1, 1, 2))
    forward = [one.judge(each) for each in given]
    backward = [same.judge(each) for each in reversed(given)]
    assert forward == backward[::-1]
    assert forward != [other.judge(each) for each in given]
    assert len({opinion.user for opinion in forward if opinion}) > 1


def test_rewards_without_a_right_text_and_a_single_prompt_are_refused():
    with pytest.raises(ConfigError, match="last_number do not know the right text"):
        translators([Prompt(prompt_id=name, text="?", reward=RewardSpec(name="last_number")) for name in "ab"])
    with pytest.raises(ConfigError, match="1 prompts, expected 2 or more"):
        translators(PROMPTS[:1])


def test_windows_have_the_mean_score_and_tell_of_the_last_answer():
    scored = [Scored(float(place), place / 10, 2 * place, place) for place in range(5)]
    (one, two) = windows(scored, 2)
    assert (one.score, two.score) == pytest.approx((0.05, 0.25))
    assert (two.at_s, two.judgements, two.version) == (3.0, 6, 3)
