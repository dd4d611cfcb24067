"""Checks of what a text is like: the instructions of IFEval that a program can see followed or not.

Zhou et al. 2023, arXiv:2311.07911. Every check is a pure function ``(text, **arguments) -> bool``, named as the
benchmark names the instruction, with its arguments. They judge as the benchmark's strict variant, but for these:

- sentences are found by their stops and not by a trained splitter, words in capitals by letters and not by a tokeniser;
- upper and lower case are looked at, the language is not;
- keywords are words and not regular expressions; other characters than letters are counted as they are.

All are linear in the text, whatever it is.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError, validate_call

from schemas.records import first_fault

Relation = Literal["less than", "at least"]
Number = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Words = Annotated[tuple[Text, ...], Field(min_length=1, max_length=100)]
Check = Callable[..., bool]

_CHECKS: Final[dict[str, Check]] = {}
_CONSTRAINED: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS: Final = frozenset({"mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "vs.", "e.g.", "i.e.", "etc."})


def follows(name: str, text: str, arguments: dict[str, Any]) -> bool:
    """Whether a text follows an instruction; a blank one follows none.

    Args:
        name: of the instruction, such as ``punctuation:no_comma``.
        text: the answer.
        arguments: of the instruction, such as ``{"num_bullets": 3}``.

    Raises:
        ValueError: there is no such check, or it does not take these arguments.
    """
    if name not in _CHECKS:
        raise ValueError(f"no check of instruction {name[:80]!r}; there are {', '.join(checkable())}")
    try:
        return bool(text.strip()) & _CHECKS[name](text, **arguments)
    except ValidationError as error:
        raise ValueError(f"instruction {name}: {first_fault(error)}") from error


def checkable() -> tuple[str, ...]:
    """The names of all instructions that can be checked."""
    return tuple(sorted(_CHECKS))


def _checks(name: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        _CHECKS[name] = validate_call(config=ConfigDict(strict=False))(function)
        return function

    return register


def _compare(found: int, relation: Relation, number: int) -> bool:
    return found < number if relation == "less than" else found >= number


@_checks("keywords:existence")
def existence(text: str, *, keywords: Words) -> bool:
    """All of the keywords are in it, in whatever case."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


@_checks("keywords:frequency")
def frequency(text: str, *, keyword: Text, frequency: Number, relation: Relation) -> bool:
    """A keyword is in it so often, in whatever case."""
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


