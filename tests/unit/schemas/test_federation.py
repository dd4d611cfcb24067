"""Records of a federation: signatures, names that become paths, configurations that contradict themselves."""

import pytest
from pydantic import ValidationError

from schemas.config import section_of, validate
from schemas.errors import ConfigError, RecordError
from schemas.federating import FederationConfig
from schemas.federation import SiteUpdate, decode_rounds_entry, update_path
from schemas.layers import layer_of
from schemas.roles import federation_grants
from schemas.topics import FederationTopics

UPDATE = SiteUpdate(site="north", sequence=7, base_version=12, samples=1, tokens=1, steps=1, bytes=1,
                    manifest_sha256="ab" * 32)  # fmt: skip


def test_a_signature_is_of_the_whole_record_the_federation_and_the_key():
    signed = SiteUpdate.decode(UPDATE.signed("hospitals", "secret").encode())
    assert signed.is_by("hospitals", "secret")
    assert not signed.is_by("hospitals", "another")
    assert not signed.is_by("clinics", "secret")
    assert not UPDATE.is_by("hospitals", "secret")
    for change in ({"site": "south"}, {"sequence": 8}, {"samples": 2}, {"manifest_sha256": "cd" * 32}, {"round": 1}):
        assert not signed.model_copy(update=change).is_by("hospitals", "secret"), change
    assert UPDATE.signed("hospitals", None) == UPDATE


@pytest.mark.parametrize("site", ["", ".", "..", "a/b", "../north", "a.b", "ä", "a" * 65, "-a"])
def test_no_name_of_a_site_leads_out_of_the_store(site):
    with pytest.raises(ValidationError):
        SiteUpdate(**(UPDATE.model_dump(exclude={"schema_version"}) | {"site": site}))


def test_where_an_update_lies():
    assert update_path("s3://federation/", "north", 7) == "s3://federation/updates/north/00000007"


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"kind": "party"}', b'{"kind": "merge"}', b"\xff"])
def test_rubbish_is_no_entry(value):
    with pytest.raises(RecordError):
        decode_rounds_entry(value)


def test_a_record_beyond_all_measure_is_not_parsed():
    with pytest.raises(RecordError, match="too_large"):
        SiteUpdate.decode(UPDATE.encode() + b" " * 9000)


def test_a_site_may_write_what_it_says_and_nothing_else():
    written = {grant.name for grant in federation_grants(FederationTopics("f"))
               if grant.role == "site" and "Write" in grant.operations}  # fmt: skip
    assert written == {"f.sites", "f.updates"}
    kinds = {grant.kind for grant in federation_grants(FederationTopics("f")) if grant.role == "site"}
    assert kinds == {"topic"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "a b"', "expected letters, digits"),
        ('[sites.north]\nkey = "secret"', "the key is written out"),
        ('[sites.north]\nkey = "{env:N}"\n[sites.south]', "sites south have no key and others have"),
        ("quorum = 2\n[sites.north]", "quorum = 2 exceeds the 1 sites"),
        (
            'quorum = 2\nselection = { by = "speed", share = 0.3 }\n[sites.a]\n[sites.b]\n[sites.c]',
            "quorum = 2 exceeds the 1 sites that a round asks, with selection.share = 0.3 of 3",
        ),
        (
            'asynchronous = true\nbuffer = 2\nstrategy.weigh_by = "equal"\n[privacy]\nnoise_multiplier = 1.0\n'
            "clip_norm = 1.0\n[sites.a]",
            "buffer = 2 exceeds the 1 sites",
        ),
        ("[privacy]\nnoise_multiplier = 1.0", "needs clip_norm"),
        ("[privacy]\nnoise_multiplier = 1.0\nclip_norm = 1.0", 'set strategy.weigh_by = "equal"'),
        ("[privacy]\nmax_epsilon = 1.0", "without noise there is no budget"),
        ('[stratgy]\nname = "x"', "did you mean strategy?"),
    ],
)
def test_configurations_of_a_coordinator_that_cannot_work(text, said):
    with pytest.raises(ConfigError) as caught:
        section_of(FederationConfig, [layer_of("f.toml", text)], "f.toml")
    assert said in str(caught.value)


def test_as_many_sites_as_are_needed_are_enough():
    text = 'quorum = 2\nselection = { by = "speed", share = 0.4 }\n[sites.a]\n[sites.b]\n[sites.c]'
    assert section_of(FederationConfig, [layer_of("f.toml", text)], "f.toml").quorum == 2
    text = "quorum = 3\nselection = { share = 0.1 }\n[sites.a]\n[sites.b]\n[sites.c]"
    assert section_of(FederationConfig, [layer_of("f.toml", text)], "f.toml").selection.most(3) == 3, "all are asked"
    text = "quorum = 3\nasynchronous = true\n[sites.a]"
    assert section_of(FederationConfig, [layer_of("f.toml", text)], "f.toml").asynchronous, "which has no quorum"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "f"}, "every site needs a name of its own"),
        ({"name": "f", "site": "north"}, "federation.store is empty"),
        ({"name": "f", "site": "../x", "store": "s"}, "every site needs a name of its own"),
        ({"key": "secret"}, "the key is written out"),
    ],
)
def test_sections_of_a_site_that_cannot_work(section, said):
    with pytest.raises(ConfigError) as caught:
        validate({"federation": section}, "run.toml")
    assert said in str(caught.value)
