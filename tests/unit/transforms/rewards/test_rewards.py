"""The rewards that come with the project, and the registry."""

from dataclasses import replace

import pytest

from schemas.errors import ConfigError, RecordError
from schemas.prompts import RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.chrf import RightTranslation, chrf, similarity
from transforms.rewards.closeness import NearNumber, closeness
from transforms.rewards.exact_match import RightText, exact_match
from transforms.rewards.label import RightLabel, label, named_in
from transforms.rewards.last_number import RightNumber, find_last_number, find_numbers, last_number
from transforms.rewards.math import RightExpression, math
from transforms.rewards.registry import Arguments, Reward, reward
from transforms.rewards.span import RightSpans, is_exact, normalise, span, token_f1

registry.load()


def answering(text):
    return replace(SAMPLE, response_text=text)


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("2 + 3 = 5", "5", 1.0),
        ("5 is right, not 6", "5", 0.0),
        ("The answer is 1,234.50.", 1234.5, 1.0),
        ("it is -7", "-7", 1.0),
        ("9-7", "7", 1.0),
        ("it is 05", 5, 1.0),
        ("0.1", 0.1, 1.0),
        ("", "5", 0.0),
        ("no number", "5", 0.0),
    ],
)
def test_last_number_compares_the_last_number_of_the_answer(text, answer, value):
    assert last_number(answering(text), RightNumber(answer=answer)).value == value


def test_find_last_number_gives_none_where_there_is_none():
    assert find_last_number("none") is None


def test_find_numbers_gives_all_in_their_order():
    assert [float(number) for number in find_numbers("9-7 is -2, not 1,000.5")] == [9, 7, -2, 1000.5]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3.8", 1.0),
        ("About 2.8.", 0.8),
        ("5", 1 - 1.2 / 5),
        ("0", 1 - 3.8 / 5),
        ("3.8, I said 3.80", 1.0),
        ("4 out of 5", 0.0),
        ("5.1", 0.0),
        ("-1", 0.0),
        ("9" * 5000, 0.0),
        ("four", 0.0),
        ("", 0.0),
    ],
)
def test_closeness_falls_with_the_distance_of_the_one_number(text, value):
    given = closeness(answering(text), NearNumber(answer=3.8, highest=5))
    assert given.value == pytest.approx(value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"answer": 6, "highest": 5},
        {"answer": -1, "highest": 5},
        {"answer": 2, "lowest": 2, "highest": 2},
        {"answer": float("nan"), "highest": 5},
        {"answer": 1, "highest": float("inf")},
        {"answer": 1},
    ],
)
def test_closeness_refuses_what_is_no_number_in_a_range(arguments):
    with pytest.raises(RecordError):
        registry.check(RewardSpec(name="closeness", args=arguments))


