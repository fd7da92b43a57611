"""The audit accepts what is true, refuses what is not, and says what it could not see."""

from __future__ import annotations

import dataclasses
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from small_log import ALPHA, ENTITLEMENT, KAPPA, KEY, SUPPLY, Played, genesis, opening, play, small_log, write_round

from apportion.audit import verify
from apportion.audit.certificate import Certificate
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput, Refused, Unverifiable
from apportion.core.market import Market
from apportion.core.round import Bills, Posting, Postings
from apportion.core.units import PRICE, SHARE
from apportion.ledger import reading, records
from apportion.ledger.log import Log
from apportion.ledger.note import Signer
from apportion.settlement.settle import settle

VKEY = KEY.verifier.text


def resettled(p: Played, allocation: Allocation) -> Bills:
    return settle(p.tasks, allocation, p.outcome, p.before, ENTITLEMENT, ALPHA, KAPPA, SUPPLY)


def written(path: Path, change: Callable[[Played], Played], policy: str = "market") -> Path:
    """Write three rounds, the second one changed, all signed by the operator: only the economics can tell."""
    balance = opening()
    with Log.create(path, KEY) as log:
        log.append([genesis()])
        for number in range(3):
            p = play(10 + number, balance)
            if number == 1:
                p = change(p)
            write_round(log, number, p, policy)
            balance = p.after
    return path


# --- what is true -----------------------------------------------------------------------------------------------------


def test_a_true_log_is_accepted_and_the_verdict_says_what_was_not_checked(tmp_path: Path):
    verdict = verify(small_log(tmp_path / "ledger.db", rounds=4), VKEY)
    assert (verdict.rounds, verdict.aborted, verdict.head.size) == (4, 0, 17)
    assert 0 <= verdict.gap < np.inf
    assert "NOT checked" in str(verdict)
    assert any("delivered" in line for line in verdict.unchecked)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), m=st.integers(1, 3))
@settings(max_examples=10)
def test_any_true_world_is_accepted(seed: int, n: int, m: int, tmp_path_factory: pytest.TempPathFactory):
    path = small_log(tmp_path_factory.mktemp("log") / "ledger.db", 2, seed, n, m)
    assert verify(path, VKEY).rounds == 2


def test_aborted_and_open_rounds_are_accepted_for_what_they_are(tmp_path: Path):
    path = small_log(tmp_path / "ledger.db", rounds=2)
    p = play(9, opening())
    with Log.open(path, KEY) as log:
        now = reading.state(log)
        log.append([records.demand(2, "2.000", p.tasks, p.pools, p.market, now.balance)])
        log.append([records.aborted(2, "3.000", "the controller died"), records.act("3.000", "release")])
        log.append([records.demand(3, "3.000", p.tasks, p.pools, p.market, now.balance)])
    verdict = verify(path, VKEY)
    assert (verdict.rounds, verdict.aborted) == (3, 1)
    assert any("not closed" in line for line in verdict.unchecked)


def test_a_log_is_verified_while_it_is_written(tmp_path: Path):
    with Log.create(tmp_path / "ledger.db", KEY) as log:
        log.append([genesis()])
        assert verify(tmp_path / "ledger.db", VKEY).head.size == 1
        write_round(log, 0, play(1, opening()))
        assert verify(tmp_path / "ledger.db", VKEY).head.size == 5


def test_the_key_may_be_text_or_file(tmp_path: Path):
    path = small_log(tmp_path / "ledger.db", rounds=1)
    (tmp_path / "operator.pub").write_text(VKEY + "\n")
    for key in (VKEY, KEY.verifier, tmp_path / "operator.pub", str(tmp_path / "operator.pub")):
        assert verify(path, key, level=0).level == 0


# --- the gap ----------------------------------------------------------------------------------------------------------