@_checks("keywords:forbidden_words")
def forbidden_words(text: str, *, forbidden_words: Words) -> bool:
    """None of the words is in it as a word."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


@_checks("keywords:letter_frequency")
def letter_frequency(
    text: str,
    *,
    letter: Annotated[str, Field(min_length=1, max_length=1)],
    let_frequency: Number,
    let_relation: Relation,
) -> bool:
    """A letter, or another character, is in it so often, in whatever case."""
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


@_checks("length_constraints:number_words")
def number_words(text: str, *, num_words: Number, relation: Relation) -> bool:
    r"""It has so many words: runs of ``\w``."""
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


@_checks("length_constraints:number_sentences")
def number_sentences(text: str, *, num_sentences: Number, relation: Relation) -> bool:
    """It has so many sentences."""
    return _compare(count_sentences(text), relation, num_sentences)


def count_sentences(text: str) -> int:
    """Sentences of a text: what ends with a stop before white space, or with the text; abbreviations do not end one."""
    words = text.split()
    ends = [_ends_sentence(word) for word in words]
    return sum(ends) + bool(words and not ends[-1])


def _ends_sentence(word: str) -> bool:
    bare = word.strip("\"'()[]*_\u201c\u201d\u2018\u2019")
    return bare.endswith((".", "!", "?")) and any(map(str.isalnum, bare)) and bare.lower() not in _ABBREVIATIONS


@_checks("length_constraints:number_paragraphs")
def number_paragraphs(text: str, *, num_paragraphs: Number) -> bool:
    """It has so many paragraphs, ``***`` between them, and none is blank but for the first and the last."""
    paragraphs = text.split("***")
    inner = paragraphs[1:-1]
    found = len(inner) + sum(bool(paragraph.strip()) for paragraph in (paragraphs[0], *paragraphs[1:][-1:]))
    return all(paragraph.strip() for paragraph in inner) and found == num_paragraphs


@_checks("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    text: str, *, num_paragraphs: Number, nth_paragraph: Annotated[int, Field(ge=1)], first_word: Text
) -> bool:
    """It has so many paragraphs, blank lines between them, and the n-th, from 1, begins with that word."""
    paragraphs = text.split("\n\n")
    if sum(bool(paragraph.strip()) for paragraph in paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    return bool(words) and _bare(words[0]) == first_word.lower()


def _bare(word: str) -> str:
    return re.split(r"[.,?!'\"]", word.lower().lstrip("'").lstrip('"'), maxsplit=1)[0]


@_checks("detectable_content:number_placeholders")
def number_placeholders(text: str, *, num_placeholders: Number) -> bool:
    """It has at least so many placeholders in square brackets, such as ``[name]``."""
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


@_checks("detectable_content:postscript")
def postscript(text: str, *, postscript_marker: Text) -> bool:
    """It has a postscript: the marker, with or without blanks between its letters."""
    marker = re.escape(postscript_marker.strip().lower()).replace(r"\.", r"\.\s?")
    return bool(re.search(marker, text.lower()))


@_checks("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, *, num_bullets: Number) -> bool:
    """It has exactly so many lines that begin with ``-``, or with one ``*``."""
    lines = [line.lstrip() for line in text.split("\n")]
    return sum(bool(re.match(r"-|\*[^*]", line)) for line in lines) == num_bullets


@_checks("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    """It has one of the three answers of the benchmark, such as ``My answer is yes.``."""
    return any(answer in text for answer in _CONSTRAINED)


@_checks("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, *, num_highlights: Number) -> bool:
    """It has at least so many highlights, ``*one*`` or ``**one**``."""
    single = (found.strip("*").strip() for found in re.findall(r"\*[^\n*]*\*", text))
    double = (found.strip("*").strip() for found in re.findall(r"\*\*[^\n*]*\*\*", text))
    return sum(map(bool, single)) + sum(map(bool, double)) >= num_highlights


@_checks("detectable_format:multiple_sections")
def multiple_sections(text: str, *, section_spliter: Text, num_sections: Number) -> bool:
    """It has at least so many sections, each begun by that word and a number."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d", text)) >= num_sections


@_checks("detectable_format:json_format")
def json_format(text: str) -> bool:
    """It is JSON and nothing else, in a fence of Markdown or not."""
    fenced = re.sub(r"\A```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```")
    try:
        json.loads(fenced.strip())
    except (ValueError, RecursionError):
        return False
    return True


@_checks("detectable_format:title")
def title(text: str) -> bool:
    """It has a title, ``<<like this>>``, in one line."""
    return any(_inside(line).lstrip("<").rstrip(">").strip() for line in text.split("\n"))


def _inside(line: str) -> str:
    begin, end = line.find("<<"), line.rfind(">>")
    return line[begin + 2 : end] if 0 <= begin < end else ""


@_checks("combination:two_responses")
def two_responses(text: str) -> bool:
    """It has two different answers, six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


@_checks("combination:repeat_prompt")
def repeat_prompt(text: str, *, prompt_to_repeat: Text) -> bool:
    """It begins with the prompt, in whatever case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_checks("startend:end_checker")
def end_checker(text: str, *, end_phrase: Text) -> bool:
    """It ends with that phrase, in whatever case, within quotation marks or not."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_checks("startend:quotation")
def quotation(text: str) -> bool:
    """It stands between double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


@_checks("change_case:capital_word_frequency")
def capital_word_frequency(text: str, *, capital_frequency: Number, capital_relation: Relation) -> bool:
    """It has so many words in capitals; the parts of a word with a hyphen are one."""
    capitals = sum(word.isupper() for word in re.findall(r"[\w'-]+", text))
    return _compare(capitals, capital_relation, capital_frequency)


@_checks("change_case:english_capital")
def english_capital(text: str) -> bool:
    """Its letters are capitals."""
    return text.isupper()


@_checks("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """Its letters are small."""
    return text.islower()


@_checks("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """It has no comma."""
    return "," not in text
