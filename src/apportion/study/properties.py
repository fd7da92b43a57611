"""What a mechanism promises, as numbers beside thresholds. Nothing here is claimed that is not measured.

Of one round:

    feasible         load above capacity, exact, in base units                                     <= 0
    pareto           the largest share that some task could still be given, nobody getting less    <= 1e-6
    envy             what a task could use of another's bundle, each by entitlement, beyond its own  <= 1e-6
    sharing          served less what its entitled part of the pool would serve                    >= -1e-6
    prices           the least price                                                               >= 0
    slackness        price * what is left over / all that is paid at these prices                  <= 1e-6
    budget           paid beyond the bid, in credits                                               <= 0
    rational         served less what its guarantee alone serves                                   >= -1e-6

Of a run: `sharing_in_time` (the same over all rounds), `conservation` (credits that appear), `liveness` (rounds in which an agent
that cannot bid gets what its guarantee serves), `stability` (how much shares still move while nothing else does), and what lies gain.
No mechanism is Pareto efficient, sharing-incentive and strategy-proof with market prices at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from apportion.core.allocation import Allocation
from apportion.core.market import Market
from apportion.core.units import MICRO, whole_down
from apportion.intake.fill import Count, Groups
from apportion.study.economy import Turn, rounds_of
from apportion.study.economy_agents import Credits, Population
from apportion.study.economy_prices import priced
from apportion.study.economy_studies import Tick, attack, with_mechanism

LIES = 20  # drawn for each class of agents
CALM = 20  # of what is left of memory's transient, in half-lives, when stability is measured


@dataclass(frozen=True, slots=True)
class Check:
    """A measured property: the worst value found, beside what it must not pass. nan: there is nothing to measure."""

    name: str
    value: float
    threshold: float
    at_least: bool = False  # the value must be at least the threshold; else at most

    @property
    def holds(self) -> bool | None:
        if np.isnan(self.value):
            return None
        return bool(self.value >= self.threshold if self.at_least else self.value <= self.threshold)


THRESHOLDS = {  # name: threshold, whether at least
    "feasible": (0.0, False), "pareto": (1e-6, False), "envy": (1e-6, False), "sharing": (-1e-6, True),
    "sharing_in_time": (-1e-6, True), "prices": (0.0, True), "slackness": (1e-6, False), "budget": (0.0, False),
    "rational": (-1e-6, True), "conservation": (0.0, False), "liveness": (1.0, True), "stability": (1e-3, False),
    "misreport": (0.02, False),
}  # fmt: skip


def check(name: str, value: float) -> Check:
    """Put a value beside its threshold."""
    return Check(name, float(value), *THRESHOLDS[name])


def feasible(allocation: Allocation) -> float:
    """Give the most that a pool is loaded above its capacity, counted in whole numbers; below 0 is room."""
    market = allocation.market
    count = Count(market.demand[market.row], float(market.demand.sum(axis=0).max(initial=0.0)))
    over = count.load(allocation.parts, Groups(market.indices, len(market.capacity))) - count.limit(market.capacity)
    return float(np.asarray(over, float).max(initial=-np.inf)) / 1e9


def pareto(allocation: Allocation) -> float:
    """Give the largest share that some task could still be given, nobody getting less. Exact where tasks have one pool."""
    market = allocation.market
    left = np.maximum(market.capacity - allocation.load, 0.0)[market.indices]
    demand = market.demand[market.row]
    more = np.divide(left, demand, out=np.full(demand.shape, np.inf), where=demand > 0).min(axis=1, initial=np.inf)
    short = np.where((demand > 0).any(axis=1), (market.cap - allocation.served)[market.row], 0.0)
    return float(np.minimum(more, short).max(initial=0.0))


def envy(allocation: Allocation, entitlement: Float[np.ndarray, " task"]) -> float:
    """Give the most that a task could use of another's bundle, scaled to its entitlement, beyond what it got."""
    market = allocation.market
    bundle = market.per_task(allocation.share[:, None] * market.demand[market.row])  # (task, resource)
    each = bundle / np.where(entitlement > 0, entitlement, np.inf)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        use = np.where(
            market.demand[:, None] > 0, each[None] * entitlement[:, None, None] / market.demand[:, None], np.inf
        )
    use = np.minimum(use.min(axis=2), market.cap[:, None])
    wants = (market.demand > 0).any(axis=1)
    return float((use - allocation.served[:, None])[wants].max(initial=0.0))