def best(market: Market) -> float:
    """Solve one round by SciPy, which knows nothing of prices: the most that Nash welfare can be."""
    e, row = len(market.indices), market.row
    had = np.bincount(row, weights=market.free, minlength=len(market.demand))

    def worth(x: np.ndarray) -> float:
        u = np.bincount(row, weights=market.value * x, minlength=len(market.demand))
        return -float((market.weight * np.log((1 - market.eta) * market.mean + market.eta * u + 1e-300)).sum())

    left = market.capacity - market.load(market.free)
    limits = [
        {"type": "ineq", "fun": lambda x: 1 - np.bincount(row, weights=x, minlength=len(had)) - had},
        {"type": "ineq", "fun": lambda x: np.bincount(row, weights=x, minlength=len(had)) + had - market.floor},
        {"type": "ineq", "fun": lambda x: ((left - market.load(x)) / market.capacity).ravel()},
    ]
    start = np.full(e, 1e-3)
    found = minimize(worth, start, bounds=[(0, 1)] * e, constraints=limits, method="SLSQP", options={"maxiter": 300})
    assert min(float(limit["fun"](found.x).min()) for limit in limits) > -1e-6
    return -float(found.fun)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_the_enclosed_bound_is_no_less_than_an_independent_optimum(seed: int):
    p = play(seed, opening(), n=3, m=2)
    sale = Certificate(p.market, p.allocation)
    most = best(p.market)
    assert float(sale.bound()) >= most - 1e-6 * (1 + abs(most))
    assert float(sale.value()) == pytest.approx(p.allocation.value, rel=1e-12)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), m=st.integers(1, 4), scarce=st.booleans())
@settings(max_examples=20)
def test_the_clearing_room_and_the_audit_come_to_one_gap(seed: int, n: int, m: int, scarce: bool):
    clear, fix = (
        pytest.importorskip("apportion.clearing.clear").clear,
        pytest.importorskip("apportion.clearing.fix").fix,
    )
    market = play(seed, opening(), n, m, scarce).market
    allocation = fix(clear(market))
    sale = Certificate(market, allocation)
    assert float(sale.value()) == pytest.approx(allocation.value, rel=1e-10, abs=1e-10)
    assert float(sale.bound()) == pytest.approx(allocation.bound, rel=1e-9, abs=1e-9)


def test_cleared_rounds_are_accepted_with_the_gap_that_was_promised(tmp_path: Path):
    clear, fix = (
        pytest.importorskip("apportion.clearing.clear").clear,
        pytest.importorskip("apportion.clearing.fix").fix,
    )
    balance = opening()
    with Log.create(tmp_path / "ledger.db", KEY) as log:
        log.append([genesis()])
        for number in range(3):
            p = play(number, balance, 6, 2, allocate=lambda market, _: fix(clear(market)))
            write_round(log, number, p)
            balance = p.after
    assert verify(tmp_path / "ledger.db", VKEY).gap < 1e-3


# --- what is not true, though it is signed ------------------------------------------------------------------------------


def shifted(p: Played, **changes: object) -> Played:
    return dataclasses.replace(p, **changes)


def overfull(p: Played) -> Played:
    share = np.ones_like(p.allocation.share) / len(p.pools.name)
    return shifted(p, allocation=dataclasses.replace(p.allocation, share=np.rint(share * SHARE) / SHARE))


