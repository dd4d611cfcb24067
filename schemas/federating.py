"""The configuration of federated learning.

SiteConfig        the section ``federation`` of a run that is a site
FederationConfig  the file of ``asyncflow federate``, the coordinator: a TOML file of its own
"""

import re
from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.errors import ConfigError
from schemas.federation import Codec, SiteName
from schemas.kafka import KafkaConfig, Principal
from schemas.secrets import holds_only_references, reveal
from schemas.sections import Host, Positive, Seconds, Section
from schemas.topics import FederationTopics

WeighBy = Literal["samples", "tokens", "equal"]
StalenessKind = Literal["constant", "polynomial", "hinge"]
StrategyName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"


def _is_reference(given: str) -> str:
    if given and not holds_only_references(given):
        raise ValueError(
            'the key is written out, and would be copied with the configuration; give "{env:NAME}" for an environment '
            'variable, or "{file:PATH}"'
        )
    return given


def _key_of(where: str, given: str) -> str | None:
    if not given:
        return None
    key = str(reveal(where, given)).strip()
    if not key:
        raise ConfigError(f"{where}: {given} is empty; expected the key that site and coordinator share")
    return key


class CodecConfig(Section):
    """How a site writes its updates."""

    name: Codec = "full"
    """``full`` float32; ``sparse`` the largest numbers alone; ``int8`` a byte each; ``sparse_int8`` both."""
    keep_share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """With ``sparse``: share of each tensor's numbers that is sent."""
    error_feedback: bool = True
    """Whether what a codec left out is added to the site's next update."""


class SiteConfig(Section):
    """A run that is a site of a federation: its learner starts from global versions and publishes updates."""

    name: str = ""
    """Of the federation; empty for a run that is none's site."""
    site: str = ""
    """Of this site: letters, digits, '_' and '-'; no other site of the federation may have it."""
    kafka: KafkaConfig = KafkaConfig()
    """The federation's broker, which is not the run's own."""
    store: str = ""
    """The federation's store as this site reaches it: an fsspec URL or a path."""
    key: str = ""
    """Where the key is with which updates are signed: ``"{env:NAME}"`` or ``"{file:PATH}"``. Empty for none."""
    asynchronous: bool = False
    """Whether it goes on by itself: publishes after ``steps``, and takes the newest global version at once."""
    steps: Positive = 10
    """Optimizer steps of an update where no order says."""
    not_selected: Literal["wait", "train"] = "wait"
    """What it does in a round that it is not asked in: waits for the next, or trains on by itself until then; what it
    learned then is dropped when it takes up the next global version."""
    keep_optimizer: bool = True
    """Whether the optimizer's moments stay when a global version is taken up."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    """FedProx: the loss has ``mu / 2`` times the squared distance to the global version; 0 for none."""
    codec: CodecConfig = CodecConfig()
    heartbeat_s: Seconds = 10.0
    """How often it says that it is there, and looks for orders."""
    link_bytes_s: Annotated[float, Field(gt=0)] | None = None
    """Of its link to the store, as declared to the coordinator; null if it is not known."""

    @property
    def is_site(self) -> bool:
        """Whether the run is a site at all."""
        return bool(self.name)

    @property
    def topics(self) -> FederationTopics:
        """The names of the federation's topics."""
        return FederationTopics(self.name)

    def signing_key(self) -> str | None:
        """What :attr:`key` refers to; null for none.

        Raises:
            ConfigError: it is not there.
        """
        return _key_of("federation.key", self.key)

    @field_validator("name")
    @classmethod
    def _is_topic_prefix(cls, name: str) -> str:
        return _topic_prefix(name) if name else name

    @field_validator("key")
    @classmethod
    def _says_where_it_is(cls, given: str) -> str:
        return _is_reference(given)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not self.is_site:
            return self
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.site):
            raise ValueError(
                f"federation.site = {self.site!r}: expected letters, digits, '_' and '-', at most 64, starting with a "
                "letter or digit; every site needs a name of its own"
            )
        if not self.store:
            raise ValueError("federation.store is empty; give the federation's store as this site reaches it")
        return self


