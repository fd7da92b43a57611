"""Recent use in the round: logged before the solve, counted again by anyone from the log alone, the same after a resume."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_log import KEY, genesis, small_log

from apportion.audit import verify
from apportion.clearing.clear import clear
from apportion.core.errors import BadWorld, EnforcerRefused, Refused
from apportion.core.market import Market
from apportion.ledger.canonical import read_entry
from apportion.ledger.log import Log
from apportion.ledger.note import Signer, write_key
from apportion.serve.build import Choice, Running, _market, play
from apportion.serve.folder import Folder
from apportion.settlement.memory import Memory
from apportion.worlds.world import World, load

WORLD = """
version: 1
name: small
half_life: {half_life}
alpha: {alpha}
pools: {{here: {{capacity: {{cpu: 1.2, memory: 1 GiB}}}}, there: {{capacity: {{cpu: 0.3, memory: 2 GiB}}}}}}
accounts: {{steady: {{entitlement: 40%}}, bursty: {{entitlement: 40%}}, away: {{entitlement: 20%}}}}
tasks:
  shop: {{kind: commerce, account: steady, demand: {{cpu: 1.5, memory: 64 MiB}}}}
  lobby: {{kind: game, account: bursty, demand: {{cpu: {small}, memory: 32 MiB}}, weight: 3}}
  arena: {{kind: game, account: bursty, demand: {{cpu: 0.25, memory: 64 MiB}}}}
  voice: {{kind: social, account: bursty, demand: {{cpu: 0.01, memory: 1 MiB}}}}
  items: {{kind: assets, account: away, demand: {{cpu: 0.05, memory: 16 MiB}}}}
events: [{{name: opening, at: 6 s, for: 4 s, task: [arena, voice], load: x6}}]
"""


def a_world(folder: Path, half_life: float | None = 3, alpha: float = 0.5, small: float = 0.1) -> World:
    path = folder / "small.yaml"
    text = WORLD.format(half_life=half_life, alpha=alpha, small=small)
    path.write_text(text if half_life else text.replace("half_life: None\n", ""))
    return load(path)


def rows(log: Log, entry: dict, table: str) -> list[dict]:
    return [json.loads(line) for line in log.blob(entry["tables"][table]["sha256"]).splitlines()]


def counted_again(log: Log) -> list[tuple[list[float], list[float]]]:
    """Per round the logged means, and those that docs/format.md gives, from the entries' JSON alone."""
    use: dict[int, float] = {}
    out, half_life, eta = [], 0.0, 1.0
    for entry in map(read_entry, log.entries()):
        if entry["type"] == "genesis":
            half_life = float(entry["settings"]["half_life"])
            entitled = [float(a["entitlement"]) for a in rows(log, entry, "accounts")]
        elif entry["type"] == "demand":
            eta = float(entry["eta"])
            assert eta == pytest.approx(1 - 2 ** (-1 / half_life))
            roster, tasks, pools = rows(log, entry, "roster"), rows(log, entry, "tasks"), rows(log, entry, "pools")
            whole = [sum(map(int, amounts)) for amounts in zip(*(p["capacity"] for p in pools), strict=True)]
            sizes = [max(int(d) / c for d, c in zip(t["demand"], whole, strict=True)) for t in tasks]
            payers = [t["account"] for t in roster]
            wanted = defaultdict(float)
            for a, size in zip(payers, sizes, strict=True):
                wanted[a] += size
            means = [
                use.get(a, entitled[a]) / wanted[a] if size else 0.0 for a, size in zip(payers, sizes, strict=True)
            ]
            out.append(([float(t["mean"]) for t in tasks], means))
        elif entry["type"] == "decision":
            shares = [sum(map(int, t["share"])) * 1e-9 for t in rows(log, entry, "shares")]
        elif entry["type"] == "bills":
            used = defaultdict(float)
            for a, share, size in zip(payers, shares, sizes, strict=True):
                used[a] += share * size
            use = {a: (1 - eta) * use.get(a, entitled[a]) + eta * used[a] for a in {*use, *payers}}
    return out


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    half_life=st.sampled_from([0.01, 1.0, 3.0, 110.0, 1e6]),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    small=st.sampled_from([0.001, 0.1, 1.2]),
    seed=st.integers(0, 99),
)
def test_anyone_counts_recent_use_again_from_the_log_alone(
    tmp_path_factory: pytest.TempPathFactory, half_life: float, alpha: float, small: float, seed: int
):
    folder = tmp_path_factory.mktemp("world")
    with Running(a_world(folder, half_life, alpha, small), Choice("sim", seed=seed), folder / "out") as running:
        list(running.rounds(12))
    with Folder(folder / "out").read() as log:
        for logged, again in counted_again(log):
            assert logged == pytest.approx(again, rel=1e-9, abs=1e-12)
    verdict = verify(folder / "out" / "ledger.db", folder / "out" / "operator.pub")
    assert any("12 rounds: what was used lately (eta, mean) counted again" in line for line in verdict.checked)


