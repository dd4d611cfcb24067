"""Secrets: references that travel, what they stand for only where it is used, and what is never shown."""

import pickle

import pytest

from schemas import secrets
from schemas.config import KafkaConfig, WorkerConfig, validate
from schemas.errors import ConfigError
from schemas.secrets import is_secret, masked, reveal, without_secrets
from schemas.tokens import token_provider


def test_a_reference_is_looked_up_when_a_client_is_made_and_not_before(monkeypatch, tmp_path):
    (tmp_path / "password").write_text("from a file\n")
    client = {"sasl_plain_password": "{env:KAFKA_PW}", "ssl_password": f"{{file:{tmp_path}/password}}", "retries": 3}
    kafka = KafkaConfig(client=client)
    monkeypatch.setenv("KAFKA_PW", "from the environment")
    options = kafka.producer_options("run.learner")
    assert options["sasl_plain_password"] == "from the environment"
    assert (options["ssl_password"], options["retries"]) == ("from a file", 3)
    for copy in (kafka.model_dump_json(), repr(kafka), pickle.dumps(kafka).decode("latin-1")):
        assert "from " not in copy


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{env:ASYNCFLOW_NO_SUCH}", "kafka.client.x: the environment variable ASYNCFLOW_NO_SUCH is not set"),
        ("{file:/no/such}", "kafka.client.x: the file /no/such cannot be read"),
    ],
)
def test_what_is_not_there_is_named(value, words):
    with pytest.raises(ConfigError, match=words):
        reveal("kafka.client.x", value)


def test_what_is_no_reference_stays_as_it_is():
    for value in ("plain", 3, True, "{other:X}", "env:X"):
        assert reveal("key", value) == value


@pytest.mark.parametrize("key", ["sasl_plain_password", "ssl_password", "oauth_client_secret", "api-key"])
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(key):
    assert is_secret(key)
    with pytest.raises(ConfigError, match="written out") as caught:
        validate({"kafka": {"client": {key: "hunter2"}}}, "run.toml")
    assert "hunter2" not in str(caught.value)
    assert "{env:NAME}" in str(caught.value)
    with pytest.raises(ConfigError, match=r"written out.* worker.api_key") as caught:
        validate({"worker": {"engine_args": {key: "hunter2"}}}, "run.toml")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["hunter2{env:PW}", "{env:PW}hunter2", "{env:PW} {env:PW}hunter2", "{env:}hunter2"])
def test_a_secret_of_which_a_part_is_written_out_is_refused_too(value):
    for tree in ({"kafka": {"client": {"ssl_password": value}}}, {"worker": {"api_key": value}}):
        with pytest.raises(ConfigError, match="written out") as caught:
            validate(tree, "run.toml")
        assert "hunter2" not in str(caught.value)
    assert masked({"ssl_password": value}) == {"ssl_password": "***"}


def test_a_secret_may_have_several_places(monkeypatch):
    monkeypatch.setenv("FIRST", "a")
    monkeypatch.setenv("SECOND", "b")
    assert WorkerConfig(api_key="{env:FIRST}{env:SECOND}").key() == "ab"


def test_a_token_is_looked_up_again_whenever_it_is_asked_for(tmp_path):
    (tmp_path / "token").write_text("first\n")
    provider = token_provider(f"{{file:{tmp_path / 'token'}}}")
    assert provider.token() == "first"
    (tmp_path / "token").write_text("second\n")
    assert provider.token() == "second"
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match=r"kafka\.client\.sasl_oauth_token: the file .* cannot be read"):
        provider.token()


def test_a_secret_beside_another_fault_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        validate({"kafka": {"partition": 3, "client": {"sasl_plain_password": ["hunter2"]}}}, "run.toml")
    assert "hunter2" not in str(caught.value)


def test_people_see_references_and_no_secrets():
    tree = {"client": {"sasl_plain_password": "hunter2", "ssl_password": "{env:X}", "retries": 3}, "max_tokens": 5}
    assert masked(tree) == {
        "client": {"sasl_plain_password": "***", "ssl_password": "{env:X}", "retries": 3}, "max_tokens": 5,
    }  # fmt: skip


def test_the_key_of_workers_is_looked_up_where_the_configuration_says(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKER_KEY", "abc")
    file = tmp_path / "key"
    file.write_text("def\n")
    assert WorkerConfig().key() is None
    assert WorkerConfig(api_key="{env:WORKER_KEY}").key() == "abc"
    assert WorkerConfig(api_key=f"{{file:{file}}}").key() == "def"
    for wrong in ("", "two words", "clé", "a\nb"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="holds no key") as caught:
            WorkerConfig(api_key=f"{{file:{file}}}").key()
        assert not wrong or wrong not in str(caught.value)
    with pytest.raises(ConfigError, match=r"worker.api_key: the environment variable NO_SUCH is not set"):
        WorkerConfig(api_key="{env:NO_SUCH}").key()


def test_a_key_of_workers_that_is_written_out_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match=r"worker.api_key = \*\*\*: the key is written out") as caught:
        validate({"worker": {"api_key": "hunter2"}}, "run.toml")
    assert "hunter2" not in str(caught.value)


def test_what_was_revealed_is_hidden_in_what_others_say(monkeypatch, tmp_path):
    monkeypatch.setattr(secrets, "_hidden", {})  # other tests of this process reveal the same
    (tmp_path / "key").write_text(" hunter2-and-more \n")
    for name, value in (("PW", "hunter2"), ("SHORT", "abc"), ("LOGIN", "learner")):
        monkeypatch.setenv(name, value)
    assert without_secrets("hunter2") == "hunter2", "nobody has looked there yet"
    for reference in ("{env:PW}", "{env:SHORT}", f"{{file:{tmp_path}/key}}"):
        reveal("kafka.client.ssl_password", reference)
    reveal("kafka.client.sasl_plain_username", "{env:LOGIN}")
    assert without_secrets("you sent hunter2 and hunter2-and-more, abc") == "you sent *** and ***, abc"
    assert without_secrets("a learner") == "a learner", "a name is no secret"


def test_an_old_secret_stays_hidden_for_long_but_not_for_ever(monkeypatch):
    for name, value in (("PW", "the first"), ("OTHER", "one that stays")):
        monkeypatch.setenv(name, value)
        reveal("api_key", f"{{env:{name}}}")
    for number in range(200):
        monkeypatch.setenv("PW", f"renewed-{number}-times")
        for name in ("PW", "OTHER"):
            reveal("api_key", f"{{env:{name}}}")
    assert without_secrets("renewed-199-times renewed-180-times one that stays") == "*** *** ***"
    assert without_secrets("the first, renewed-20-times") == "the first, renewed-20-times"


def test_each_part_of_a_secret_is_hidden(monkeypatch):
    for name in ("FIRST", "SECOND"):
        monkeypatch.setenv(name, f"{name}-half")
    reveal("worker.api_key", "{env:FIRST}{env:SECOND}")
    assert without_secrets("it began with FIRST-half; FIRST-halfSECOND-half") == "it began with ***; ***"