def _topic_prefix(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ValueError("expected letters, digits, '_' and '-', at most 100, starting with a letter or digit")
    return name


class MemberConfig(Section):
    """A site as the coordinator knows it."""

    key: str = ""
    """Where the key is with which its updates are signed: ``"{env:NAME}"`` or ``"{file:PATH}"``. Empty for none."""
    principal: Principal | None = None
    """As the broker calls it, such as ``"User:CN=north"``; null for ``User:FEDERATION-SITE``."""

    @field_validator("key")
    @classmethod
    def _says_where_it_is(cls, given: str) -> str:
        return _is_reference(given)


class StrategyConfig(Section):
    """How updates become a global version."""

    name: StrategyName = "fedavg"
    """One that ``trainers/federation/strategies.py`` or one of ``modules`` registers."""
    arguments: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """Of the strategy, by name; such as ``{ learning_rate = 0.5 }``."""
    weigh_by: WeighBy = "samples"
    """What an update counts in proportion to; ``trimmed_mean`` and ``median`` count all alike."""
    staleness: StalenessKind = "polynomial"
    """How an update's share falls with the global versions since its base: ``polynomial`` as (1 + staleness) to the
    power of -``staleness_exponent``; ``hinge`` not at all for ``staleness_grace`` versions and then as a hyperbola."""
    staleness_exponent: Annotated[float, Field(ge=0)] = 0.5
    """How fast."""
    staleness_grace: Annotated[int, Field(ge=0)] = 4
    """With ``hinge``."""
    modules: tuple[str, ...] = ()
    """Modules that register further strategies: names that Python can import, or files."""


class SelectionConfig(Section):
    """Which sites a round asks, and for how much."""

    by: Literal["all", "random", "speed", "data"] = "all"
    """``random`` a share of those that are there; ``speed`` the fastest of them; ``data`` those that have seen least of
    their data so far."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the sites that are there, at least one; ``all`` takes all of them."""
    steps: Positive = 10
    """Optimizer steps that a site of middle speed is asked for."""
    adapt: bool = False
    """Whether fast sites are asked for more steps and slow ones for fewer, by the tokens a second that they declare, so
    that all are done at about the same time."""
    max_factor: Annotated[float, Field(ge=1)] = 4.0
    """With ``adapt``: most and, as a divisor, fewest of ``steps``."""
    groups_per_step: Positive | None = None
    """Prompts of a step; null leaves that to each site. With ``adapt`` a site of less memory than the others is asked
    for fewer."""
    gone_after_s: Seconds = 60.0
    """A site that was silent for so long is not asked."""

    def most(self, sites: int) -> int:
        """How many of so many sites are asked: at least one where there are any."""
        if self.by == "all" or not sites:
            return sites
        return max(1, ceil(self.share * sites))


class PrivacyConfig(Section):
    """Clipping, and Gaussian noise on what is merged."""

    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Longest Euclidean norm of an update: a longer one is scaled down to it; null for any."""
    noise_multiplier: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise on the sum of the clipped updates, as a multiple of ``clip_norm``; 0 for none."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """At which the spent budget, epsilon, is told; well below 1 divided by the number of sites."""
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    """The coordinator ends before a merge that would spend more; null for no end."""

    @model_validator(mode="after")
    def _noise_has_a_scale(self) -> Self:
        if self.noise_multiplier and self.clip_norm is None:
            raise ValueError(
                f"noise_multiplier = {self.noise_multiplier} needs clip_norm: noise protects a site only if its update "
                "has a longest length; give clip_norm, or leave noise_multiplier at 0"
            )
        if self.max_epsilon is not None and not self.noise_multiplier:
            raise ValueError(
                "max_epsilon is given and noise_multiplier is 0: without noise there is no budget to spend"
            )
        return self


class ChecksConfig(Section):
    """What an update must be to be merged. Names, shapes and finite numbers are always checked."""

    max_norm: Annotated[float, Field(gt=0)] | None = None
    """Longest Euclidean norm of an update; null for any."""
    max_times_median: Annotated[float, Field(gt=1)] | None = 10.0
    """Most that the norm of an update may be, as a multiple of the median of its round (in an asynchronous federation
    of the last one of each site); null for any. Looked at where there are three or more to compare, and never where
    noise is added: whose update is merged would depend on the others'."""


class FederationConfig(Section):
    """Everything that the coordinator of a federation reads."""

    name: str = "federation"
    """Prefix of the topics."""
    seed: int = 0
    """Of the choice of sites. Noise is drawn from the operating system."""
    kafka: KafkaConfig = KafkaConfig()
    """The federation's broker."""
    store: str = "federation"
    """The federation's store: an fsspec URL or a path."""
    model: str = ""
    """What the first global version is: a directory with safetensors, of a model or of an adapter. Only read when there
    is no version yet."""
    base: str = ""
    """Where ``model`` is an adapter: the directory of the model that it belongs to."""
    keep: Positive = 3
    """Newest global versions that stay in the store."""
    keep_updates: bool = False
    """Whether the files of updates stay in the store; otherwise they are removed after the merge."""
    asynchronous: bool = False
    """Whether sites go on by themselves, and updates are merged as they come; otherwise there are rounds."""
    buffer: Positive = 1
    """With ``asynchronous``: updates of one merge."""
    max_staleness: Annotated[int, Field(ge=0)] = 20
    """With ``asynchronous``: an update is left out whose base is more global versions old. ``fedasync`` needs the bases
    themselves: ``keep`` has to be larger."""
    rounds: Positive | None = None
    """Merges after which the coordinator ends; null for none."""
    deadline_s: Seconds = 600.0
    """How long a round waits for the updates it asked for."""
    quorum: Positive = 1
    """Updates without which a round merges nothing; at its deadline another begins from the same version."""
    sites: dict[SiteName, MemberConfig] = Field(default_factory=dict)
    """Who may take part, by name; empty for everybody who can write to ``F.updates``."""
    strategy: StrategyConfig = StrategyConfig()
    selection: SelectionConfig = SelectionConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    checks: ChecksConfig = ChecksConfig()
    spool: str = ""
    """A local directory for what updates say until they are merged, with room for a round of them in float32; empty for
    the system's place for temporary files."""
    chunk_bytes: Annotated[int, Field(ge=1 << 16)] = 64 << 20
    """Memory for the numbers that a strategy sees at a time, whatever the number of sites."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the Prometheus endpoint; 0 for none."""
    metrics_host: Host = "127.0.0.1"
    """Address that the Prometheus endpoint listens on. Whoever reaches it reads figures, and needs no key."""

    @field_validator("name")
    @classmethod
    def _is_topic_prefix(cls, name: str) -> str:
        return _topic_prefix(name)

    @model_validator(mode="after")
    def _noise_knows_shares(self) -> Self:
        if self.privacy.noise_multiplier and self.strategy.weigh_by != "equal":
            raise ValueError(
                f"privacy.noise_multiplier = {self.privacy.noise_multiplier} with strategy.weigh_by = "
                f'"{self.strategy.weigh_by}": how much a site counts would tell how much it has; set strategy.weigh_by '
                '= "equal"'
            )
        return self

    @model_validator(mode="after")
    def _all_or_none_sign(self) -> Self:
        unsigned = sorted(name for name, member in self.sites.items() if not member.key)
        if unsigned and len(unsigned) < len(self.sites):
            raise ValueError(
                f"sites {', '.join(unsigned)} have no key and others have: whoever can write to the topic could speak "
                "for them; give all of them a key, or none"
            )
        return self

    @model_validator(mode="after")
    def _has_sites_enough(self) -> Self:
        count, private = len(self.sites), self.privacy.noise_multiplier
        if not count:
            return self
        if self.asynchronous and private and self.buffer > count:
            raise ValueError(
                f"buffer = {self.buffer} exceeds the {count} sites, and with noise each is part of a merge once: "
                "nothing would be merged; lower buffer"
            )
        if self.asynchronous:
            return self
        if self.quorum > count:
            raise ValueError(f"quorum = {self.quorum} exceeds the {count} sites: no round would be merged")
        if self.quorum > self.selection.most(count):
            raise ValueError(
                f"quorum = {self.quorum} exceeds the {self.selection.most(count)} sites that a round asks, with "
                f"selection.share = {self.selection.share:g} of {count}: no round would begin; raise the share, or "
                "lower quorum"
            )
        return self

    @property
    def topics(self) -> FederationTopics:
        """The names of the federation's topics."""
        return FederationTopics(self.name)

    def key_of(self, site: str) -> str | None:
        """The key of a site's signatures; null for none.

        Raises:
            ConfigError: it is not where the configuration says.
        """
        member = self.sites.get(site)
        return _key_of(f"sites.{site}.key", member.key) if member else None