def test_a_resumed_world_remembers_what_was_used_before(tmp_path: Path):
    world, key = a_world(tmp_path), Signer.generate("apportion.local/small")
    heads = []
    for name, parts in (("whole", (12,)), ("again", (12,)), ("halves", (5, 1, 6))):
        (tmp_path / name).mkdir()
        write_key(tmp_path / name / "operator.key", key)
        for n, count in enumerate(parts):
            with Running(world, Choice("sim", seed=3, resume=n > 0), tmp_path / name) as running:
                list(running.rounds(count))
        with Folder(tmp_path / name).read() as log:
            heads.append([json.dumps(read_entry(e)) for e in log.entries()])
    assert heads[0] == heads[1] == heads[2]


def test_an_aborted_round_is_not_remembered_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world, out = a_world(tmp_path), tmp_path / "out"
    with Running(world, Choice("sim"), out) as running:
        list(running.rounds(3))
        assert running.engine is not None
        before = running.engine.memory.mean(world.tasks(0), world.pools({}).capacity)

        def refuse() -> None:
            raise EnforcerRefused("the machine said no")

        monkeypatch.setattr(running.engine.executor, "observe", refuse)
        running.first = 3
        with pytest.raises(EnforcerRefused):
            list(running.rounds(1))
        assert running.engine.memory.mean(world.tasks(0), world.pools({}).capacity).tolist() == before.tolist()
    with Running(world, Choice("sim", resume=True), out) as running:
        assert running.engine is not None
        assert running.engine.memory.mean(world.tasks(0), world.pools({}).capacity).tolist() == before.tolist()
        list(running.rounds(2))
    assert verify(out / "ledger.db", out / "operator.pub").aborted == 1


def test_who_used_little_lately_gets_more_of_a_burst(tmp_path: Path):
    """With alpha 0 all is sold: the burst of round 6 finds the steady shop with all that it used until then."""
    served = {}
    for half_life in (None, 10):
        *_, last = play(a_world(tmp_path, half_life, alpha=0.0), rounds=8)
        served[half_life] = last.allocation.served[2]
    assert served[10] > 1.2 * served[None]


def test_a_comparison_remembers_as_a_logged_run_does(tmp_path: Path):
    world = a_world(tmp_path)
    with Running(world, Choice("sim", seed=5), tmp_path / "out") as running:
        for logged, studied in zip(running.rounds(9), play(world, seed=5, rounds=9), strict=True):
            assert logged.market.mean.tolist() == studied.market.mean.tolist()
            assert logged.market.eta == studied.market.eta < 1


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3, deadline=None)
def test_a_long_memory_does_not_blur_the_round(seed: int):
    """Of a large market, cleared quickly, 0.1 % of what is used and remembered is more than the round itself."""
    rng = np.random.default_rng(seed)
    demand = np.ceil(rng.lognormal(5, 1, (2000, 3)))
    market = Market(
        demand,
        np.floor(np.full((8, 3), 0.6 / 8) * demand.sum(axis=0)),
        rng.lognormal(0, 1, 2000),
        mean=rng.uniform(0, 1, 2000),
        eta=Memory(110.0, np.ones(1)).eta,
    )
    played, exact = _market(market), clear(market, gap=1e-9)
    assert played.price == pytest.approx(exact.price, rel=0.02)
    assert np.abs(played.served - exact.served).mean() < 0.01


