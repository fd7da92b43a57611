"""Who takes part, as a world file says it: accounts, what they may spend and use over a period, floors they reserve."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from apportion.worlds.amounts import Amounts, Hours, Seconds, Share, wrong, wrong_entries
from apportion.worlds.entry import MOST_CREDITS, Entry, Name, Number


class Budget(Entry):
    """What an account, and all inside it together, may spend and use over a period."""

    per: Seconds = Field(
        gt=0, description="The period, counted from the start of the world: seconds, or '24 h', '30 d'."
    )
    credits: Annotated[Number, Field(ge=0, le=MOST_CREDITS)] | None = Field(
        None, description="Credits that its tasks may bid in a period, at most. Default: no bound."
    )
    use: Hours = Field(
        {},
        description="What its tasks may use of each resource in a period, at most, for example {cpu: 500 core-hours}; a bare"
        " number means the resource's unit for an hour. Floors are kept whatever is left. Default: no bound.",
    )

    def counted(self, round_seconds: float) -> tuple[int, dict[str, int]]:
        """Give the rounds of a period, and what may be used in it in base units times rounds."""
        return int(self.per / round_seconds + 1e-9), {r: int(x / Fraction(round_seconds)) for r, x in self.use.items()}

    @model_validator(mode="after")
    def _bounds_something(self) -> Budget:
        if self.credits is None and not self.use:
            raise wrong("it bounds nothing. Write 'credits: 20', or 'use: {cpu: 500 core-hours}'.")
        return self


_ENTITLED_OR_INSIDE: dict[str, Any] = {
    "if": {"required": ["parent"]},
    "then": {"required": ["share"], "properties": {"entitlement": False}},
    "else": {"required": ["entitlement"], "properties": {"share": False}},
}


class Account(Entry):
    """A participant, by itself or inside another: what it is entitled to and what it holds."""

    model_config = ConfigDict(json_schema_extra=_ENTITLED_OR_INSIDE)

    entitlement: Share | None = Field(
        None,
        description="Its part of everything: of the free guarantee, of the credits that tasks bid, of what is paid back."
        " A share, 0.4 or 40%; those of all accounts without a parent come to 1.",
    )
    parent: Name | None = Field(
        None,
        description="The account that it stands inside, which is written before it. An account with others inside has no tasks"
        " of its own; what one of these can't use of its guarantee goes to its siblings first. Default: none.",
    )
    share: Share | None = Field(
        None, description="Its part of its parent's: 0.4 or 40%; those of all accounts inside one parent come to 1."
    )
    balance: Annotated[Number, Field(ge=0, le=MOST_CREDITS)] | None = Field(
        None,
        description="Credits held at the start. Default: by entitlement, of the supply that the others leave; an account with"
        " others inside holds none.",
    )
    budget: Budget | None = Field(
        None,
        description="What it, and all that stand inside it together, may spend and use over a period. Default: no bound.",
    )

    @model_validator(mode="after")
    def _entitled_or_inside(self) -> Account:
        if self.parent is None:
            if self.share is not None:
                raise wrong_entries({"share": "it is a share of no account. Name its 'parent'."}, {"share": self.share})
            if self.entitlement is None:
                raise wrong("it is entitled to nothing. Write 'entitlement: 40%', or 'parent' and 'share'.")
        elif self.entitlement is not None:
            why = "what stands inside another has a 'share' of that one's. Write 'share' instead."
            raise wrong_entries({"entitlement": why}, {"entitlement": self.entitlement})
        elif self.share is None:
            raise wrong(f"it has no share of '{self.parent}'. Write for example 'share: 50%'.")
        return self

    @property
    def weight(self) -> float:
        """Its part of what it shares with its siblings."""
        part = self.entitlement if self.parent is None else self.share
        return 0.0 if part is None else part


class Reservation(Entry):
    """A floor for some time, paid for in advance."""

    account: Name = Field(description="The account that pays, out of what it holds at the start.")
    task: Name = Field(description="The task that has the floor.")
    floor: Amounts = Field(description="What it is promised meanwhile, by resource, for example {cpu: 2 cores}.")
    at: Seconds = Field(description="When it begins, in world time: seconds, or '20 s', '2 min'.")
    lasts: Seconds = Field(alias="for", gt=0, description="How long it lasts: seconds, or '20 s', '2 min'.")
    pays: Annotated[Number, Field(gt=0, le=MOST_CREDITS)] = Field(
        description="Credits paid in advance; what the floor costs beyond the task's bid is taken from them, what it costs beyond"
        " these is waived, and what is left is given back when it is over."
    )

    def rounds(self, round_seconds: float) -> tuple[int, int]:
        """Give its first and last round: those that begin while it lasts."""
        first, end = (math.ceil(t / round_seconds - 1e-9) for t in (self.at, self.at + self.lasts))
        return first, end - 1