def one_part_too_many(p: Played) -> Played:
    """Give one pair all that its pool still holds, and one part more."""
    market, parts = p.market, p.allocation.parts
    left = market.capacity.astype(int) * SHARE
    for e, (i, j) in enumerate(zip(market.row, market.indices, strict=True)):
        left[j] -= market.demand[i].astype(int) * parts[e]
    room = [
        int((left[j] // market.demand[i].astype(int)).min()) for i, j in zip(market.row, market.indices, strict=True)
    ]
    per_task = np.bincount(market.row, weights=parts)
    e = next(k for k in range(len(parts)) if per_task[market.row[k]] + room[k] + 1 < SHARE)
    parts = parts + (np.arange(len(parts)) == e) * (room[e] + 1)
    return shifted(p, allocation=dataclasses.replace(p.allocation, share=parts / SHARE))


def unkept_floor(p: Played) -> Played:
    parts = p.allocation.market.free_parts
    had = np.bincount(p.market.row, weights=parts) / SHARE
    market = rebuilt(p.market, floor=np.minimum(had + 0.01, 1))
    tasks = dataclasses.replace(p.tasks, floor=market.floor)
    allocation = dataclasses.replace(p.allocation, market=market, share=parts / SHARE)
    return shifted(p, tasks=tasks, market=market, allocation=allocation)


def rebuilt(market: Market, **changes: object) -> Market:
    kept = {f.name: getattr(market, f.name) for f in dataclasses.fields(market)}
    return Market(**{**kept, **changes})


def rich_bid(p: Played) -> Played:
    market = rebuilt(p.market, weight=np.full(len(p.market.weight), 2000.0))
    return shifted(p, market=market)


def greedy_guarantee(p: Played) -> Played:
    return shifted(p, market=rebuilt(p.market, free=np.minimum(p.market.free * 4 + 0.2, 1)))


def hidden_break(p: Played) -> Played:
    """Lower a promise where demand is admitted, and say nothing."""
    market = rebuilt(p.market, floor=np.zeros(len(p.market.demand)))
    return shifted(p, market=market, tasks=dataclasses.replace(p.tasks, floor=np.full(len(p.tasks.name), 0.4)))


def another_posting(p: Played) -> Played:
    lines = list(p.bills.postings)
    lines[0] = dataclasses.replace(lines[0], amount=lines[0].amount - 1)
    return shifted(p, bills=dataclasses.replace(p.bills, postings=Postings.of(*lines)))


def one_posting_less(p: Played) -> Played:
    return shifted(p, bills=dataclasses.replace(p.bills, postings=p.bills.postings[:-1]))


def a_gift(p: Played) -> Played:
    lines = Postings.of(*p.bills.postings, Posting(0, "charge", -5), Posting(1, "dividend", 5))
    after = p.after + np.array([-5, 5, 0])
    return shifted(p, bills=dataclasses.replace(p.bills, postings=lines), after=after)


def minted(p: Played) -> Played:
    return shifted(p, after=p.after + np.array([1, 0, 0]))


def lost(p: Played) -> Played:
    return shifted(p, before=p.before - np.array([1, 0, 0]))


def waived(p: Played) -> Played:
    return shifted(p, bills=dataclasses.replace(p.bills, waived=p.bills.waived + 1))


def stated(**numbers: float) -> Callable[[Played], Played]:
    return lambda p: shifted(p, allocation=dataclasses.replace(p.allocation, **numbers))


def cheaper(p: Played) -> Played:
    """Halve the prices, keep the bound that the right ones proved, and settle as if nothing were."""
    price = np.floor(p.allocation.price * PRICE / 1000) / PRICE
    w = p.market.weight.sum()
    low = p.allocation.value + 1e-6
    allocation = dataclasses.replace(p.allocation, price=price, bound=low, gap=float(np.expm1(1e-6 / w)))
    return shifted(p, allocation=allocation)


def less_than_free(p: Played) -> Played:
    return shifted(p, allocation=dataclasses.replace(p.allocation, share=np.zeros_like(p.allocation.share)))


UNTRUE = {
    overfull: "decision, round 1.*pool .* would give",
    one_part_too_many: "decision, round 1.*pool .* would give",
    unkept_floor: "decision, round 1.*its floor is",
    rich_bid: "demand, round 1.*bids",
    greedy_guarantee: "demand, round 1.*guarantee",
    another_posting: r"bills, round 1.*postings\[0\]",
    one_posting_less: "bills, round 1.*postings",
    a_gift: "bills, round 1.*postings",
    minted: "bills, round 1.*balances",
    lost: "demand, round 1.*was left with",
    waived: "bills, round 1.*waived",
    stated(value=1.0): "decision, round 1.*value",
    stated(gap=0.0): "decision, round 1.*gap",
    stated(gap=float("nan")): "decision, round 1.*gap",
    cheaper: "decision, round 1.*bound",
    less_than_free: "decision, round 1.*guarantee",
}


@pytest.mark.parametrize("change", UNTRUE, ids=[f"{k}-{getattr(f, '__name__', '')}" for k, f in enumerate(UNTRUE)])
def test_what_is_not_true_is_refused_though_it_is_signed(tmp_path: Path, change: Callable[[Played], Played]):
    path = written(tmp_path / "ledger.db", change)
    with pytest.raises(Refused, match=UNTRUE[change]) as error:
        verify(path, VKEY)
    assert str(error.value).startswith("entry ")
    assert verify(path, VKEY, level=0).level == 0


@given(
    account=st.integers(0, 2),
    change=st.integers(-(10**6), 10**6).filter(bool),
    where=st.sampled_from(["before", "after"]),
)
@settings(max_examples=6)
def test_no_balance_changes_without_a_row(
    account: int, change: int, where: str, tmp_path_factory: pytest.TempPathFactory
):
    def edit(p: Played) -> Played:
        return shifted(p, **{where: getattr(p, where) + change * (np.arange(3) == account)})

    with pytest.raises(Refused, match=r"balances|postings|charges"):
        verify(written(tmp_path_factory.mktemp("log") / "ledger.db", edit), VKEY)


def test_hidden_breaks_are_not_hidden_by_dropping_the_table(tmp_path: Path):
    """The writer adds `floor_broken` by itself; a log that was made without it is refused."""
    p = hidden_break(play(3, opening()))
    record = records.demand(0, "0.000", p.tasks, p.pools, p.market, p.before)
    tables = {name: rows for name, rows in record.tables.items() if name != "floor_broken"}
    with Log.create(tmp_path / "ledger.db", KEY) as log:
        log.append([genesis(), dataclasses.replace(record, tables=tables), records.aborted(0, "1.000", "so")])
    with pytest.raises(Refused, match="floor_broken"):
        verify(tmp_path / "ledger.db", VKEY)


def test_a_policy_without_prices_proves_no_gap_and_the_verdict_says_so(tmp_path: Path):
    def plain(p: Played) -> Played:
        w = p.market.weight.sum()
        allocation = dataclasses.replace(
            p.allocation,
            price=np.zeros_like(p.allocation.price),
            bound=p.allocation.value + 1e-6,
            gap=float(np.expm1(1e-6 / w)),
        )
        bills = resettled(p, allocation)
        return shifted(p, allocation=allocation, bills=bills, after=p.before)

    verdict = verify(written(tmp_path / "ledger.db", plain, policy="equal"), VKEY)
    assert any("'equal'" in line and "(1 round)" in line for line in verdict.unchecked)


# --- what was changed after it was signed -------------------------------------------------------------------------------


def contents(path: Path) -> tuple:
    with Log.open(path) as log:
        return list(log.entries()), dict(log.blobs()), list(log.heads())


def flipped(path: Path, spare: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    spare.write_bytes(data)


def refused_or_unchanged(spare: Path, before: tuple) -> bool:
    """Tell whether a damaged log is refused; it may be accepted only if nothing that was signed changed."""
    try:
        verify(spare, VKEY, level=0)
    except (Refused, Unverifiable):
        return True
    assert contents(spare) == before
    return False


def test_a_flipped_bit_anywhere_in_the_file_is_refused_or_changes_nothing(tmp_path: Path):
    path, spare = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "spare.db"
    before, size, rng = contents(path), path.stat().st_size, random.Random(1)
    refused = 0
    for _ in range(80):
        flipped(path, spare, rng.randrange(size), rng.randrange(8))
        refused += refused_or_unchanged(spare, before)
    assert refused > 4


EVERY_BIT = """
import sys
from pathlib import Path
from apportion.audit import verify
from apportion.core.errors import Refused, Unverifiable
from apportion.ledger.log import Log
path, spare, vkey = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def contents(path):
    with Log.open(path) as log:
        return list(log.entries()), dict(log.blobs()), list(log.heads())
whole, before, refused = path.read_bytes(), contents(path), 0
for at in range(len(whole)):
    for bit in range(8 if whole[at] else 1):
        spare.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            verify(spare, vkey, level=0)
        except (Refused, Unverifiable):
            refused += 1
        else:
            assert contents(spare) == before, (at, bit)
print(refused)
"""


@pytest.mark.slow
def test_every_bit_of_a_small_log_is_refused_or_changes_nothing(tmp_path: Path):
    """In a process of its own: without shape checks it takes a minute instead of ten."""
    path = tmp_path / "ledger.db"
    with Log.create(path, KEY) as log:
        log.append([genesis()])
    command = [sys.executable, "-c", EVERY_BIT, str(path), str(tmp_path / "spare.db"), VKEY]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) > 1000


CELLS = [("entries", "entry"), ("blobs", "data"), ("blobs", "sha256"), ("heads", "note"), ("frontier", "peaks")]


@pytest.mark.parametrize(("table", "column"), CELLS)
def test_a_flipped_bit_in_any_cell_is_refused(tmp_path: Path, table: str, column: str):
    path, spare, rng = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "spare.db", random.Random(2)
    for _ in range(20):
        shutil.copy(path, spare)
        db = sqlite3.connect(spare)
        rows = db.execute(f"SELECT rowid, CAST({column} AS BLOB) FROM {table}").fetchall()
        rowid, cell = rows[rng.randrange(len(rows))]
        at, bit = rng.randrange(len(cell)), rng.randrange(7)
        cell = cell[:at] + bytes([cell[at] ^ 1 << bit]) + cell[at + 1 :]
        text = column in ("note", "sha256")
        db.execute(
            f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (cell.decode("latin-1") if text else cell, rowid)
        )
        db.commit()
        db.close()
        with pytest.raises((Refused, Unverifiable)):
            verify(spare, VKEY, level=0)


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM heads WHERE size = (SELECT MAX(size) FROM heads)",
        "INSERT INTO blobs VALUES ('00', x'00')",
        "UPDATE entries SET idx = idx + 100 WHERE idx = 2",
        "DELETE FROM meta WHERE name = 'vkey'",
    ],
)
def test_missing_and_added_rows_are_refused(tmp_path: Path, edit: str):
    path = small_log(tmp_path / "ledger.db", rounds=1)
    db = sqlite3.connect(path)
    db.execute(edit)
    db.commit()
    db.close()
    with pytest.raises(Refused):
        verify(path, VKEY, level=0)


