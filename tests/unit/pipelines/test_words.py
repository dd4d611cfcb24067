"""How ages, counts and reasons are said."""

from pipelines.words import counted, duration, listed, printable


def test_durations_are_said_in_the_unit_that_fits():
    told = [duration(each) for each in (8.4, 119, 150, 9000, 200000)]
    assert told == ["8 s", "119 s", "2 min", "2.5 h", "2.3 days"]


def test_counts_and_reasons():
    assert [counted(number, "group") for number in (0, 1, 12000)] == ["0 groups", "1 group", "12,000 groups"]
    assert listed({"a": 1, "b": 3}) == "3 b, 1 a"
    assert listed({}) == ""


def test_what_a_terminal_would_obey_is_left_out():
    assert printable("a\x1b[31mb\x9b2Jc\r\nd\u202e é😀") == "a [31mb 2Jc d é😀"
