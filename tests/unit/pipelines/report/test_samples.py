"""What a report keeps of the answers: bounded, evenly, with the spans of weight versions in the right place."""

from dataclasses import replace

from pipelines.report.gather import keep, messages_text, place_spans, prompt_text
from pipelines.report.samples import SampleBook
from schemas.prompts import Message, Prompt
from schemas.trajectories import Span
from tests.support.samples import SAMPLE, group


class Letters:
    """A tokenizer: a token is the letter of that number; those above 1,000 are special."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(number) for number in ids if number < 1000)


def sample(text, spans, extra=()):
    ids = (*extra, *map(ord, text), 1001)
    return replace(SAMPLE, response_text=text, response_token_ids=ids, weight_version_spans=spans)


def test_spans_are_placed_by_token():
    assert place_spans(sample("abcdef", (Span(11, 0), Span(12, 2))), Letters()) == ((11, 0), (12, 2))


def test_spans_of_a_conversation_are_placed_in_its_last_answer():
    told = sample("the end", (Span(3, 0), Span(4, 2), Span(5, 12)), extra=map(ord, "an earlier "))
    assert place_spans(told, Letters()) == ((3, 0), (4, 0), (5, 1))


def test_spans_are_placed_by_share_without_a_tokenizer():
    assert place_spans(sample("abcdefghi", (Span(1, 0), Span(2, 5))), None) == ((1, 0), (2, 4))
    assert place_spans(sample("abc", (Span(7, 0),)), None) == ((7, 0),)


def test_a_group_is_kept_with_its_place_and_advantages():
    first, second = group(offset=3)
    kept = keep([first, replace(second, reward=None, reward_error="reward_timeout")], (1, 17), Letters())
    assert (kept.group, kept.at, kept.versions) == ((0, 3), (1, 17), (11, 12))
    assert kept.advantages() == [0.0, None]
    assert [one.error for one in kept.samples] == [None, "reward_timeout"]
    assert kept.prompt == "\x03N\x04".strip()


def kept(number, text="x"):
    return keep([replace(one, response_text=text) for one in group(offset=number)], (0, number), None)


def test_a_book_keeps_whole_groups_evenly_when_there_are_too_many():
    book = SampleBook(limit=20)
    for number in range(100):
        book.add(kept(number))
    offsets = [each.group.offset for each in book]
    assert len(book) == 2 * len(offsets) <= 20
    assert book.seen == 200
    assert offsets == list(range(0, 100, book.stride))


def test_a_book_cuts_answers_when_they_are_too_long_together():
    book = SampleBook(characters=1000)
    for number in range(100):
        book.add(kept(number, "y" * 200))
    lengths = {len(one.answer) for each in book for one in each.samples}
    assert max(lengths) == book.cut
    assert sum(len(one.answer) for each in book for one in each.samples) <= 1000
    assert {one.characters for each in book for one in each.samples} == {200}


def test_prompts_read_as_a_person_would_say_them():
    question = Message(role="user", content="What is 2+3?")
    assert messages_text([question]) == "What is 2+3?"
    assert (
        messages_text([Message(role="system", content="Be brief."), question])
        == "system: Be brief.\nuser: What is 2+3?"
    )
    assert prompt_text(Prompt(token_ids=(3, 4), reward={"name": "x"})) == "token ids [3, 4]"