def test_a_missing_table_is_no_yes(tmp_path: Path):
    path = small_log(tmp_path / "ledger.db", rounds=1)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM blobs WHERE rowid = 3")
    db.commit()
    db.close()
    with pytest.raises(Unverifiable, match="not in the store"):
        verify(path, VKEY)


def test_missing_things_are_no_yes_either(tmp_path: Path):
    path = small_log(tmp_path / "ledger.db", rounds=1)
    for wrong in (
        lambda: verify(tmp_path / "none.db", VKEY),
        lambda: verify(path, "none.pub"),
        lambda: verify(path, "no+key"),
    ):
        with pytest.raises(Unverifiable) as error:
            wrong()
        assert error.value.exit_code == 3
    Log.create(tmp_path / "empty.db", KEY).close()
    with pytest.raises(Unverifiable, match="no head"):
        verify(tmp_path / "empty.db", VKEY)
    with pytest.raises(Refused, match="to be checked with"):
        verify(path, Signer.generate("world.example/small").verifier)
    with pytest.raises(BadInput, match="level"):
        verify(path, VKEY, level=4)


def test_a_verify_starts_without_solver_torch_and_ray(tmp_path: Path):
    """What a level 2 has loaded when it is done: they are most of the time that starting would take."""
    path, key = small_log(tmp_path / "ledger.db"), VKEY
    heavy = ("scipy", "torch", "ray", "numba", "duckdb", "onnxruntime", "apportion.worlds", "apportion.clearing")
    told = f"print([m for m in {heavy} if m in sys.modules])"
    alone = f"import sys; from apportion.audit import verify; verify({str(path)!r}, {key!r}); {told}"
    main = "from apportion.serve.cli import main"
    typed = f"import sys, atexit; {main}; sys.argv[1:] = ['verify', {str(path)!r}, '--key', {key!r}]; atexit.register(lambda: {told}); main()"
    for code in (alone, typed):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert out.stdout.splitlines()[-1] == "[]"
    assert "accepted at level 2" in out.stdout


