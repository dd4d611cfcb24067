"""What was found, for people, for programs, and to paste into an issue."""

import getpass
import json
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pipelines.doctor.finding import Finding, Subject, Verdict
from pipelines.local.paths import cache_place
from schemas.errors import ConfigError
from schemas.secrets import is_reference, is_secret, reveal, without_secrets

_MARKS: Final[dict[Verdict, str]] = {"ok": "ok", "warning": "warning", "problem": "PROBLEM", "skipped": "skipped"}
_LOCAL: Final = ("127.0.0.1", "localhost")
_SHORTEST: Final = 3
"""A shorter name would be found within words."""
_ADDRESS: Final = re.compile(r"\b(?!127\.0\.0\.1\b)\d{1,3}(?:\.\d{1,3}){3}\b")
_ACCOUNT: Final = re.compile(r"//[^/@\s]+@")
_DOMAIN: Final = re.compile(r"(?<=<host>)(\.[A-Za-z0-9-]+)+")
"""Behind this host's name; whether it has one is not asked, for that could take a name server many seconds."""


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether anything has to be mended."""
    return any(each.verdict == "problem" for each in findings)


def render(findings: Sequence[Finding], subject: Subject) -> str:
    """A line a finding, what to do below it, and at the end the block for an issue."""
    findings = _without_secrets(findings, subject)
    width = max(len(each.name) for each in findings)
    lines = []
    for each in findings:
        lines.append(f"{_MARKS[each.verdict]:<8} {each.name:<{width}}  {each.found}")
        if each.remedy:
            lines.append(f"{'':<8} {'':<{width}}  → {each.remedy}")
    lines += ["", _summary(findings), "", "To paste into an issue:", "", issue(findings, subject)]
    return "\n".join(lines) + "\n"


def to_json(findings: Sequence[Finding], subject: Subject) -> str:
    """The same for programs."""
    findings = _without_secrets(findings, subject)
    tree = {
        "ok": not has_problem(findings),
        "checks": [each._asdict() for each in findings],
        "issue": issue(findings, subject),
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def issue(findings: Sequence[Finding], subject: Subject) -> str:
    """Plain text without names of hosts and people, paths of home directories, addresses and secrets."""
    words = private_words(subject)
    found = [(each, " ".join(each.found.split())) for each in _without_secrets(findings, subject)]
    lines = [f"{each.verdict}: {each.name}: {scrub(text, words)}" for each, text in found]
    return "\n".join(["```text", *lines, "```"])


def _without_secrets(findings: Sequence[Finding], subject: Subject) -> list[Finding]:
    """Names and addresses are for those who sit at this machine, secrets are for nobody."""
    _look_up(subject.settings.kafka.client)
    return [each._replace(found=without_secrets(each.found)) for each in findings]


def scrub(text: str, words: Mapping[str, str]) -> str:
    """The text with private words replaced, and what looks like an address or an account."""
    text = _DOMAIN.sub("", _replaced(text, words))
    return _ADDRESS.sub("<address>", _ACCOUNT.sub("//<account>@", text))


def _replaced(text: str, words: Mapping[str, str]) -> str:
    """The longest first: one may be part of another."""
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= _SHORTEST:
            text = text.replace(word, words[word])
    return text


def private_words(subject: Subject) -> dict[str, str]:
    """What is not for others, and what is written in its stead."""
    words = {
        str(cache_place()): "<cache>",
        str(Path.cwd()): "<here>",
        str(Path.home()): "~",
        socket.gethostname(): "<host>",
        _user(): "<user>",
    }
    for broker in (subject.bootstrap or "").split(","):
        host = broker.rpartition(":")[0]
        words |= {host: "<broker>"} if host and host not in _LOCAL else {}
    words |= {name: f"<{key}>" for key, name in _look_up(subject.settings.kafka.client).items() if not is_secret(key)}
    return {word: stead for word, stead in words.items() if word not in _LOCAL}


def _look_up(client: Mapping[str, Any]) -> dict[str, str]:
    """What references stand for in this process, by key; a message of Kafka's client could hold it."""
    found = {}
    for key, value in client.items():
        if is_reference(value):
            with suppress(ConfigError):  # it stands for nothing here
                found[key] = str(reveal(key, value))
    return found


def _user() -> str:
    """Of this process; empty where it has no name, or one that is a common word."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return ""
    return "" if name == "root" else name


def _summary(findings: Sequence[Finding]) -> str:
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in ("problem", "warning")}
    if counts["problem"]:
        return f"{counts['problem']} to mend, {counts['warning']} to know of"
    return f"nothing to mend, {counts['warning']} to know of"
