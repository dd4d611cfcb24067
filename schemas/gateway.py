"""How people and programs reach the newest weights: the section ``gateway`` of the configuration."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from schemas.sections import Positive, Section

Offered = Literal["thumb", "score", "correction"]
Label = Annotated[str, Field(min_length=1, max_length=200)]

TEXT: Final = "{text}"
"""In a template: where goes what a person types."""


class PageConfig(Section):
    """What the page is for: a conversation about anything, or one thing that people bring and get back."""

    task: Annotated[str, Field(min_length=1, max_length=256)] = "chat"
    """Of what is asked on the page: for grouping figures, and for the baseline that its rewards are compared with."""
    template: str = ""
    """Instruction that the page puts around what a person types, at ``{text}``; empty to send that alone. Programs
    send whole messages, to which nothing is added."""
    conversation: bool = True
    """Whether a question goes with the questions and answers before it."""
    ask_label: Label = "Your message"
    """Of the box to type in, such as "English sentence"."""
    hint: str = "Ask something. Every answer can be judged, and what you say of it trains the model."
    """What the page says before anything is asked."""
    examples: tuple[Label, ...] = ()
    """Texts that one click puts into the box."""
    judgements: Annotated[tuple[Offered, ...], Field(min_length=1)] = ("thumb", "score", "correction")
    """How an answer can be judged, in the order of the page. A correction that comes first is open from the start,
    for pages whose people edit what they got."""
    correct_label: Label = "What should have been answered"
    """Of the correction."""
    choices: dict[Label, Label] = Field(default_factory=dict)
    """Right answers to choose from, by what their button says: a correction by one click. None for free text, which
    begins as the answer that is corrected."""

    @model_validator(mode="after")
    def _is_of_one_mind(self) -> Self:
        if self.template and TEXT not in self.template:
            raise ValueError(f"template {self.template[:80]!r} does not say where the text goes; write {TEXT} there")
        if len(set(self.judgements)) < len(self.judgements):
            raise ValueError(f"judgements {', '.join(self.judgements)}: give each once")
        if self.choices and "correction" not in self.judgements:
            raise ValueError("choices are corrections, which are not offered; add 'correction' to judgements")
        return self


class GatewayConfig(Section):
    """A gateway: a web page and an OpenAI-compatible route, whose every answer can be judged."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port to listen on."""
    max_in_flight: Positive = 64
    """Answers being generated at once; further requests are refused with 503."""
    address_rate_per_s: Annotated[float, Field(gt=0)] = 20.0
    """Requests from one address that are served, on average; more are refused with 429."""
    address_burst: Positive = 200
    """Requests from one address that are served at once."""
    max_prompt_bytes: Positive = 1 << 16
    """Longest request body."""
    trusts_user_header: bool = False
    """Take the user's name from the header ``X-AsyncFlow-User``, set by a proxy that has authenticated them; else a
    browser is known by a cookie and a program by the field ``user`` of its requests."""
    title: str = "AsyncFlow"
    """Of the page."""
    page: PageConfig = PageConfig()
    """What the page is for."""