def test_a_run_set_aside_is_verified_with_the_key_beside_it(tmp_path: Path):
    """The new run's key does not fit an older one; the verdict names the one that does, and only that one."""
    old, new = tmp_path / "old" / "1", Signer.generate("world.example/small").verifier
    old.mkdir(parents=True)
    path, beside = small_log(old / "ledger.db"), old / "operator.pub"
    with pytest.raises(Refused) as bare:
        verify(path, new)
    beside.write_text(VKEY + "\n")
    with pytest.raises(Refused, match=f"key lies beside it: --key {beside}"):
        verify(path, new)
    verify(path, beside)
    for other in (new.text, "no key"):
        beside.write_text(other + "\n")
        with pytest.raises(Refused) as error:
            verify(path, new)
        assert str(error.value) == str(bare.value)


# --- what happens between rounds ----------------------------------------------------------------------------------------


def moved(path: Path, postings: list[Posting], after: list[int], supply: int | None = None) -> Path:
    with Log.create(path, KEY) as log:
        log.append([genesis()])
        log.append([records.transfer("0.000", postings, np.array(after), "joined", supply)])
    return path


def test_money_moves_between_rounds_with_a_row_for_every_change(tmp_path: Path):
    g, m, c = opening().tolist()
    lines = [Posting(0, "transfer", -7), Posting(1, "transfer", 7), Posting(2, "mint", 100), Posting(0, "burn", -3)]
    path = moved(tmp_path / "ledger.db", lines, [g - 10, m + 7, c + 100])
    with Log.open(path, KEY) as log:
        state = reading.state(log)
        assert state.balance.tolist() == [g - 10, m + 7, c + 100]
        log.append([records.demand(0, "1.000", *asked(3), state.balance), records.aborted(0, "2.000", "so")])
    assert any("1 transfers" in line for line in verify(path, VKEY).checked)


