"""A constant-product pool: two reserves, and a swap may not lower their product.

For thin markets, and as the only gate between world coins and compute credits: whoever brings coins gets credits out of the
pool's own reserve, at a price that rises as it empties, so a game that mints coins can't mint credits. `limit` bounds what may
leave in one round, in thousandths of the reserve. All whole numbers of any size; rounding favours the pool, so the
product never falls. (Uniswap v2's rule, with its fee taken from what comes in.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from apportion.core.errors import BadInput, Refused


@dataclass(frozen=True, slots=True)
class Pool:
    """Reserves of two moneys, in their smallest units."""

    reserve: tuple[int, int]
    fee: tuple[int, int] = (3, 1000)  # numerator, denominator of what comes in; it stays in the pool
    limit: int | None = None  # thousandths of a reserve that may leave in one round; None: no limit
    left: tuple[int, int] | None = None  # what may still leave in this round; None: nothing has left yet

    def __post_init__(self):
        if min(self.reserve) <= 0:
            raise BadInput(f"reserves are {self.reserve}: a pool needs some of both.")
        if not 0 <= self.fee[0] < self.fee[1]:
            raise BadInput(f"fee is {self.fee[0]}/{self.fee[1]}: at least 0 and below 1.")
        if self.limit is not None and not 0 < self.limit <= 1000:
            raise BadInput(f"limit is {self.limit}: between 1 and 1000 thousandths of the reserve.")

    def quote(self, side: int, amount: int) -> int:
        """Give what `amount` of money `side` (0 or 1) would buy of the other, rounded down."""
        if amount <= 0:
            raise BadInput(f"amount is {amount}: a swap brings at least 1.")
        kept = amount * (self.fee[1] - self.fee[0])
        return kept * self.reserve[1 - side] // (self.reserve[side] * self.fee[1] + kept)

    def swap(self, side: int, amount: int, least: int = 0) -> tuple[Pool, int]:
        """Bring `amount` of money `side`; gives the pool afterwards and what left it. Refused below `least`."""
        out = self.quote(side, amount)
        if out < least:
            raise Refused(f"{amount} would buy {out}, less than the {least} asked for; nothing was moved.")
        return self.exchange(side, amount, out), out

    def exchange(self, side: int, amount: int, out: int) -> Pool:
        """Take `amount` in and let `out` go, if the product after the fee does not fall; gives the pool afterwards."""
        other, left = 1 - side, self._may_leave()
        if left is not None and out > left[other]:
            raise Refused(
                f"{out} would leave the pool and {left[other]} may in this round; wait for the next, or swap less."
            )
        top, bottom = self.fee
        after = (self.reserve[side] * bottom + amount * (bottom - top)) * (self.reserve[other] - out)
        if out < 0 or after < self.reserve[side] * bottom * self.reserve[other]:
            raise Refused(f"{out} for {amount} would lower the pool's product; the most is {self.quote(side, amount)}.")
        moved = (amount, -out) if side == 0 else (-out, amount)
        if left is not None:
            left = (left[0] - out * (other == 0), left[1] - out * (other == 1))
        return replace(self, reserve=(self.reserve[0] + moved[0], self.reserve[1] + moved[1]), left=left)

    def next_round(self) -> Pool:
        """Begin a round: the limit counts anew."""
        return replace(self, left=None)

    def _may_leave(self) -> tuple[int, int] | None:
        if self.limit is None or self.left is not None:
            return self.left
        return self.reserve[0] * self.limit // 1000, self.reserve[1] * self.limit // 1000