@pytest.mark.parametrize(
    ("text", "value", "exact"),
    [
        ("The West Brom!", 1.0, 1.0),
        ("west bromwich albion", 1.0, 1.0),
        ("Albion", 2 / 4, 0.0),
        ("West Brom West Brom", 4 / 6, 0.0),
        ("It is West Brom", 4 / 6, 0.0),
        ("Chelsea", 0.0, 0.0),
        ("the", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_span_counts_the_words_of_the_best_right_text(text, value, exact):
    given = span(answering(text), RightSpans(references=("West Brom", "West Bromwich Albion")))
    assert given.value == pytest.approx(value)
    assert given.parts == {"exact": exact}


def test_span_leaves_out_what_does_not_count_but_no_part_of_a_word():
    assert normalise("An  answer, the U.S. theatre\n(A)") == "answer us theatre"
    assert is_exact("Theatre", ["the theatre"])
    assert token_f1("x", []) == 0.0


@pytest.mark.parametrize("references", [[], ["the"], ["x", ""]])
def test_span_refuses_references_without_words(references):
    with pytest.raises(RecordError):
        registry.check(RewardSpec(name="span", args={"references": references}))


@pytest.mark.parametrize(
    ("text", "arguments", "value"),
    [
        (" Paris \n", RightText(answer="Paris"), 1.0),
        ("paris", RightText(answer="Paris"), 0.0),
        ("paris", RightText(answer="Paris", ignore_case=True), 1.0),
        ("It is Paris", RightText(answer="Paris"), 0.0),
    ],
)
def test_exact_match_ignores_white_space_and_on_request_case(text, arguments, value):
    assert exact_match(answering(text), arguments).value == value


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        (r"so it is \boxed{0.5}", r"\frac{1}{2}", 1.0),
        ("The answer is 1/2", "0.5", 1.0),
        (r"$x^2 + 2x + 1$", r"$(x+1)^2$", 1.0),
        (r"so it is \boxed{\$18.90}", r"\$18.90", 1.0),
        (r"so it is \boxed{18.9}", r"\$18.90", 1.0),
        (r"so it is \boxed{\$1890}", r"\$18.90", 0.0),
        (r"so it is \boxed{2}", r"\frac{1}{2}", 0.0),
        ("I do not know", "3", 0.0),
        ("", "3", 0.0),
    ],
)
def test_math_compares_expressions(text, answer, value):
    assert math(answering(text), RightExpression(answer=answer)).value == value


def test_math_works_outside_the_main_thread():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(math, answering("The answer is 3"), RightExpression(answer="3"))
    assert future.result().value == 1.0


def test_math_raises_for_a_right_answer_that_is_no_expression():
    with pytest.raises(ValueError, match="not a mathematical expression"):
        math(answering("3"), RightExpression(answer="?!"))


def test_chrf_is_that_of_sacrebleu_by_a_hundred():
    from sacrebleu import sentence_chrf

    given, right = "Ein Hund läuft.", "Ein Hund rennt am Strand."
    assert chrf(answering(given), RightTranslation(reference=right)).value == pytest.approx(
        sentence_chrf(given, [right]).score / 100
    )
    assert chrf(answering(right), RightTranslation(reference=right)).value == pytest.approx(1.0)
    assert chrf(answering("xyz"), RightTranslation(reference=right)).value == 0.0
    assert chrf(answering(""), RightTranslation(reference=right)).value == 0.0


def test_chrf_of_a_long_answer_is_that_of_its_beginning():
    assert similarity("ab" * 10_000 + "z" * 10**6, "ab" * 10_000) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Refund", 1.0),
        ("It is about a refund.", 1.0),
        ("refund, refund and REFUND", 1.0),
        ("order", 0.0),
        ("refund or order", 0.0),
        ("refunds", 0.0),
        ("prerefund", 0.0),
        ("nothing of it", 0.0),
        ("", 0.0),
    ],
)
def test_label_wants_exactly_the_right_one(text, value):
    arguments = RightLabel(answer="Refund", labels=("order", "refund", "shipping address"))
    assert label(answering(text), arguments).value == value


def test_the_longer_label_is_named_where_it_holds_another():
    assert named_in("to my Shipping \n Address", ("address", "shipping address")) == {"shipping address"}
    assert named_in("C++ (not C)", ("c", "C++")) == {"c", "c++"}


@pytest.mark.parametrize(
    ("answer", "labels"), [("c", ("a", "b")), ("a", ("a",)), ("a", ("a", "A")), ("a", ("a", " ")), ("", ("a", ""))]
)
def test_labels_that_cannot_be_told_apart_are_refused(answer, labels):
    with pytest.raises(ValueError, match="label"):
        RightLabel(answer=answer, labels=labels)


def test_an_unknown_reward_names_the_nearest_one():
    with pytest.raises(RecordError, match="did you mean 'last_number'") as caught:
        registry.check(RewardSpec(name="last_numbr"))
    assert caught.value.reason == "unknown_reward"


@pytest.mark.parametrize("arguments", [{}, {"answer": "five"}, {"answer": "5", "more": 1}, {"answer": "inf"}])
def test_wrong_arguments_are_found_when_the_prompt_arrives(arguments):
    with pytest.raises(RecordError) as caught:
        registry.check(RewardSpec(name="last_number", args=arguments))
    assert caught.value.reason == "bad_reward_arguments"


def test_feedback_is_a_valid_reward_with_any_arguments():
    registry.check(RewardSpec(name="feedback", args={"anything": 1}))


def test_a_name_is_given_once():
    with pytest.raises(ConfigError, match="registered twice"):

        @reward("last_number")
        def another(sample, arguments: RightNumber):
            return Reward(0.0)


def test_a_reward_without_typed_arguments_is_refused():
    with pytest.raises(ConfigError, match="pydantic model"):

        @reward("untyped")
        def untyped(sample, arguments: dict):
            return Reward(0.0)


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(ConfigError, match="no_such_module"):
        registry.load(["no_such_module"])


def test_arguments_refuse_unknown_keys():
    class One(Arguments):
        one: int = 1

    with pytest.raises(ValueError, match="extra"):
        One.model_validate({"two": 2})
