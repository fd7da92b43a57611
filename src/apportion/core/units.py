"""Units, scales and rounding directions, fixed once for the whole house (see docs/format.md).

Inside, an amount of a resource is a whole number of its *base unit*; a share is a whole number of
10^-9; a price is a whole number of 10^-12 credits per base unit and round; money is a whole number
of micro-credits. Arrays may hold these as float64 while they are compared; whatever is logged,
enforced or charged is the whole number.

Rounding always favours what must hold: demand up, capacity down, shares down, prices down, charges down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, DecimalException, Overflow

import numpy as np
from jaxtyping import Float

from apportion.core.errors import BadInput

SHARE = 10**9  # one whole task
MICRO = 10**6  # one credit, in micro-credits
PRICE = 10**12  # one credit per base unit and round
PRICE_PER_MICRO = PRICE // MICRO


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource, the unit people write it in, and the base unit we count it in."""

    name: str
    unit: str
    base: str
    scale: int  # base units in one unit
    spellings: tuple[tuple[str, Decimal], ...]  # unit as written -> how many base units

    def parse(self, text: str | int | float) -> Decimal:
        """Give an amount in base units (not yet whole). A bare number is in `unit`."""
        if isinstance(text, bool):
            raise BadInput(f"{self.name}: {text!r} is no amount. Write for example '{self.name}: 1 {self.unit}'.")
        match = re.fullmatch(r"\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(\S.*?)?\s*", str(text))
        factors = dict(self.spellings) | {self.unit: Decimal(self.scale)}
        if match is None or (match[2] and match[2] not in factors):
            known = ", ".join(sorted(factors, key=lambda unit: factors[unit]))
            raise BadInput(
                f"{self.name}: {text!r} is not an amount of {self.name}. Known units: {known}; a bare number means {self.unit}."
            )
        try:
            amount = Decimal(match[1]) * (factors[match[2]] if match[2] else self.scale)
        except Overflow:
            raise BadInput(
                f"{self.name}: {text!r} is too large to be an amount of {self.name}. "
                f"Write for example '1.5 {self.unit}'."
            ) from None
        except DecimalException:
            raise BadInput(f"{self.name}: {text!r} is not a number. Write for example '1.5 {self.unit}'.") from None
        if not amount.is_finite() or amount < 0:
            raise BadInput(f"{self.name}: {text!r} is negative or not finite. An amount is at least 0.")
        if amount >= 2**53:
            raise BadInput(
                f"{self.name}: {text!r} is more than 2^53 {self.base}. Use a smaller amount or split the pool."
            )
        return amount

    @property
    def one(self) -> str:
        """The unit after 'per': a core, a GiB, a Mbit/s."""
        return {"cores": "core", "devices": "device"}.get(self.unit, self.unit)

    def show(self, base: float) -> str:
        """Write an amount for people."""
        amount = f"{base / self.scale:.3g}"
        return f"{amount} {self.one if amount == '1' else self.unit}"


def _resource(name: str, unit: str, base: str, scale: int, **spellings: str | int) -> Resource:
    return Resource(name, unit, base, scale, tuple((k.replace("_per_", "/"), Decimal(v)) for k, v in spellings.items()))


RESOURCES: dict[str, Resource] = {
    r.name: r
    for r in (
        _resource("cpu", "cores", "millicore", 1000, m=1, core=1000),
        _resource("gpu", "devices", "millidevice", 1000, device=1000),
        _resource(
            "memory", "GiB", "KiB", 2**20, KiB=1, MiB=2**10, TiB=2**30, kB="0.9765625", MB="976.5625", GB="976562.5"
        ),
        _resource("bandwidth", "Mbit/s", "kbit/s", 1000, kbit_per_s=1, Gbit_per_s=10**6),
        _resource("storage", "MB/s", "kB/s", 1000, kB_per_s=1, GB_per_s=10**6),
    )
}


def resource(name: str) -> Resource:
    """Give a resource by name; an unknown one is counted in thousandths of itself."""
    return RESOURCES.get(name) or Resource(name, name, f"milli-{name}", 1000, ())


def scales(names: Sequence[str]) -> Float[np.ndarray, " resource"]:
    """Give how many base units are in one unit of each resource."""
    return np.array([resource(name).scale for name in names], float)


def whole_down(x: np.ndarray) -> np.ndarray:
    """Round down to whole numbers, forgiving a relative float error of 1e-12, and never more than a thousandth."""
    x = np.asarray(x, float)
    return np.floor(x + np.minimum(np.abs(x) * 1e-12, 1e-3)).astype(np.int64)


def micro(credits: float | Decimal) -> int:
    """Give whole micro-credits, rounded down."""
    return int((Decimal(str(credits)) * MICRO).to_integral_value(ROUND_FLOOR))


def credits(micro_credits: int) -> float:
    """Give credits, for people and for comparison only."""
    return micro_credits / MICRO


def part(amount: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Give floor(amount * share / SHARE) exactly, for whole amounts below 2^53 and shares of at most 1."""
    high, low = np.divmod(np.asarray(amount, np.int64), SHARE)
    share = np.asarray(share, np.int64)
    return high * share + low * share // SHARE  # high*share is already whole: SHARE divides high*SHARE*share


def cost(price: np.ndarray, quantity: np.ndarray) -> np.ndarray:
    """Give floor(price * quantity) in micro-credits, exactly, whatever the size."""
    price, quantity = np.broadcast_arrays(np.asarray(price, np.int64), np.asarray(quantity, np.int64))
    if not price.size:
        return np.zeros(price.shape, np.int64)
    if int(price.max()) * int(quantity.max()) < 2**63:
        return price * quantity // PRICE_PER_MICRO
    exact = price.astype(object) * quantity.astype(object) // PRICE_PER_MICRO
    if max(exact.flat) >= 2**63:
        raise BadInput("a charge exceeds 9.2e12 credits: lower credits_per_round.")
    return exact.astype(np.int64)


def guarantee(alpha: float, entitlement: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Give what each account may use for nothing (account, pool, resource): alpha of its part, in whole base units.

    Rounded down, and never more in all than the pool has.
    """
    out = whole_down(alpha * entitlement[:, None, None] * capacity)
    over = np.maximum(out.sum(axis=0) - np.floor(capacity).astype(np.int64), 0)
    if over.any():  # a float's last digits, of which a large pool has many
        np.put_along_axis(out, (most := out.argmax(axis=0)[None]), np.take_along_axis(out, most, 0) - over, 0)
    return out


def split(total: int, weight: np.ndarray) -> np.ndarray:
    """Divide a whole total below 2^62 by weight: floors first, then one each to the largest remainders (ties: first)."""
    weight = np.asarray(weight, float)
    out = np.zeros(len(weight), np.int64)
    among = math.fsum(weight)  # exact, so that the order of the weights does not matter
    if total <= 0 or not among > 0:
        return out
    whole = (weight * 2**40 / among).astype(np.int64)  # whole weights: the result is exact and repeatable
    parts = int(whole.sum())
    each, left = divmod(total, parts)
    # left * whole needs 80 bits: 20 bits of `whole` at a time, as in long division
    high, rest = np.divmod(left * (whole >> 20), parts)
    low, rest = np.divmod((rest << 20) + left * (whole & (2**20 - 1)), parts)
    out += each * whole + (high << 20) + low
    out[np.argsort(-rest, kind="stable")[: total - int(out.sum())]] += 1
    return out
