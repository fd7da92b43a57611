"""Entries in, rounds out: what a log says, held to the order law and given as the nouns of core.

    genesis  { demand  decision  outcome  bills | demand [decision [outcome]] aborted | transfer }*

and act, note, model, anchor and key_rotation anywhere after genesis. Rounds count from 0 without a gap. Nothing here judges the economics; `audit` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Int

from apportion.core.allocation import Allocation
from apportion.core.errors import Refused
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import POSTING_KINDS, Bills, Outcome, Postings
from apportion.core.units import MICRO, PRICE, SHARE, resource
from apportion.ledger.canonical import LASTING, Json, open_table, read_entry
from apportion.ledger.logged import Genesis, Limits, LoggedRound, State, Store, Transfer
from apportion.ledger.numbers import (
    to_balances,
    to_counter,
    to_index,
    to_int,
    to_ints,
    to_matrix,
    to_maybe,
    to_real,
    to_special,
    to_text,
    to_vector,
)

_DEMAND = b',"type":"demand"}'  # how such an entry ends, and no other: an inner object would end in two braces


class Reader:
    """Reads entries in order and gives what they say, holding them to the order law.

    Raises Refused naming the entry and the field. `fetch` gives a table's bytes by SHA-256; `hashed` says that they
    were held against their entries before.
    """

    def __init__(self, fetch: Callable[[str], bytes], *, hashed: bool = False):
        self._fetch, self._hashed = fetch, hashed
        self._lasting: dict[str, tuple[Json, list[dict[str, Json]]]] = {}  # by name: the last one read
        self.genesis: Genesis | None = None
        self.open: LoggedRound | None = None
        self.balance = np.zeros(0, np.int64)  # micro-credits, as the last entry left them
        self.moved: Transfer | None = None  # where the last entry was a transfer
        self.models: dict[str, str] = {}  # SHA-256 of each model that decides, by its name
        self.number = 0  # of the next round
        self.index = 0  # of the next entry

    def read(self, data: bytes) -> LoggedRound | None:
        """Take the next entry; give the round that it closes, if it closes one."""
        index, kind = self.index, "unread"
        self.moved = None
        try:
            entry = read_entry(data)
            kind = entry["type"]
            closed = self._take(entry, kind)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise Refused(f"entry {index} ({kind}): {what}.") from None
        except Refused as error:
            raise Refused(f"entry {index} ({kind}): {error}") from None
        self.index += 1
        return closed

    def skip(self, index: int, demand: dict[str, Json]) -> None:
        """Go on at a demand without what is before it, in a log whose order was held to the law when it was written."""
        if self.genesis is None or demand["type"] != "demand":
            raise Refused(f"entry {index}: only a demand says where a log stands.")
        self.index, self.number = index, to_index(demand["round"])
        self.balance = to_balances(self._table(demand, "balances"), len(self.genesis.accounts))

    def _take(self, entry: dict[str, Json], kind: str) -> LoggedRound | None:
        if (kind == "genesis") != (self.index == 0):
            raise Refused("genesis stands at 0 and nowhere else.")
        if kind == "genesis" or self.genesis is None:
            self.genesis = self._genesis(entry)
            self.balance = self.genesis.balance
        elif kind in ("act", "note", "anchor", "key_rotation"):
            to_text(entry["at"])
        elif kind == "model":
            self.models[to_text(entry["name"])] = to_text(entry["digest"])
        elif kind == "transfer":
            self.moved = self._transfer(entry)
            self.balance = self.moved.balance
        elif kind == "demand":
            self.open = self._demand(entry, self.genesis)
        elif kind in ("decision", "outcome", "bills", "aborted"):
            return self._follow(entry, kind)
        else:
            raise Refused(f"type {kind!r} is not known.")
        return None

    def _follow(self, entry: dict[str, Json], kind: str) -> LoggedRound | None:
        now = self.open
        if now is None or entry["round"] != now.number:
            raise Refused(f"round: {entry['round']!r} has no demand before it, or is closed.")
        if kind == "decision":
            _order(now.allocation is None, "a round is decided once.")
            now.policy, now.allocation = to_text(entry["policy"]), self._allocation(entry, now.market)
        elif kind == "outcome":
            _order(now.allocation is not None and now.outcome is None, "one outcome follows the decision.")
            now.outcome = self._outcome(entry, now.market)
        elif kind == "bills":
            _order(now.outcome is not None, "bills follow the outcome.")
            now.bills, now.balance = self._bills(entry, now)
        else:
            now.aborted, now.balance = to_text(entry["why"]), now.balance_before
        now.entries[kind] = self.index
        if now.balance is not None:  # closed
            self.open, self.balance = None, now.balance
            return now
        return None

    def _table(self, entry: dict[str, Json], name: str) -> list[dict[str, Json]]:
        reference = entry["tables"][name]
        if name in LASTING and reference == self._lasting.get(name, (None,))[0]:
            return self._lasting[name][1]
        rows = open_table(reference, self._fetch(to_text(reference["sha256"])), hashed=self._hashed)
        if name in LASTING:
            self._lasting[name] = (reference, rows)
        return rows

    def _genesis(self, entry: dict[str, Json]) -> Genesis:
        accounts, resources = self._table(entry, "accounts"), self._table(entry, "resources")
        out = Genesis(
            at=to_text(entry["at"]),
            world=to_text(entry["world"]),
            digest=to_text(entry["digest"]),
            resources=tuple(to_text(r["resource"]) for r in resources),
            accounts=tuple(to_text(a["account"]) for a in accounts),
            entitlement=np.array([to_real(a["entitlement"]) for a in accounts], float),
            parent=np.array([-1 if a.get("parent") is None else to_index(a["parent"]) for a in accounts], np.int64),
            share=np.array([to_real(a.get("share", a["entitlement"])) for a in accounts], float),
            budgets=_budgets(accounts, len(resources)),
            balance=to_ints([a["balance"] for a in accounts]),
            alpha=to_real(entry["alpha"]),
            kappa=to_real(entry["kappa"]),
            supply=to_int(entry["supply"]),
            credits_per_round=to_int(entry["credits_per_round"]),
            policy=to_text(entry["policy"]),
            seed=to_index(entry["seed"]),
            engine=to_text(entry["engine"]),
            round_seconds=to_real(entry["round_seconds"]),
            settings={to_text(k): to_text(v) for k, v in entry["settings"].items()},
        )
        for r in resources:
            known = resource(r["resource"])
            if (r["unit"], r["base"], to_int(r["scale"])) != (known.unit, known.base, known.scale):
                raise Refused(
                    f"tables.resources: {r['resource']!r} is counted in other units than docs/format.md says."
                )
        _order(int(out.balance.sum()) == out.supply, "supply: it is not the sum of the opening balances.")
        _order(bool((out.balance >= 0).all()), "tables.accounts: a balance is below 0.")
        return out

    def _demand(self, entry: dict[str, Json], genesis: Genesis) -> LoggedRound:
        number = to_index(entry["round"])
        _order(self.open is None, f"round: the round before {number} is not closed.")
        _order(number == self.number, f"round: {number} does not follow; {self.number} does.")
        roster, rows = self._table(entry, "roster"), self._table(entry, "tasks")
        pools_table, balances = self._table(entry, "pools"), self._table(entry, "balances")
        resources, accounts = genesis.resources, len(genesis.accounts)
        names = tuple(to_text(t["task"]) for t in roster)
        _order(names == tuple(t["task"] for t in rows), "tables.tasks: other tasks than in tables.roster.")
        pools = Pools(
            tuple(to_text(p["pool"]) for p in pools_table),
            resources,
            to_matrix([p["capacity"] for p in pools_table], len(resources)),
        )
        wanted = to_matrix([t["demand"] for t in rows], len(resources))
        owner = np.array([to_index(t["account"]) for t in roster], np.int64)
        sponsor = np.array([-1 if t["sponsor"] is None else to_index(t["sponsor"]) for t in roster], np.int64)
        _order(bool(((owner < accounts) & (sponsor < accounts)).all()), "tables.roster: an account is not in genesis.")
        tasks = Tasks(
            name=names,
            kind=tuple(to_text(t["kind"]) for t in roster),
            account=owner,
            sponsor=sponsor,
            demand=wanted,
            base=to_matrix([t["base"] for t in roster], len(resources)),
            surge=to_vector([t["surge"] for t in rows]),
            floor=to_vector([t["floor"] for t in rows]),
            cap=to_vector([t["cap"] for t in rows]),
            weight=to_vector([t["weight"] for t in roster]),
            priority=np.array([to_counter(t["priority"]) for t in roster], np.int64),
            target=to_vector([t["target"] for t in roster]),
            eligible=tuple(tuple(to_index(j) for j in t["eligible"]) for t in roster),
        )
        counts = [len(t["pool"]) for t in rows]
        _order(
            all(len(t["value"]) == len(t["free"]) == n for t, n in zip(rows, counts, strict=True)),
            "tables.tasks: pool, value and free must be equally long.",
        )
        market = Market(
            wanted,
            pools.capacity,
            _within("tables.tasks.bid", to_ints([t["bid"] for t in rows]), 2**53) / MICRO,
            to_vector([v for t in rows for v in t["value"]]),
            indptr=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            indices=np.array([to_index(j) for t in rows for j in t["pool"]], np.int64),
            floor=to_vector([t["floor_kept"] for t in rows]),
            cap=to_vector([t["cap_kept"] for t in rows]),
            mean=to_vector([t["mean"] for t in rows]),
            eta=to_real(entry["eta"]),
            free=_within("tables.tasks.free", to_ints([f for t in rows for f in t["free"]]), SHARE) / SHARE,
            tasks=names,
            pools=pools.name,
            resources=resources,
        )
        broken = self._table(entry, "floor_broken") if "floor_broken" in entry["tables"] else []
        self.number = number + 1
        return LoggedRound(
            number=number,
            at=to_text(entry["at"]),
            tasks=tasks,
            pools=pools,
            market=market,
            balance_before=to_balances(balances, accounts),
            broken=tuple(broken),
            entries={"demand": self.index},
        )

    def _allocation(self, entry: dict[str, Json], market: Market) -> Allocation:
        shares, prices = self._table(entry, "shares"), self._table(entry, "prices")
        _order(tuple(s["task"] for s in shares) == market.tasks, "tables.shares: other tasks than were in demand.")
        _order(tuple(p["pool"] for p in prices) == market.pools, "tables.prices: other pools than were in demand.")
        counts = [len(s["share"]) for s in shares]
        _order(counts == np.diff(market.indptr).tolist(), "tables.shares: not one share for each eligible pool.")
        price = to_matrix([p["price"] for p in prices], market.capacity.shape[1])
        return Allocation(
            market=market,
            share=_within("tables.shares", to_ints([x for s in shares for x in s["share"]]), SHARE) / SHARE,
            price=price / PRICE,
            objective=to_text(entry["objective"]),
            value=to_special(entry["value"]),
            bound=to_special(entry["bound"]),
            gap=to_special(entry["gap"]),
            steps=to_index(entry["steps"]),
        )

    def _outcome(self, entry: dict[str, Json], market: Market) -> Outcome:
        rows = self._table(entry, "delivered")
        _order(tuple(t["task"] for t in rows) == market.tasks, "tables.delivered: other tasks than were in demand.")
        counts = [len(t["delivered"]) for t in rows]
        _order(counts == np.diff(market.indptr).tolist(), "tables.delivered: not one row for each eligible pool.")
        pairs = [pair for t in rows for pair in t["delivered"]]
        delivered = np.full((len(pairs), market.capacity.shape[1]), -1, np.int64)
        _order(all(len(pair) == delivered.shape[1] for pair in pairs), "tables.delivered: not one amount per resource.")
        known = np.array([x is not None for pair in pairs for x in pair], bool).reshape(delivered.shape)
        amounts = to_ints([x for pair in pairs for x in pair if x is not None])
        _order(bool((amounts >= 0).all()), "tables.delivered: an amount is below 0; what was not measured is null.")
        delivered[known] = amounts
        notes = self._table(entry, "notes") if "notes" in entry["tables"] else []
        return Outcome(
            delivered=delivered,
            asked=np.array([to_maybe(t["asked"]) for t in rows], np.int64),
            in_time=np.array([to_maybe(t["in_time"]) for t in rows], np.int64),
            enforcer=to_text(entry["enforcer"]),
            source=tuple(to_text(s) for s in entry["source"]),
            notes=tuple(to_text(n["note"]) for n in notes),
        )

    def _bills(self, entry: dict[str, Json], now: LoggedRound) -> tuple[Bills, np.ndarray]:
        charges = self._table(entry, "charges")
        _order(tuple(t["task"] for t in charges) == now.tasks.name, "tables.charges: other tasks than were in demand.")
        postings = self._postings(entry)
        out = Bills(
            postings,
            paid=to_ints([t["paid"] for t in charges]),
            sponsored=to_ints([t["sponsored"] for t in charges]),
            waived=to_ints([t["waived"] for t in charges]),
        )
        return out, to_balances(self._table(entry, "balances"), len(now.balance_before))

    def _transfer(self, entry: dict[str, Json]) -> Transfer:
        _order(self.open is None, "money moves between rounds, not within one.")
        balance = to_balances(self._table(entry, "balances"), len(self.balance))
        return Transfer(to_text(entry["why"]), self._postings(entry), balance, to_int(entry["supply"]))

    def _postings(self, entry: dict[str, Json]) -> Postings:
        rows = self._table(entry, "postings")
        for kind in {to_text(p["kind"]) for p in rows} - set(POSTING_KINDS):
            raise Refused(f"tables.postings: kind {kind!r} is none of {', '.join(POSTING_KINDS)}.")
        return Postings(
            np.array([to_index(p["account"]) for p in rows], np.int64),
            np.array([POSTING_KINDS.index(p["kind"]) for p in rows], np.int64),
            to_ints([p["amount"] for p in rows]),
            np.array([to_maybe(p["task"]) for p in rows], np.int64),
        )


def _budgets(accounts: list[dict[str, Json]], resources: int) -> Limits | None:
    rows = [a.get("budget") for a in accounts]
    if not any(rows):
        return None
    least = [-1] * resources
    bound = lambda x: -1 if x is None else to_int(x)  # noqa: E731
    use = [least if b is None else [bound(x) for x in b["use"]] for b in rows]
    _order(all(len(u) == resources for u in use), "tables.accounts: a budget has one amount per resource.")
    return (
        np.array([1 if b is None else to_index(b["rounds"]) for b in rows], np.int64),
        np.array([-1 if b is None else bound(b["credits"]) for b in rows], np.int64),
        np.array(use, np.int64).reshape(len(rows), resources),
    )


def rounds(log: Store) -> Iterator[LoggedRound]:
    """Give every round of a log, the last perhaps not closed."""
    reader = Reader(log.blob)
    yield from _each(reader, log.entries())


def _each(reader: Reader, entries: Iterable[bytes]) -> Iterator[LoggedRound]:
    for data in entries:
        if closed := reader.read(data):
            yield closed
    if reader.open:
        yield reader.open


def state(log: Store) -> State:
    """Say where a log stands, so that a run can be taken up again: from its last demand on, which says all balances."""
    last, first = 0, b""
    for index, data in enumerate(log.entries()):
        first = first or data
        if data.endswith(_DEMAND):
            last = index
    reader = Reader(log.blob)
    if last:
        reader.read(first)
        reader.skip(last, read_entry(next(iter(log.entries(last, last + 1)))))
    for _ in _each(reader, log.entries(last)):
        pass
    if reader.genesis is None:
        raise Refused("the log holds no genesis entry: no world was begun here.")
    return State(reader.genesis, reader.balance, reader.number, reader.open, reader.index)


def _within(name: str, parts: Int[np.ndarray, " number"], most: int) -> Int[np.ndarray, " number"]:
    _order(bool(((parts >= 0) & (parts <= most)).all()), f"{name}: a number is below 0 or above {most}.")
    return parts


def _order(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)
