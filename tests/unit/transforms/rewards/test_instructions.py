"""Every check of an instruction, with a text that follows it and one that does not."""

import time
from dataclasses import replace

import pytest

from schemas.errors import RecordError
from schemas.prompts import RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.checks import checkable, count_sentences, follows
from transforms.rewards.instructions import Instructions, instructions

registry.load()
AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
CASES = [
    ("keywords:existence", {"keywords": ["Mom", "c++"]}, "my MOM likes C++", "my mom likes C"),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, **AT_LEAST}, "Ha ha! Haha", "ha ha"),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, **LESS}, "ha ha", "ha ha ha"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "a"]}, "rocks", "The ROCK."),
    ("keywords:letter_frequency", {"letter": "Q", "let_frequency": 2, "let_relation": "at least"}, "qQ", "q"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, "a!", "!!"),
    ("length_constraints:number_words", {"num_words": 3, **AT_LEAST}, "one two-three", "one, two"),
    ("length_constraints:number_words", {"num_words": 3, **LESS}, "one two", "one two three"),
    ("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST}, "It is. Is it", "It is Mr. Smith."),
    ("length_constraints:number_sentences", {"num_sentences": 2, **LESS}, "It is 3.5 m.", '"It is?" It is!'),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***\n", "one *** two *** three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "*** one *** two", "one *** *** two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "one", "*** one *** two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Elm"},
        "one\n\n'elm, two",
        "elm\n\ntwo",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "elm"},
        "Elm\nelm",
        "elm\n\nelm",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] and [a [b]", "[name] and [b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\np. s. more", "Bye ps more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.P.S more", "Bye\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n  - two\n**no**", "* one\n* two\n- three"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "My answer is no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2",
        "Section 1\nSECTION 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<On pens>>\ntext", "<< >>\n<<On\npens>>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one ****** one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say HI. hi", "hi. Say hi."),
    ("startend:end_checker", {"end_phrase": "Peace! "}, 'so: peace!"', "peace! so"),
    ("startend:quotation", {}, ' "so" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "I AM-FINE now",
        "AM-FINE Now",
    ),
    ("change_case:english_capital", {}, "ALL 3 OF IT", "ALL of IT"),
    ("change_case:english_lowercase", {}, "all 3 of it", "All of it"),
    ("punctuation:no_comma", {}, "no; none", "well, no"),
]


@pytest.mark.parametrize(("name", "arguments", "text", "wrong"), CASES)
def test_a_check_tells_what_follows_from_what_does_not(name, arguments, text, wrong):
    assert follows(name, text, arguments)
    assert not follows(name, wrong, arguments)
    assert not follows(name, " \n", arguments)


def test_every_check_is_tried():
    assert {name for name, *_ in CASES} == set(checkable())


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), ("One", 1), ("One.", 1), ("One. two! Three?", 3), ("See e.g. this. (That too.)", 2), ("Well ... so.", 1)],
)
def test_sentences_end_with_a_stop(text, number):
    assert count_sentences(text) == number


def test_the_reward_is_the_share_that_is_followed():
    asked = [{"name": "punctuation:no_comma"}, {"name": "change_case:english_lowercase"}]
    arguments = Instructions.model_validate({"instructions": asked})
    scores = [instructions(replace(SAMPLE, response_text=text), arguments) for text in ("so", "So", "So, so", "")]
    assert [score.value for score in scores] == [1.0, 0.5, 0.0, 0.0]
    assert [score.parts["all"] for score in scores] == [1.0, 0.0, 0.0, 0.0]


def test_an_answer_beyond_all_measure_follows_nothing():
    arguments = Instructions.model_validate({"instructions": [{"name": "punctuation:no_comma"}]})
    scores = [instructions(replace(SAMPLE, response_text="x" * length), arguments) for length in (200_000, 200_001)]
    assert [score.value for score in scores] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"name": "language:response_language", "args": {"language": "de"}}, "no check of instruction 'language:resp"),
        ({"name": "keywords:existence"}, "keywords"),
        ({"name": "keywords:existence", "args": {"keywords": []}}, "keywords"),
        ({"name": "punctuation:no_comma", "args": {"more": 1}}, "more"),
        ({"name": "length_constraints:number_words", "args": {"num_words": 3, "relation": "about"}}, "relation"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused_when_the_prompt_arrives(asked, complaint):
    with pytest.raises(RecordError, match=complaint):
        registry.check(RewardSpec(name="instructions", args={"instructions": [asked]}))


HOSTILE = [
    piece * (200_000 // len(piece)) for piece in ("[", "*", "* ", "<<", " ", "\n", "\n* ", ". ", ".", '"', "p. ", "a")
]


@pytest.mark.parametrize("text", [*HOSTILE, "[" * 100_000 + "]" * 100_000, "1" * 200_000, "x" * 10**7])
@pytest.mark.timed
def test_a_hostile_answer_costs_little(text):
    asked = [{"name": name, "args": arguments} for name, arguments, *_ in CASES]
    arguments = Instructions.model_validate({"instructions": asked})
    begun_s = time.process_time()
    instructions(replace(SAMPLE, response_text=text), arguments)
    assert time.process_time() - begun_s < 2
