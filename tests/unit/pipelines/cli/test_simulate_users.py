"""The options of ``asyncflow simulate-users``: what one application would not hear of is refused."""

import pytest

from pipelines.cli.main import main


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--application", "support"], "give --data DIR"),
        (["--application", "support", "--data", "/none"], "lacks bitext/train.csv"),
        (["--application", "support", "--data", "/none", "--change-at", "3"], "--change-at is for --application chat"),
        (["--application", "support", "--first", "short"], "--first is for --application chat, given support"),
        (["--data", "/none"], "--data is for --application support, given chat"),
        (["--corrections", "0.5"], "--corrections is for --application support, given chat"),
        (["--first", "shrt"], "did you mean short"),
    ],
)
def test_a_mistake_is_one_sentence(given, reason, capsys):
    assert main(["simulate-users", *given]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "Traceback" not in told
