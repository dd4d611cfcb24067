"""What deploy/ has from the code is what the code says."""

from tests.support.deploy import DEPLOY, script


def test_the_files_are_what_the_code_says():
    for name, text in script("generate.py").files().items():
        assert (DEPLOY / name).read_text() == text, f"deploy/{name} is old: python deploy/generate.py writes it"
