"""The policies there are: a name, what it does, and whether it has prices. What each is made of is in `serve.build`."""

from __future__ import annotations

from dataclasses import dataclass

from apportion.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class Policy:
    """A named preset of objective, values and mechanism."""

    name: str
    says: str
    priced: bool = False  # without prices nothing is sold: no charge, no free guarantee, no promise of floors or gap


POLICIES = {
    p.name: p
    for p in (
        Policy("market", "prices at which everything fits; default", priced=True),
        Policy("static", "by ordinary demand"),
        Policy("drf", "equal dominant shares by entitlement"),
        Policy("maxmin", "equal shares of what is wanted"),
        Policy("karma", "by credits for what was left to others, after Vuppalapati et al."),
        Policy("equal", "equal shares"),
        Policy("softmax", "plain attention, for comparison"),
    )
}


def named(name: str) -> Policy:
    """Give a policy by its name; raise BadInput where there is none."""
    if name not in POLICIES:
        raise BadInput(f"there is no policy {name!r}. Policies: {', '.join(POLICIES)}.")
    return POLICIES[name]


def priced(name: str) -> bool:
    """Tell whether a policy has prices; one that is not known here promises nothing."""
    return name in POLICIES and POLICIES[name].priced