def test_a_long_memory_is_still_cleared_quickly(monkeypatch: pytest.MonkeyPatch):
    """The same digits of a round are asked for, however little it weighs: 10,000 tasks were left to the interior point, 20 x slower."""
    rng = np.random.default_rng(1)
    demand = np.ceil(rng.lognormal(5, 1, (2000, 3)))
    there = np.floor(np.full((8, 3), 0.6 / 8) * demand.sum(axis=0))
    past = {"mean": rng.uniform(0, 1, 2000), "eta": Memory(110.0, np.ones(1)).eta}

    def refuse(*_: object) -> None:
        raise AssertionError("the interior point was asked")

    monkeypatch.setattr("apportion.clearing.clear._exactly", refuse)
    market = Market(demand, there, rng.lognormal(0, 1, 2000), **past)
    assert _market(market).gap <= 1e-3 * market.eta


def test_nothing_is_remembered_without_a_half_life_or_without_prices(tmp_path: Path):
    for half_life, policy in ((None, "market"), (3, "equal")):
        for round in play(a_world(tmp_path, half_life), policy, rounds=3):
            assert (round.market.eta, round.market.mean.any()) == (1.0, False)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (Memory(5.0, np.array([0.4, 0.4, 0.2])), r"entry 1 \(demand, round 0\): eta: .* half-life of 3 gives 0.206"),
        (Memory(3.0, np.array([0.2, 0.4, 0.4])), r"entry 1 \(demand, round 0\): tasks.mean: .* for 'shop'"),
        (Memory(3.0, np.array([0.4, 0.4, 0.2]), of="bought"), r"entry 5 \(demand, round 1\): tasks.mean"),
        (Memory(None, np.array([0.4, 0.4, 0.2])), r"entry 1 \(demand, round 0\): eta: 1.0 is logged"),
    ],
    ids=["another half-life", "another beginning", "bought use", "none"],
)
def test_an_operator_who_remembers_otherwise_than_stated_is_found_out(tmp_path: Path, memory: Memory, said: str):
    out = tmp_path / "out"
    with Running(a_world(tmp_path), Choice("sim"), out) as running:
        assert running.engine is not None
        running.engine.memory = memory
        list(running.rounds(3))
    with pytest.raises(Refused, match=said):
        verify(out / "ledger.db", out / "operator.pub")


def test_a_log_that_states_no_half_life_or_a_wrong_one_is_told_so(tmp_path: Path):
    verdict = verify(small_log(tmp_path / "none.db", rounds=2), KEY.verifier.text)
    assert any(
        "tasks.mean): genesis states no half_life to count it by (2 rounds)" in line for line in verdict.unchecked
    )
    stated = replace(genesis(), body={**genesis().body, "settings": {"half_life": "-1"}})
    with Log.create(tmp_path / "wrong.db", KEY) as log:
        log.append([stated])
    with pytest.raises(Refused, match=r"entry 0 \(genesis\): settings.half_life: half_life is -1.0 rounds"):
        verify(tmp_path / "wrong.db", KEY.verifier.text)


@pytest.mark.parametrize("half_life", ["0", "1e7"])
def test_a_half_life_that_cannot_be_is_refused_by_its_line(tmp_path: Path, half_life: str):
    with pytest.raises(BadWorld, match=r"small.yaml:4: half_life is '(0|1e7)'"):
        a_world(tmp_path, half_life)  # type: ignore[arg-type]