def sharing(allocation: Allocation, entitlement: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
    """Give what each task is served beyond what its entitled part of all pools would serve; nan where it wants nothing."""
    alone = alone_with(allocation.market, entitlement[:, None] * allocation.market.capacity.sum(axis=0))
    return np.where((allocation.market.demand > 0).any(axis=1), allocation.served - alone, np.nan)


def alone_with(market: Market, own: Float[np.ndarray, "task resource"]) -> Float[np.ndarray, " task"]:
    """Give the share that amounts of its own serve each task."""
    serves = np.divide(own, market.demand, out=np.full(market.demand.shape, np.inf), where=market.demand > 0)
    return np.minimum(serves.min(axis=1), market.cap)


def slackness(allocation: Allocation) -> float:
    """Give price * what is left over, as a part of what all that is for sale would cost."""
    price, market = allocation.price, allocation.market
    worth = float((price * market.capacity).sum())
    idle = np.maximum(market.capacity - allocation.load, 0.0)
    return float((price * idle).sum()) / worth if worth > 0 else 0.0


def budget(turn: Turn) -> float:
    """Give the most that a task paid beyond its bid, in credits."""
    if turn.bills is None:
        return 0.0
    return float((turn.bills.paid - np.rint(turn.market.weight * MICRO)).max(initial=0.0)) / MICRO


def of_round(turn: Turn, part: Float[np.ndarray, " task"], alpha: float) -> dict[str, float]:
    """Measure one round. part: of everything that each task is entitled to; alpha: what of it is guaranteed."""
    a, market = turn.allocation, turn.market
    wants = (market.demand > 0).any(axis=1)
    guaranteed = whole_down(alpha * part[:, None] * market.capacity.sum(axis=0)).astype(float)
    above = np.where(wants, a.served - alone_with(market, guaranteed), 0.0)
    share = sharing(a, part)
    sold = bool(turn.bills)
    return {
        "feasible": feasible(a),
        "pareto": pareto(a),
        "envy": envy(a, part),
        "sharing": float(np.nanmin(share)) if wants.any() else 0.0,
        "prices": float(a.price.min()) if sold else np.nan,
        "slackness": slackness(a) if sold else np.nan,
        "budget": budget(turn) if sold else np.nan,
        "rational": float(above.min()) if sold else np.nan,
    }


def measured(credits: Credits, agents: int, rounds: int, seeds: Sequence[int], tick: Tick) -> list[Check]:
    """Measure a mechanism in an economy of honest agents, half of them bursty: the worst round of all seeds, and what lies gain."""
    honest = replace(credits, agents={"truthful": 1.0, "bursty": 1.0})
    worst: dict[str, float] = {}
    for seed in seeds:
        tick(0, 0, f"{credits.mechanism}: rounds of seed {seed}")
        population = Population(honest, agents, seed)
        gained, wanted, drift = np.zeros(agents), np.zeros(agents), 0
        for _, who, turn in rounds_of(honest, population, population.conduct(), rounds):
            part = who.entitlement[who.account]
            told = of_round(turn, part, honest.alpha) | {"conservation": 0.0}
            size = (turn.market.demand / turn.market.capacity).max(axis=1)
            gained += np.nan_to_num(sharing(turn.allocation, part)) * size
            wanted += size
            drift += int(turn.after.sum() - turn.before.sum())
            _keep(worst, told)
        in_time = float((gained / np.maximum(wanted, 1e-300)).min())
        _keep(
            worst,
            {"sharing_in_time": in_time, "conservation": abs(drift) / (1 if honest.mechanism == "karma" else MICRO)},
        )
        _keep(worst, {"liveness": liveness(honest, agents, rounds, seed), "stability": stability(honest, agents, seed)})
    gains = attack(honest, "misreport", LIES, agents, rounds, seeds, tick)
    worst["misreport"] = max(float(g.share.mean()) for g in gains)
    return [check(name, worst[name]) for name in THRESHOLDS]


def _keep(worst: dict[str, float], told: Mapping[str, float]) -> None:
    for name, x in told.items():
        least = THRESHOLDS[name][1]
        old = worst.get(name, x)
        worst[name] = min(old, x) if least else max(old, x)


def liveness(credits: Credits, agents: int, rounds: int, seed: int) -> float:
    """Give the part of rounds with demand in which an agent that cannot bid is served what its guarantee serves."""
    population = Population(credits, agents, seed)
    conduct, kept, asked = population.conduct().but(0, bid=0.0), 0, 0
    for wanted, who, turn in rounds_of(credits, population, conduct, rounds):
        if not (wanted[0] > 0).any():
            continue
        own = np.floor(credits.alpha * who.entitlement[0] * population.total)
        serves = np.divide(own, wanted[0], out=np.full(len(own), np.inf), where=wanted[0] > 0).min()
        asked += 1
        kept += bool(turn.allocation.served[0] >= min(1.0, serves) - 1e-6)
    return kept / asked if asked else np.nan


def stability(credits: Credits, agents: int, seed: int) -> float:
    """Give the most that any share moves from a round to the next once demand has long stood still."""
    calm = replace(credits, agents={"truthful": 1.0}, noise=0.0, gap=min(credits.gap, 1e-6))
    rounds = min(1000, 50 + round(CALM * (0.0 if calm.half_life is None else calm.half_life)))
    population, last, moved = Population(calm, agents, seed), None, 0.0
    for _, _, turn in rounds_of(calm, population, population.conduct(), rounds):
        moved = 0.0 if last is None else float(np.abs(turn.allocation.served - last).max())
        last = turn.allocation.served
    return moved


def table(
    credits: Credits, mechanisms: Sequence[str], agents: int, rounds: int, seeds: Sequence[int], tick: Tick
) -> dict[str, list[Check]]:
    """Measure mechanisms; the market also without memory, since a round by itself is not what memory is fair in."""
    made: dict[str, Credits] = {}
    for name in mechanisms:
        made[name] = with_mechanism(credits, name)
        if name == "market" and credits.half_life is not None:
            made["market, no memory"] = replace(made[name], half_life=None)
    return {name: measured(c, agents, rounds, seeds, tick) for name, c in made.items()}


def markdown(found: Mapping[str, Sequence[Check]]) -> str:
    """Write the table mechanism x property; what does not hold is marked."""
    rows = [["property", "must be", *found], ["---"] * (2 + len(found))]
    for k, name in enumerate(THRESHOLDS):
        threshold, at_least = THRESHOLDS[name]
        cells = [_cell(checks[k]) for checks in found.values()]
        rows.append([name.replace("_", " "), f"{'>=' if at_least else '<='} {threshold:g}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(c: Check) -> str:
    if c.holds is None:
        return "-"
    value = f"{0.0 if abs(c.value) < 1e-12 else c.value:.2g}"
    return value if c.holds else f"**{value}**"


# What prices must do, whatever the market.


def drawn(rng: np.random.Generator, resources: int) -> Market:
    """Draw a market of one pool: some tasks satiated, some not."""
    n = int(rng.integers(2, 13))
    demand = np.ceil(rng.lognormal(0.0, 1.0, (n, resources)) * 1e5)
    demand[:, 1:] *= rng.random((n, resources - 1)) < 0.8
    capacity = np.floor(demand.sum(axis=0) * rng.uniform(0.2, 1.3, resources))[None]
    return Market(demand, capacity, rng.lognormal(0.0, 1.0, n), cap=rng.uniform(0.3, 1.0, n))


@dataclass(frozen=True, slots=True)
class Laws:
    """By how much each law of prices is broken at worst, relative to the prices; 0 where it holds. And how often it was asked."""

    capacity: float  # the index at fixed quantities rises when all capacity is scaled up
    demand: float  # one resource: the price falls when somebody wants more
    satiated: float  # one resource: it does not rise when somebody who had all it wanted wants more
    bids: float  # doubling every bid does not double prices
    asked: tuple[int, int, int, int]


def price_laws(count: int, seed: int, gap: float = 1e-10) -> Laws:
    """Ask random markets."""
    rng, worst, asked = np.random.default_rng(seed), np.zeros(4), np.zeros(4, int)

    def tell(k: int, broken: float) -> None:
        worst[k], asked[k] = max(worst[k], broken), asked[k] + 1

    for _ in range(count):
        market, more = drawn(rng, int(rng.integers(1, 4))), float(rng.uniform(1.05, 3.0))
        index = _index(market, market, gap)
        tell(
            0,
            (_index(_but(market, capacity=np.floor(market.capacity * more)), market, gap) - index) / max(index, 1e-300),
        )
        doubled, plain = priced(_but(market, weight=2 * market.weight), gap), priced(market, gap)
        if index > 0:  # also where somebody is satiated: the objective doubles, and so do its duals
            tell(3, float(np.abs(doubled.price - 2 * plain.price).max() / plain.price.max()))
        one = drawn(rng, 1)
        before, i = priced(one, gap), int(rng.integers(len(one.demand)))
        demand = one.demand.copy()
        demand[i] = np.ceil(demand[i] * more)
        after = priced(_but(one, demand=demand), gap)
        p, q = float(before.price[0, 0]), float(after.price[0, 0])
        if p > 0:
            tell(1, (p - q) / p)
            if before.served[i] >= one.cap[i] * (1 - 1e-6) and len(one.demand) > 1:
                tell(2, max(0.0, p * (1 + 1e-6) - q) / p)
    return Laws(*(max(0.0, float(x)) for x in worst), asked=tuple(int(k) for k in asked))  # type: ignore[arg-type]


def _index(market: Market, at: Market, gap: float) -> float:
    """Give what the quantities of another market cost at this one's prices."""
    return float((priced(market, gap).price * at.capacity).sum())


def _but(market: Market, **changed: np.ndarray) -> Market:
    given = lambda name: changed[name] if name in changed else getattr(market, name)  # noqa: E731
    return Market(given("demand"), given("capacity"), given("weight"), cap=given("cap"))
