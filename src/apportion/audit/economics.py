"""The economics of a log, done again in exact integers: who may bid, what fits, who is charged, what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from flint import arb
from jaxtyping import Int

from apportion.audit.certificate import Certificate, gap_of, whole
from apportion.core.allocation import Allocation
from apportion.core.errors import ApportionError, Refused
from apportion.core.market import Market
from apportion.core.policies import priced
from apportion.core.round import Bills, Outcome
from apportion.core.units import MICRO, SHARE
from apportion.intake.guarantees import allowed
from apportion.ledger.reading import Genesis, LoggedRound, Reader, Transfer
from apportion.settlement.budgets import Budgets
from apportion.settlement.memory import Memory
from apportion.settlement.settle import settle
from apportion.settlement.tree import Tree

TOLERANCE = 1e-9  # of a logged value, bound, gap, eta or mean, relative: they were rounded to doubles


@dataclass(slots=True)
class Economics:
    """Goes through the rounds and carries the balances, and what is remembered of use."""

    rounds: int = 0
    aborted: int = 0
    gap: float = math.nan
    proven: int = 0
    silent: dict[str, int] = field(default_factory=dict)  # rounds whose gap could not be enclosed, by why
    broken: int = 0
    below: int = 0
    unmeasured: int = 0
    transfers: int = 0
    balance: Int[np.ndarray, " account"] | None = None
    supply: int = 0
    memory: Memory | None = None  # where genesis states a half-life
    tree: Tree | None = None  # where accounts nest
    budgets: Budgets | None = None  # where there are any

    def begin(self, genesis: Genesis) -> None:
        """Start from what genesis says."""
        self.balance, self.supply = genesis.balance, genesis.supply
        try:
            self.memory = None if genesis.half_life is None else Memory(genesis.half_life, genesis.entitlement)
        except ApportionError as error:
            raise Refused(f"entry 0 (genesis): settings.half_life: {error}") from None
        try:
            self.tree = Tree.of(genesis.parent, genesis.share)
            self.budgets = Budgets(*genesis.budgets, self.tree) if genesis.budgets else None
        except ApportionError as error:
            raise Refused(f"entry 0 (genesis): tables.accounts: {error}") from None
        if self.tree is not None:
            part = self.tree.entitlement
            if (wrong := ~(np.abs(genesis.entitlement - part) <= TOLERANCE * part)).any():
                a = int(np.argmax(wrong))
                raise Refused(
                    f"entry 0 (genesis): tables.accounts: account {genesis.accounts[a]!r} is entitled to "
                    f"{genesis.entitlement[a]}; its share, and those above it, give {part[a]}."
                )

    def transfer(self, index: int, moved: Transfer) -> None:
        """Check one transfer: rows for every change, nobody below 0, and money made or burnt only where a row says so."""
        after, made = self._before().tolist(), {"transfer": 0, "mint": 0, "burn": 0}
        for line in moved.postings:
            if line.kind not in made or line.account >= len(after):
                raise Refused(f"entry {index} (transfer): postings: {line} is no transfer, mint or burn of an account.")
            after[line.account] += line.amount
            made[line.kind] += line.amount
        if made["transfer"] or made["mint"] < 0 or made["burn"] > 0:
            raise Refused(f"entry {index} (transfer): postings: transfers sum to 0, mints make and burns take; {made}.")
        if moved.supply != self.supply + made["mint"] + made["burn"]:
            raise Refused(f"entry {index} (transfer): supply: {moved.supply}; {self.supply} and {made} give another.")
        if moved.balance.tolist() != after or min(after) < 0:
            raise Refused(f"entry {index} (transfer): balances: {moved.balance.tolist()}; the postings give {after}.")
        self.balance, self.supply = moved.balance, moved.supply
        self.transfers += 1

    def _before(self) -> Int[np.ndarray, " account"]:
        if self.balance is None:
            raise Refused("entry 0: a log begins with genesis.")
        return self.balance

    def check(self, genesis: Genesis, logged: LoggedRound) -> None:
        """Check one closed round; raise Refused naming its entry."""
        part = "demand"
        try:
            self._demand(genesis, logged, self._before())
            if logged.allocation is not None:
                part = "decision"
                self._decision(logged, logged.allocation)
            if logged.allocation and logged.outcome and logged.bills and logged.balance is not None:
                part = "bills"
                self._bills(genesis, logged, logged.allocation, logged.outcome, logged.bills, logged.balance)
        except ApportionError as error:
            raise Refused(f"entry {logged.entries[part]} ({part}, round {logged.number}): {error}") from None
        if logged.allocation and logged.outcome and logged.bills:
            if self.memory:
                self.memory.learn(logged.tasks, logged.allocation)
            if self.budgets:
                self.budgets.count(logged.number, logged.tasks, logged.allocation, logged.outcome, logged.bills)
        self.balance = logged.balance
        self.rounds += 1
        self.aborted += logged.aborted is not None

    def end(self, reader: Reader) -> None:
        """Check what stands of a round that is not closed yet."""
        if reader.open and reader.genesis:
            try:
                self._demand(reader.genesis, reader.open, self._before())
                if reader.open.allocation is not None:
                    self._decision(reader.open, reader.open.allocation)
            except ApportionError as error:
                raise Refused(f"round {reader.open.number}, not closed: {error}") from None
            self.silent["the outcome of a round that is not closed yet"] = 1

    def _demand(self, genesis: Genesis, logged: LoggedRound, before: Int[np.ndarray, " account"]) -> None:
        market, tasks = logged.market, logged.tasks
        if not np.array_equal(logged.balance_before, before):
            a = int(np.argmax(logged.balance_before != before))
            raise Refused(
                f"balances: account {genesis.accounts[a]!r} holds {logged.balance_before[a]}, but was left with {before[a]}."
            )
        bids = _sums(tasks.account, whole(market.weight, MICRO), len(before))
        for a, (asked, held) in enumerate(zip(bids, before.tolist(), strict=True)):
            if asked > held:
                raise Refused(f"tasks.bid: account {genesis.accounts[a]!r} bids {asked} and holds {held}.")
        if self.budgets:
            self._budgets(self.budgets, genesis, logged, np.array(bids, np.int64))
        free = whole(market.free, SHARE)
        lend = self.tree.lend if self.tree else None
        rooms = allowed(tasks, market.cap, market.capacity, genesis.entitlement, genesis.alpha, lend)
        for a, limit in enumerate(rooms):
            own = tasks.account[market.row] == a
            if at := _over(market, np.where(own, free, 0), limit):
                j, r, used, most = at
                raise Refused(
                    f"tasks.free: account {genesis.accounts[a]!r} is given {used} of {market.resources[r]} in pool "
                    f"{market.pools[j]!r}; its guarantee is {most}{', with what its siblings lend' if self.tree else ''}."
                )
        wrong = (market.floor > tasks.floor) | (market.cap > tasks.cap)
        if wrong.any():
            raise Refused(f"tasks.floor_kept: task {tasks.name[int(np.argmax(wrong))]!r} has more than was promised.")
        broken = [tasks.name[i] for i in np.flatnonzero(market.floor < tasks.floor - 1 / SHARE)]
        if broken != [b.get("task") for b in logged.broken]:
            raise Refused(f"floor_broken: the floors of {broken} were not kept, and {len(logged.broken)} are recorded.")
        self.broken += len(broken)
        self._memory(logged)

    def _budgets(
        self, budgets: Budgets, genesis: Genesis, logged: LoggedRound, bids: Int[np.ndarray, " account"]
    ) -> None:
        """Count what is left of each budget again, from the rounds before this one."""
        tasks, limit = logged.tasks, budgets.limit(logged.number, logged.balance_before)
        if (over := budgets.tree.below(bids) > limit).any():
            a = int(np.argmax(over))
            raise Refused(
                f"tasks.bid: account {genesis.accounts[a]!r} and those inside it bid {budgets.tree.below(bids)[a]}; "
                f"its budget leaves them {limit[a]}."
            )
        cap = budgets.caps(logged.number, tasks)
        if (wrong := ~(np.abs(logged.market.cap - cap) <= TOLERANCE)).any():
            i = int(np.argmax(wrong))
            raise Refused(
                f"tasks.cap_kept: {logged.market.cap[i]} for {tasks.name[i]!r}; what is left of the budgets gives {cap[i]}."
            )

    def _memory(self, logged: LoggedRound) -> None:
        """Count what was used lately again, from the rounds before this one."""
        market = logged.market
        if self.memory is None:
            if market.eta != 1:
                self._skip("what was used lately (tasks.mean): genesis states no half_life to count it by")
            return
        if not abs(market.eta - self.memory.eta) <= TOLERANCE * self.memory.eta:
            raise Refused(
                f"eta: {market.eta} is logged; a half-life of {self.memory.half_life:g} gives {self.memory.eta}."
            )
        mean = self.memory.mean(logged.tasks, market.capacity)
        if (wrong := ~(np.abs(market.mean - mean) <= TOLERANCE * (1 + mean))).any():
            i = int(np.argmax(wrong))
            raise Refused(
                f"tasks.mean: {market.mean[i]} for {logged.tasks.name[i]!r}; the rounds before this one give {mean[i]}."
            )

    def _decision(self, logged: LoggedRound, allocation: Allocation) -> None:
        market, parts = logged.market, allocation.parts
        if (short := parts < market.free_parts).any():
            raise Refused(f"shares: {_pair(market, int(np.argmax(short)))} gets less than its guarantee.")
        if at := _over(market, parts, market.capacity.astype(np.int64)):
            j, r, used, most = at
            raise Refused(
                f"shares: pool {market.pools[j]!r} would give {used} of {market.resources[r]} and has {most} (base units)."
            )
        total = np.array(_sums(market.row, parts, len(market.demand)), np.int64)
        if (over := total > np.floor(market.cap * SHARE * (1 + 1e-12))).any():
            raise Refused(f"shares: task {market.tasks[int(np.argmax(over))]!r} gets more than its cap.")
        # Repair works in whole parts and may lose one in each pool of a task where a floor needs the last of a pool.
        lost = np.ceil(market.floor * SHARE * (1 - 1e-12)) - total
        short = lost > np.maximum(1, np.diff(market.indptr))
        if priced(logged.policy) and short.any():
            i = int(np.argmax(short))
            raise Refused(
                f"shares: task {market.tasks[i]!r} gets {total[i]} parts; its floor is {market.floor[i]:.9f}."
            )
        self.below += int(short.sum())
        self._certificate(logged, allocation)

    def _certificate(self, logged: LoggedRound, allocation: Allocation) -> None:
        """Enclose value, bound and gap, and hold the logged ones against them."""
        if allocation.objective != "proportional":
            self._skip(f"the gap of objective {allocation.objective!r}")
            return
        sale = Certificate(logged.market, allocation)
        value, bound = sale.value(), sale.bound()
        _near("value", allocation.value, value)
        weight = sale.weight()
        claimed = gap_of(allocation.value, allocation.bound, float(weight.mid()))
        if not (claimed == allocation.gap or abs(claimed - allocation.gap) <= TOLERANCE * (1 + abs(claimed))):
            raise Refused(f"gap: {allocation.gap} is not what value and bound give, {claimed}.")
        least = float((bound - bound.rad()).mid())
        if allocation.bound < least - TOLERANCE * (1 + abs(least)):
            if priced(logged.policy):
                raise Refused(f"bound: {allocation.bound} is below {least}, all that the logged prices prove.")
            self._skip(f"the gap of policy {logged.policy!r}, which has no prices to prove it")
            return
        gap = gap_of(float((value - value.rad()).mid()), float((bound + bound.rad()).mid()), float(weight.mid()))
        self.gap = gap if math.isnan(self.gap) else max(self.gap, gap)
        self.proven += 1

    def _bills(
        self,
        genesis: Genesis,
        logged: LoggedRound,
        allocation: Allocation,
        outcome: Outcome,
        bills: Bills,
        balance: Int[np.ndarray, " account"],
    ) -> None:
        before = logged.balance_before
        due = settle(
            logged.tasks,
            allocation,
            outcome,
            before,
            genesis.entitlement,
            genesis.alpha,
            genesis.kappa,
            self.supply,
            self.tree,
        )
        if bills.postings != due.postings:
            for k, (line, again) in enumerate(zip(bills.postings, due.postings, strict=False)):
                if line != again:
                    raise Refused(f"postings[{k}]: {line} is logged; settling again gives {again}.")
            raise Refused(f"postings: {len(bills.postings)} are logged; settling again gives {len(due.postings)}.")
        for name in ("paid", "sponsored", "waived"):
            logged_, again_ = getattr(bills, name), getattr(due, name)
            if not np.array_equal(logged_, again_):
                i = int(np.argmax(logged_ != again_))
                raise Refused(
                    f"charges.{name}: {logged_[i]} for {logged.tasks.name[i]!r}; settling again gives {again_[i]}."
                )
        after = (before + bills.postings.net(len(before))).tolist()  # what settling gave cannot exceed 63 bits
        for a, (held, should) in enumerate(zip(balance.tolist(), after, strict=True)):
            if held != should or held < 0:
                raise Refused(
                    f"balances: account {genesis.accounts[a]!r} is left with {held}; its postings give {should}."
                )
        if sum(after) != self.supply:
            raise Refused(f"balances: they sum to {sum(after)}, and the supply is {self.supply}.")
        self.unmeasured += bool((outcome.delivered < 0).any())

    def _skip(self, why: str) -> None:
        self.silent[why] = self.silent.get(why, 0) + 1

    def checked(self) -> tuple[str, ...]:
        done = self.rounds - self.aborted
        out = [
            f"{self.rounds} rounds ({self.aborted} aborted): order, bids within balances, guarantees, capacities, floors",
            f"{done} rounds: every charge settled again, balances carried, supply conserved to the micro-credit",
        ]
        if self.tree:
            out.append(f"{self.rounds} rounds: what siblings lend each other of their guarantees divided again")
        if self.budgets:
            out.append(f"{self.rounds} rounds: what is left of every budget counted again")
        if self.memory:
            out.append(f"{self.rounds} rounds: what was used lately (eta, mean) counted again")
        if self.transfers:
            out.append(
                f"{self.transfers} transfers: a row for every change, money made or burnt only where a row says so"
            )
        if self.proven:
            out.append(f"{self.proven} certificates enclosed: no round is further than {self.gap:.3g} from its optimum")
        return tuple(out)

    def unchecked(self) -> tuple[str, ...]:
        out = [f"{why} ({count} round{'s' * (count != 1)})" for why, count in self.silent.items()]
        out.append("what was delivered and experienced: the log holds what was measured; nobody can measure it again")
        return tuple(out)

    def findings(self) -> tuple[str, ...]:
        out = []
        if self.broken:
            out.append(f"{self.broken} floors did not fit and are recorded as broken")
        if self.below:
            out.append(f"{self.below} task-rounds were given less than their floor by a policy that keeps none")
        if self.unmeasured:
            out.append(f"{self.unmeasured} rounds bill something as granted because its delivery was not measured")
        return tuple(out)


def _near(name: str, logged: float, enclosed: arb) -> None:
    true = float(enclosed.mid()) if enclosed.is_finite() else -math.inf
    if not (logged == true or abs(logged - true) <= TOLERANCE * (1 + abs(true))):
        raise Refused(f"{name}: {logged} is logged; the shares give {true}.")


def _sums(group: np.ndarray, amount: np.ndarray, groups: int) -> list[int]:
    """Sum whole amounts by group, exactly, whatever their size."""
    if len(amount) * int(np.abs(amount).max(initial=0)) < 2**63:
        out = np.zeros(groups, np.int64)
        np.add.at(out, group, amount)
        return out.tolist()
    exact = [0] * groups
    for g, x in zip(group.tolist(), amount.tolist(), strict=True):
        exact[g] += x
    return exact


def _over(market: Market, parts: np.ndarray, limit: np.ndarray) -> tuple[int, int, float, int] | None:
    """Find the first (pool, resource) where sum demand * parts exceeds limit * 10^9, in whole numbers."""
    demand = market.demand.astype(np.int64)[market.row]
    for r in range(demand.shape[1]):
        if int(demand[:, r].max(initial=0)) < 2**63 // SHARE:
            used = _sums(market.indices, demand[:, r] * parts, len(limit))
        else:
            used = [0] * len(limit)
            for j, d, x in zip(market.indices.tolist(), demand[:, r].tolist(), parts.tolist(), strict=True):
                used[j] += d * x
        for j, amount in enumerate(used):
            if amount > int(limit[j, r]) * SHARE:
                return j, r, amount / SHARE, int(limit[j, r])
    return None


def _pair(market: Market, e: int) -> str:
    return f"task {market.tasks[market.row[e]]!r} in pool {market.pools[market.indices[e]]!r}"