def asked(seed: int) -> tuple:
    p = play(seed, opening())
    return p.tasks, p.pools, p.market


@pytest.mark.parametrize(
    ("postings", "change", "made"),
    [
        ([Posting(0, "transfer", 5)], [5, 0, 0], 5),
        ([Posting(0, "mint", 5)], [5, 0, 0], 0),
        ([Posting(0, "mint", 5)], [6, 0, 0], 5),
        ([Posting(0, "mint", -5)], [-5, 0, 0], -5),
        ([Posting(0, "burn", 5)], [5, 0, 0], 5),
        ([Posting(0, "charge", -5), Posting(1, "charge", 5)], [-5, 5, 0], 0),
        ([], [-5, 5, 0], 0),
        ([Posting(7, "mint", 5)], [0, 0, 0], 5),
        ([Posting(0, "burn", -(10**12))], [-(10**12), 0, 0], -(10**12)),
    ],
)
def test_transfers_that_do_not_add_up_are_refused(tmp_path: Path, postings: list, change: list, made: int):
    after = (opening() + np.array(change)).tolist()
    with pytest.raises(Refused, match=r"entry 1 \(transfer"):
        verify(moved(tmp_path / "ledger.db", postings, after, SUPPLY + made), VKEY)


def test_no_money_moves_within_a_round(tmp_path: Path):
    with Log.create(tmp_path / "ledger.db", KEY) as log:
        log.append([genesis(), records.demand(0, "1.000", *asked(3), opening())])
        log.append([records.transfer("1.000", [], opening(), "now")])
    with pytest.raises(Refused, match="between rounds"):
        verify(tmp_path / "ledger.db", VKEY)


def test_keys_are_a_chain_and_any_of_them_will_do(tmp_path: Path):
    path, two, three = small_log(tmp_path / "ledger.db", rounds=1), Signer.generate(KEY.name), Signer.generate(KEY.name)
    with Log.open(path, KEY) as log:
        log.rotate(two, "5.000")
        log.append([records.note("6.000", "on")])
        log.rotate(three, "7.000")
        log.append([records.model("8.000", "value", "ab" * 32), records.anchor("8.000", "a chain", 5, "00" * 32)])
    with Log.open(path, three) as log:
        log.append([records.note("9.000", "on")])
    for key in (KEY, two, three):
        assert verify(path, key.verifier, level=3).head.size == 11
    assert any("value abab" in line for line in verify(path, VKEY, level=3).unchecked)
    assert verify(path, VKEY, level=3).models == ("value abababababab",)  # the command exits 3: it could not check
    assert verify(path, VKEY).models == ()
    with pytest.raises(Refused, match="to be checked with"):
        verify(path, Signer.generate(KEY.name).verifier)
    with pytest.raises(BadInput, match="own key"):
        Log.open(path, two)
    with Log.open(path, three) as log, pytest.raises(BadInput, match="cannot follow"):
        log.rotate(Signer.generate("another.example"), "9.000")


def test_a_key_that_was_not_handed_over_signs_nothing(tmp_path: Path):
    """The entry names the thief's key, and no head of both keys ends with it."""
    path, thief = tmp_path / "ledger.db", Signer.generate(KEY.name)
    with Log.create(path, thief) as log:
        log.append([genesis()])
        body = {"at": "1.000", "old": VKEY, "new": thief.verifier.text}
        log.append([records.Record("key_rotation", body, {})])
        log.append([records.note("2.000", "mine")])
    with pytest.raises(Refused, match="no known key"):
        verify(path, VKEY, level=0)
