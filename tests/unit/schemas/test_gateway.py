"""The page of a gateway: what is contradictory is refused in words."""

import pytest
from pydantic import ValidationError

from schemas.gateway import GatewayConfig, PageConfig


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"template": "Translate this."}, r"does not say where the text goes; write \{text\} there"),
        ({"judgements": ()}, "at least 1 item"),
        ({"judgements": ("thumb", "thumb")}, "thumb, thumb: give each once"),
        ({"judgements": ("thumb",), "choices": {"ORDER": "ORDER: yes"}}, "add 'correction' to judgements"),
        ({"choices": {"ORDER": ""}}, "at least 1 character"),
        ({"examples": ("",)}, "at least 1 character"),
        ({"hints": "a"}, "Extra inputs"),
    ],
)
def test_what_contradicts_itself_is_refused(given, reason):
    with pytest.raises(ValidationError, match=reason):
        PageConfig(**given)


def test_without_a_word_it_is_a_conversation():
    page = GatewayConfig().page
    assert (page.template, page.conversation, page.choices, page.task) == ("", True, {}, "chat")
    assert page.judgements == ("thumb", "score", "correction")
