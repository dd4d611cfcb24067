"""How the updates of a merge become one: each strategy a pure function, by name.

    @strategy(adds_up=True)
    def half_step(updates_SN, shares_S, *, learning_rate: float = 0.5):
        return learning_rate * (shares_S @ updates_SN)

A strategy gets some numbers of all updates at a time, and never looks beyond them: the coordinator calls it with as
many as fit into its memory, again and again. What it returns is added to the global version. It takes what it names of
``updates_SN``, ``shares_S`` and ``state``; arguments after the star are those of ``strategy.arguments``. ``state`` is
what the server keeps from merge to merge, zeros at first, under the names that it was registered with; a strategy
writes into these arrays.

=============  =======================================================================================================
fedavg         McMahan et al. 2017, arXiv:1602.05629
fedavgm        Hsu, Qi, Brown 2019, arXiv:1909.06335: momentum on the server
fedadam        Reddi et al. 2021, arXiv:2003.00295: Adam on the server
fedasync       Xie, Koyejo, Gupta 2019, arXiv:1903.03934: each update when it comes, by its staleness
fedbuff        Nguyen et al. 2022, arXiv:2106.06639: some updates together, each by its staleness
trimmed_mean   Yin et al. 2018, arXiv:1803.01498: without the largest and smallest of each number
median         the same
=============  =======================================================================================================

Shape suffixes: S updates of a merge, N of the model's numbers.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from schemas.errors import ConfigError
from schemas.federating import StalenessKind
from schemas.suggestions import did_you_mean

Numbers = npt.NDArray[np.float64]
State = dict[str, Numbers]
Function = Callable[..., Numbers]
Argument = float | int | str | bool


@dataclass(frozen=True)
class Strategy:
    """A registered function."""

    name: str
    function: Function
    takes: tuple[str, ...]
    """Of ``updates_SN``, ``shares_S`` and ``state``."""
    state: tuple[str, ...] = ()
    """Arrays that the server keeps, each as long as the model."""
    adds_up: bool = False
    """Whether an update counts no more than its share: noise for privacy can be had with these alone."""
    mixes: bool = False
    """Whether its updates are taken to the present version (FedAsync): each has the way from there to its base."""
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    def with_arguments(self, given: Mapping[str, Argument]) -> "Strategy":
        """The strategy with arguments of the configuration over its own.

        Raises:
            ConfigError: it has none of that name, or of another type.
        """
        for name, value in given.items():
            if name not in self.arguments:
                known = did_you_mean(name, self.arguments) if self.arguments else "it has none"
                raise ConfigError(f"strategy.arguments: {self.name} has no argument {name!r}; {known}")
            if not _fits(value, self.arguments[name]):
                kind = type(self.arguments[name]).__name__
                raise ConfigError(f"strategy.arguments: {name} = {value!r} of {self.name}, expected a {kind}")
        return replace(self, arguments={**self.arguments, **given})

    def __call__(self, updates_SN: Numbers, shares_S: Numbers, state: State) -> Numbers:
        """What is added to the global version.

        Raises:
            ConfigError: it returned something else than one number for each.
        """
        given = {"updates_SN": updates_SN, "shares_S": shares_S, "state": state}
        step_N: Numbers = self.function(**{name: given[name] for name in self.takes}, **self.arguments)
        if np.shape(step_N) != updates_SN.shape[1:]:
            raise ConfigError(
                f"strategy {self.name} returned {np.shape(step_N)} for updates of {updates_SN.shape}, expected "
                f"{updates_SN.shape[1:]}: one number for each column"
            )
        return step_N


def _fits(value: Argument, default: Argument) -> bool:
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)


_STRATEGIES: Final[dict[str, Strategy]] = {}


def strategy(
    *, state: tuple[str, ...] = (), adds_up: bool = False, mixes: bool = False
) -> Callable[[Function], Function]:
    """Registers a function under its name; see :class:`Strategy`.

    Raises:
        ConfigError: another one has the name.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        if name in _STRATEGIES and _STRATEGIES[name].function is not function:
            raise ConfigError(f"strategy {name!r} is registered already; give yours another name")
        parameters = inspect.signature(function).parameters.values()
        arguments = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        takes = tuple(each.name for each in parameters if each.name not in arguments)
        _check_form(name, takes, arguments)
        _STRATEGIES[name] = Strategy(name, function, takes, state, adds_up, mixes, arguments)
        return function

    return register


def _check_form(name: str, takes: tuple[str, ...], arguments: Mapping[str, Any]) -> None:
    if odd := sorted(set(takes) - {"updates_SN", "shares_S", "state"}):
        raise ConfigError(
            f"strategy {name!r} takes {', '.join(odd)}, expected some of updates_SN, shares_S and state, and arguments "
            "of its own after a star"
        )
    for argument, default in arguments.items():
        if not isinstance(default, (float, int, str, bool)):
            raise ConfigError(
                f"strategy {name!r}: argument {argument} needs a default that is a number, a text or a bool"
            )


