"""The economy study: laws that every simulated round keeps, what lies gain, and checks that can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.clearing.clear import clear
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market
from apportion.core.units import MICRO, PRICE, SHARE
from apportion.settlement.acts import Act
from apportion.study import properties
from apportion.study.economy import MECHANISMS, Drf, Identities, Maxmin, Priced, rounds_of, run
from apportion.study.economy_agents import KINDS, Credits, Population
from apportion.study.economy_prices import priced
from apportion.study.economy_studies import Gain, attack, by_kind, compare, figures, satisfied, sweep, with_key

seeds = st.integers(0, 2**32 - 1)
BURSTY = Credits(
    agents={"bursty": 1.0}, capacity={"slots": 200_000}, load=1.0, noise=0.0, duty=(1.0, 0.5, 0.25, 0.1),
    half_life=110.0, credits_per_round=20.0, supply=400.0,
)  # fmt: skip
TWO = replace(BURSTY, capacity={"one": 200_000, "two": 200_000})
ONE_DUTY = replace(BURSTY, duty=(0.5,))  # one class of agents: attacks on it are quick


def quiet(done: int, total: int, what: str) -> None:
    pass


def drawn(seed: int, eta: float = 1.0) -> Market:
    """A pool, some of whose tasks want nothing, bid nothing, have something free or are satiated."""
    rng = np.random.default_rng(seed)
    n, resources = int(rng.integers(1, 12)), int(rng.integers(1, 4))
    demand = np.floor(rng.lognormal(8, 1, (n, resources))) * (rng.random((n, 1)) < 0.8)
    capacity = np.maximum(np.floor(demand.sum(axis=0, keepdims=True) * rng.uniform(0.3, 1.5, resources)), 1000.0)
    weight = rng.lognormal(0, 1, n) * (rng.random(n) < 0.9)
    free = np.minimum(0.5 / n * (capacity / np.maximum(demand, 1.0)).min(axis=1), 0.4) * (rng.random(n) < 0.5)
    mean = rng.uniform(0, 2, n) if eta < 1 else np.zeros(n)
    return Market(
        demand, capacity, weight, cap=rng.uniform(0.5, 1, n), free=np.floor(free * SHARE) / SHARE, mean=mean, eta=eta
    )


@pytest.mark.parametrize(
    ("eta", "near"), [(1.0, 2e-3), (0.3, 2e-3), (0.0063, 0.05)]
)  # what a gap says of shares: sqrt(gap) / eta
@settings(max_examples=15)
@given(seeds)
def test_prices_of_one_pool_are_those_that_clear_gives(eta: float, near: float, seed: int):
    market, gap = drawn(seed, eta), 1e-6 * eta
    fast, slow = priced(market, gap), clear(market, gap=1e-9)
    assert fast.gap <= max(gap, slow.gap)
    assert fast.value <= slow.bound + 1e-9 * abs(slow.bound)
    assert properties.feasible(fast) <= 0
    assert fast.price * PRICE == pytest.approx(np.rint(fast.price * PRICE), rel=2.0**-50)
    assert fast.served == pytest.approx(slow.served, abs=near)


@given(seeds)
def test_last_prices_change_no_more_than_the_gap(seed: int):
    market, rng = drawn(seed, 0.1), np.random.default_rng(seed)
    cold = priced(market, 1e-6)
    warm = priced(market, 1e-6, cold.price * rng.uniform(0, 3, cold.price.shape))
    assert max(warm.gap, cold.gap) <= 1e-6
    assert warm.served == pytest.approx(cold.served, abs=2e-3)


@pytest.mark.parametrize(("mechanism", "objective"), [(Drf, "drf"), (Maxmin, "leximin")])
@settings(max_examples=10)
@given(seeds)
def test_filling_is_what_clearing_gives(mechanism, objective: str, seed: int):
    rng = np.random.default_rng(seed)
    population = Population(Credits(agents={"truthful": 1.0, "bursty": 1.0}), int(rng.integers(1, 8)), seed)
    who = Identities(population, population.conduct())
    played = mechanism(population.credits, who, population.ordinary)
    for wanted in population.wanted(2):
        turn = played.turn(who.asked(0, wanted), np.zeros(len(who.name), np.int64))
        weight = turn.market.weight if objective == "drf" else np.ones(len(turn.market.weight))
        market = Market(turn.market.demand, turn.market.capacity, weight)
        wants = (market.demand > 0).any(axis=1)
        assert turn.allocation.served[wants] == pytest.approx(clear(market, objective, 1e-8).served[wants], abs=1e-4)
        assert properties.feasible(turn.allocation) <= 0


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_same_seed_gives_the_same_run_and_no_credit_is_made(mechanism: str):
    credits = replace(Credits(), mechanism=mechanism)
    one, two, other = (run(credits, 12, 20, seed) for seed in (3, 3, 4))
    assert one.got.tobytes() == two.got.tobytes() != other.got.tobytes()
    assert (one.balance >= 0).all()
    assert (one.drift == 0) == (mechanism != "karma")
    assert ((one.got >= 0) & (one.got <= 1)).all()
    assert (one.load <= 1).all()
    assert (one.wanted == run(Credits(), 12, 20, 3).wanted).all(), "all mechanisms meet the same demand"


def test_gaps_stay_within_what_was_asked():
    credits = Credits()
    played = run(credits, 40, 60, 0)
    assert played.gap.max() <= credits.gap * (1 - 2 ** (-1 / credits.half_life))


def test_a_run_keeps_what_was_played_when_it_is_stopped():
    def tick(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    part, all_of_it = run(Credits(), 10, 30, 0, tick=tick), run(Credits(), 10, 7, 0)
    assert part.stopped
    assert part.got.tobytes() == all_of_it.got.tobytes()
    with pytest.raises(KeyboardInterrupt):  # half a run is not compared with a whole one
        compare(Credits(), ["market"], 10, 30, [0], lambda done, total, what: tick(done))


def test_kinds_do_as_they_are_called():
    population = Population(Credits(), 40, 0)
    assert [population.kind.count(kind) for kind in KINDS] == [16, 6, 6, 8, 4]
    conduct = population.conduct()
    who = Identities(population, conduct)
    assert len(who.name) == 40 + 4 * 3
    assert np.bincount(who.of, who.entitlement) == pytest.approx(np.full(40, 1 / 40))
    wanted = next(population.wanted(1))
    assert (who.by_agent(who.asked(0, wanted), 40) == wanted).all()
    turns = Identities(population, conduct.but(39, turns=True))
    assert [int((turns.asked(k, wanted)[-4:] > 0).any(axis=1).argmax()) for k in range(5)] == [0, 1, 2, 3, 0]


def test_hoarders_save_before_they_bid_and_shading_agents_bid_a_part():
    played = run(replace(Credits(), half_life=None, save=1.2, load=4.0), 20, 80, 0)
    kinds = np.array(played.kind)
    rich = np.cumsum(played.balance >= 1.2 * played.opening, axis=0) > 0
    saved, paid = rich[:-1, kinds == "hoarding"], played.paid[1:, kinds == "hoarding"]
    assert (paid[~saved] == 0).all()
    assert paid.any()
    bill = played.bill[0]
    assert played.paid[:, kinds == "shading"].max() <= bill / 2 * (1 + 1e-6)
    assert played.paid[:, kinds == "truthful"].max() > bill / 2


def test_what_makes_no_economy_is_refused():
    with pytest.raises(BadInput, match="0 agents make no economy"):
        run(Credits(), 0, 1, 0)
    with pytest.raises(BadInput, match="'robber' is no kind of agent"):
        run(Credits(agents={"robber": 1.0}), 5, 1, 0)
    with pytest.raises(BadInput, match="'lottery'"):
        run(replace(Credits(), mechanism="lottery"), 5, 1, 0)


def test_figures_count_what_happened():
    played = run(replace(BURSTY, load=2.0), 8, 30, 1)
    told, at_end = figures(played), satisfied(played)
    assert told["fairness"][-1] == pytest.approx(np.nanmin(at_end) / np.nanmax(at_end))
    assert told["velocity"] == pytest.approx(played.paid.sum(axis=1) / 400)
    assert told["price_index"] == pytest.approx(played.price.sum(axis=1) / 20)
    short, wants = ((played.got < 0.999) & (played.wanted > 0)).sum(axis=1), (played.wanted > 0).sum(axis=1)
    assert told["rationed"][wants > 0] == pytest.approx(short[wants > 0] / wants[wants > 0])
    assert sum(row["agents"] for row in by_kind(played)) == 8


# Who lies, hoards, or comes as several.


def gains(what: str, k: int, credits: Credits = ONE_DUTY, rounds: int = 60, played: range = range(3)) -> list[Gain]:
    return attack(credits, what, k, 8, rounds, played, quiet)


@pytest.mark.parametrize("credits", [ONE_DUTY, replace(TWO, duty=(0.5,))], ids=["one resource", "two"])
def test_ten_accounts_or_kinds_gain_at_most_a_hundredth(credits: Credits):
    for g in gains("sybil", 10, credits, played=range(2)):
        assert g.share.mean() <= 0.01, g.way


def test_hoarding_loses():
    found = gains("hoard", 10, played=range(2))
    assert all(g.share.mean() < -0.5 for g in found if g.way.startswith("asks in"))
    assert all(g.share.mean() <= 1e-6 for g in found)


def test_the_best_of_some_lies_gains_at_most_a_fiftieth():
    assert all(g.share.mean() <= 0.02 for g in gains("misreport", 20))


def test_a_lie_that_pays_is_found():
    """Equal parts of what is asked: who asks for more gets more, so the attack can tell a mechanism that invites lies."""
    found = gains("misreport", 20, replace(ONE_DUTY, mechanism="maxmin"))
    assert max(g.share.mean() for g in found) > 0.05


@pytest.mark.slow
def test_the_best_of_100_lies_gains_at_most_a_fiftieth():
    """Of 500: docs/economy.md has the command, which takes ten minutes."""
    for g in attack(BURSTY, "misreport", 100, 20, 200, range(3), quiet):
        assert g.share.mean() <= 0.02, g.way


# Fair over time.


def test_memory_of_all_use_evens_out_bursts():
    """min/max of the satisfied part: one seed of what is measured on twenty below."""
    told = compare(BURSTY, ["market", "drf"], 20, 400, [0], quiet).scores
    fair, use = told["fairness"], told["use"]
    assert fair[0].min() > 0.65
    assert fair[0].mean() > fair[1].mean() + 0.2
    assert use[0] == pytest.approx(use[1], abs=1e-6), "no less is used than by max-min"


@pytest.mark.slow
@pytest.mark.parametrize("credits", [BURSTY, TWO], ids=["one resource", "two"])
def test_bursts_are_served_fairly_on_twenty_seeds(credits: Credits):
    told = compare(credits, ["market", "drf", "karma"], 20, 400, range(20), quiet).scores
    assert told["fairness"][0].mean() >= 0.75
    assert told["fairness"][0].min() >= 0.65
    assert told["fairness"][0].mean() >= told["fairness"][2].mean()
    assert (told["use"][0] >= told["use"][1] - 1e-4).all()


def test_a_broke_tenant_gets_its_guarantee_every_round():
    """Its purse is emptied before every round; what it is served is what alpha of its part serves, and it owes nothing."""
    population = Population(replace(BURSTY, load=3.0), 8, 0)
    played, part = (
        Priced(population.credits, who := Identities(population, population.conduct()), population.ordinary),
        1 / 8,
    )
    limit = np.full(8, 2**62)
    for number, wanted in enumerate(population.wanted(60)):
        if held := int(played.balance[0]):
            played.accounts.perform(Act("transfer", who.name[0], held, who.name[1]))
        turn = played.turn(who.asked(number, wanted), limit)
        if wanted[0, 0]:
            assert turn.allocation.served[0] >= min(1.0, 0.5 * part * 200_000 / wanted[0, 0]) - 1e-6
            assert turn.bills is not None
            assert turn.bills.paid[0] == 0
    assert properties.liveness(population.credits, 8, 60, 0) == 1.0


# Sweeps.


def test_a_sweep_varies_one_number():
    found = sweep(Credits(), "half_life", [5.0, 50.0], 10, 20, [0, 1], quiet)
    assert found.values == ("5", "50")
    assert found.scores["fairness"].shape == (2, 2)
    assert found.difference("fairness", 0).mean == 0
    told = found.summary()
    assert told["by_value"]["50"]["fairness"]["above_first"]["seeds"] == 2


@pytest.mark.parametrize("key", ["mechanism", "agents", "half", "memory", "agents.robber.x", "alpha.x"])
def test_what_is_no_number_cannot_be_swept(key: str):
    with pytest.raises(BadInput, match="is no number of a credits file"):
        with_key(Credits(), key, 1.0)


# Properties, each seen to fail.

POOL = Market([[100.0], [100.0]], [[100.0]], [1.0, 1.0])
HALF = np.array([0.5, 0.5])


def given_out(share: list[float], price: float = 0.0, market: Market = POOL) -> Allocation:
    return Allocation(market, np.array(share), np.array([[price]]), "by hand", 0.0, 0.0, 0.0)


def test_checks_hold_for_equal_parts_and_fail_for_others():
    fair = given_out([0.5, 0.5], 0.02)
    assert properties.feasible(fair) == 0
    assert properties.feasible(given_out([0.5, 0.6])) == pytest.approx(10)
    assert properties.pareto(fair) == pytest.approx(0)
    assert properties.pareto(given_out([0.5, 0.3])) == pytest.approx(0.2)
    assert properties.envy(fair, HALF) == pytest.approx(0)
    assert properties.envy(given_out([0.7, 0.3]), HALF) == pytest.approx(0.4)
    assert properties.sharing(fair, HALF) == pytest.approx([0, 0])
    assert properties.sharing(given_out([0.7, 0.3]), HALF) == pytest.approx([0.2, -0.2])
    assert properties.slackness(fair) == pytest.approx(0)
    assert properties.slackness(given_out([0.5, 0.25], 0.02)) == pytest.approx(0.25)


def test_a_charge_above_the_bid_and_a_move_of_shares_are_found():
    population = Population(BURSTY, 4, 0)
    *_, (_, _, turn) = rounds_of(BURSTY, population, population.conduct(), 5)
    assert turn.bills is not None
    assert properties.budget(turn) == 0
    paid = turn.bills.paid + np.rint(turn.market.weight * MICRO).astype(np.int64) + MICRO
    assert properties.budget(replace(turn, bills=replace(turn.bills, paid=paid))) >= 1.0
    assert properties.stability(replace(BURSTY, half_life=3.0), 4, 0) < 1e-6
    unpriced = replace(BURSTY, mechanism="maxmin", load=4.0)
    assert properties.liveness(unpriced, 4, 30, 0) < 1.0, "a rule without guarantees gives none"


def test_the_market_keeps_its_promises_and_says_which_it_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(properties, "LIES", 5)
    found = properties.table(replace(ONE_DUTY, half_life=1.0), ["market"], 6, 12, [0, 1, 2], quiet)
    plain = {c.name: c for c in found["market, no memory"]}
    assert [name for name, c in plain.items() if not c.holds] == []
    assert {c.name for c in found["market"] if not c.holds} <= {"envy", "sharing", "sharing_in_time"}, (
        "in one round: memory is fair in many"
    )
    lines = properties.markdown(found).splitlines()
    assert len(lines) == 2 + len(properties.THRESHOLDS)
    assert all(line.count("|") == 5 for line in lines)


# Prices.


def test_price_laws_hold_in_drawn_markets():
    laws = properties.price_laws(20, 7)
    assert max(laws.capacity, laws.demand, laws.satiated, laws.bids) <= 1e-5  # prices of a gap of 1e-10
    assert min(laws.asked) >= 3


def test_price_laws_can_fail(monkeypatch: pytest.MonkeyPatch):
    """A mechanism whose prices are the load: they rise with capacity's part, and bids do not move them."""
    wrong = lambda market, gap: replace(clear(market), price=1.0 + market.capacity / market.demand.sum(axis=0))  # noqa: E731
    monkeypatch.setattr(properties, "priced", wrong)
    laws = properties.price_laws(12, 0)
    assert min(laws.capacity, laws.demand, laws.satiated, laws.bids) > 1e-3


@pytest.mark.slow
def test_price_laws_hold_in_a_thousand_markets():
    laws = properties.price_laws(1000, 0)
    assert max(laws.capacity, laws.demand, laws.satiated, laws.bids) <= 1e-5  # prices of a gap of 1e-10
