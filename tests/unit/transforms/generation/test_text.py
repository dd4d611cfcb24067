"""Text of tokens as they come."""

import random

import pytest

from transforms.generation.text import TextStream

EURO = "€".encode()


def decode(token_ids):
    """Tokens are bytes, as in the tokenizers of most models."""
    return bytes(token_ids).decode(errors="replace")


def test_a_character_is_shown_when_it_is_whole():
    stream = TextStream(decode)
    assert [stream.feed([byte]) for byte in b"a" + EURO + b"b"] == ["a", "", "", "€", "b"]
    assert stream.finish() == ""


def test_what_never_becomes_whole_is_shown_in_the_end():
    stream = TextStream(decode)
    assert stream.feed([*b"a", EURO[0]]) == ""
    assert stream.finish() == "a\ufffd"


def test_pieces_are_the_whole_whatever_they_are_cut_into():
    draw = random.Random(1)
    for _ in range(200):
        text = "".join(draw.choices("ab €äß🙂\n", k=30)).encode()
        stream, shown, place = TextStream(decode), "", 0
        while place < len(text):
            size = draw.randint(1, 5)
            shown += stream.feed(text[place : place + size])
            place += size
        assert shown + stream.finish() == text.decode()


def test_a_word_that_loses_its_space_at_the_beginning_keeps_it():
    """As SentencePiece does."""
    stream = TextStream(lambda ids: "".join(["<s>", " one", " two"][number] for number in ids).removeprefix(" "))
    assert stream.feed([1]) + stream.feed([2]) + stream.feed([1]) == "one two one"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_stop_text_and_what_follows_it_are_never_shown(size):
    text = b"one two END three END"
    stream = TextStream(decode, ("END", "never"))
    shown = "".join(stream.feed(text[place : place + size]) for place in range(0, len(text), size))
    assert shown + stream.finish() == "one two "


def test_the_beginning_of_a_stop_text_is_shown_once_it_is_none():
    stream = TextStream(decode, ("END",))
    assert stream.feed(b"one E") == "one "
    assert stream.feed(b"N") == ""
    assert stream.feed(b"V") == "ENV"
    assert stream.feed(b" EN") == " "
    assert stream.finish() == "EN"