def find(name: str, arguments: Mapping[str, Argument] | None = None) -> Strategy:
    """A strategy with its arguments.

    Raises:
        ConfigError: there is none of that name, or it does not take them.
    """
    if name not in _STRATEGIES:
        raise ConfigError(f"no strategy {name!r}; {did_you_mean(name, _STRATEGIES)}")
    return _STRATEGIES[name].with_arguments(arguments or {})


# ----------------------------------------------------------------------- shares


def sizes_to_shares(sizes_S: Any) -> Numbers:
    """Shares in proportion to samples or tokens; equal ones where nobody has any. They add up to 1."""
    sizes = np.asarray(sizes_S, dtype=np.float64)
    total = sizes.sum()
    return sizes / total if total > 0 else np.full(len(sizes), 1 / len(sizes))


def discount(kind: StalenessKind, staleness_S: Any, exponent: float = 0.5, grace: int = 4) -> Numbers:
    """What is left of a share by staleness, at most 1 (Xie et al., arXiv:1903.03934, section 5.2).

    Args:
        kind: ``polynomial`` is (1 + staleness)^-exponent, FedBuff's with an exponent of 0.5; ``hinge`` is 1 up to
            ``grace`` versions and then 1 / (exponent (staleness - grace) + 1).
        staleness_S: in global versions.
        exponent: of either.
        grace: of ``hinge``.
    """
    staleness = np.asarray(staleness_S, dtype=np.float64)
    if kind == "polynomial":
        return (1 + staleness) ** -exponent
    if kind == "hinge":
        return 1 / (exponent * np.maximum(0, staleness - grace) + 1)
    return np.ones_like(staleness)


# ----------------------------------------------------------------------- strategies


@strategy(adds_up=True)
def fedavg(updates_SN: Numbers, shares_S: Numbers, *, learning_rate: float = 1.0) -> Numbers:
    """The mean by share; with a learning rate of 1 the mean of the sites' weights."""
    return learning_rate * (shares_S @ updates_SN)


@strategy(adds_up=True, state=("momentum",))
def fedavgm(
    updates_SN: Numbers, shares_S: Numbers, state: State, *, learning_rate: float = 1.0, momentum: float = 0.9
) -> Numbers:
    """V = momentum v + mean; adds learning_rate v."""
    state["momentum"] *= momentum
    state["momentum"] += shares_S @ updates_SN
    return learning_rate * state["momentum"]


@strategy(adds_up=True, state=("first", "second"))
def fedadam(  # noqa: PLR0913 - Adam's
    updates_SN: Numbers,
    shares_S: Numbers,
    state: State,
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> Numbers:
    """Algorithm 2 of the paper, without a correction of the first steps: adds learning_rate m / (sqrt(v) + tau).

    Its second moment begins at tau^2, as theirs does: what is kept is what it is beyond that, which begins at zero.
    """
    mean_N = shares_S @ updates_SN
    state["first"] += (1 - beta1) * (mean_N - state["first"])
    second_N = state["second"] + tau**2
    second_N += (1 - beta2) * (mean_N**2 - second_N)
    state["second"][:] = second_N - tau**2
    return learning_rate * state["first"] / (np.sqrt(second_N) + tau)


@strategy(adds_up=True, mixes=True)
def fedasync(updates_SN: Numbers, shares_S: Numbers, *, alpha: float = 0.6) -> Numbers:
    """Makes x = (1 - alpha s) x + alpha s x_site, of which updates_SN are x_site - x and s is in the shares."""
    return alpha * (shares_S @ updates_SN)


@strategy(adds_up=True)
def fedbuff(updates_SN: Numbers, shares_S: Numbers, *, learning_rate: float = 1.0) -> Numbers:
    """The sum by share, which staleness has made smaller."""
    return learning_rate * (shares_S @ updates_SN)


@strategy()
def trimmed_mean(updates_SN: Numbers, *, trim: float = 0.25, learning_rate: float = 1.0) -> Numbers:
    """Of each number the mean without the largest and smallest: a share ``trim`` of them at either end, rounded up.

    With as many bad sites as are cut off at one end, the mean stays within what the others say.
    """
    cut = min(int(np.ceil(trim * len(updates_SN))), (len(updates_SN) - 1) // 2)
    ordered_SN = np.sort(updates_SN, axis=0)
    middle_N: Numbers = ordered_SN[cut : len(ordered_SN) - cut].mean(axis=0)
    return learning_rate * middle_N


@strategy()
def median(updates_SN: Numbers, *, learning_rate: float = 1.0) -> Numbers:
    """Of each number the one in the middle."""
    middle_N: Numbers = np.median(updates_SN, axis=0)
    return learning_rate * middle_N
