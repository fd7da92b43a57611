"""What only the whole file can say: does every name refer to something, do the parts add up?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from apportion.core.units import MICRO, micro, resource
from apportion.worlds.amounts import OfMachine, instead
from apportion.worlds.entry import MOST_CREDITS
from apportion.worlds.file import Task, WorldFile
from apportion.worlds.lines import Place, Problem


def cross(file: WorldFile) -> Iterator[Problem]:
    """Give what does not fit together, place by place."""
    yield from _accounts(file)
    yield from _pools(file)
    for name, task in file.tasks.items():
        yield from _task(file, name, task)
    yield from _events(file)
    yield from _reservations(file)


def _refers(place: Place, what: str, name: str, known: Iterable[str]) -> Iterator[Problem]:
    if name not in known:
        yield place, f"there is no {what} '{name}'. {instead(name, known)}"


def _accounts(file: WorldFile) -> Iterator[Problem]:
    if problems := list(_families(file)):
        yield from problems
        return
    given = sum(micro(a.balance) for a in file.accounts.values() if a.balance is not None)
    told, most = f"the balances come to {given / MICRO:.15g} credits", int(MOST_CREDITS)
    if given > most * MICRO:
        yield ("accounts",), f"{told}, and a world holds {most:g}. Write them in a larger unit."
    elif file.held == 0:
        yield ("accounts",), "all balances are 0: nobody could ever bid. Give some account credits."
    elif given != file.held:
        entitled = zip(file.accounts.values(), file.tree.entitlement.tolist(), strict=True)
        heirs = any(a.balance is None and part > 0 for a, part in entitled)
        if given > file.held or not heirs:
            why = f"{told} and the supply is {file.held / MICRO:.15g}. Write 'supply: {given / MICRO:.15g}',"
            yield ("accounts",), f"{why} or leave a balance out: that account gets the rest."
    yield from _budgets(file)


def _families(file: WorldFile) -> Iterator[Problem]:
    """Whether parents stand before their children, and siblings share all of what is their parent's."""
    seen, inside = set[str](), dict[str | None, float]()
    for name, account in file.accounts.items():
        place: Place = ("accounts", name, "parent")
        if account.parent is not None and account.parent not in seen:
            if account.parent == name:
                yield place, "an account cannot stand inside itself. Remove it."
            elif account.parent in file.accounts:
                yield place, f"'{account.parent}' stands below it. Write parents first."
            yield from _refers(place, "account", account.parent, file.accounts)
        seen.add(name)
        inside[account.parent] = inside.get(account.parent, 0.0) + account.weight
    for parent, total in inside.items():
        if abs(total - 1) > 1e-9:
            way = f"Add {1 - total:.6g} somewhere" if total < 1 else f"Take {total - 1:.6g} away somewhere"
            what = "the entitlements come" if parent is None else f"the shares of those inside '{parent}' come"
            yield ("accounts",) if parent is None else ("accounts", parent), f"{what} to {total:.9g}, not to 1. {way}."


def _budgets(file: WorldFile) -> Iterator[Problem]:
    """Whether a budget is of something, and holds the floors of those it is for."""
    tree, offered = file.tree, dict.fromkeys(r for pool in file.pools.values() for r in pool.capacity)
    for a, (name, account) in enumerate(file.accounts.items()):
        if account.budget is None:
            continue
        place: Place = ("accounts", name, "budget")
        rounds, use = account.budget.counted(file.round_seconds)
        if rounds < 1:
            why = f"a round is {file.round_seconds:g} s long. Write a period of at least one round."
            yield (*place, "per"), why
        for r in use:
            yield from _refers((*place, "use", r), "resource in any pool called", r, offered)
        members = {other for b, other in enumerate(file.accounts) if a in tree.above(b)}
        for r, most in use.items():
            kept = sum(task.kept * task.demand.get(r, 0) for task in file.tasks.values() if task.account in members)
            if kept * rounds > most:
                kind, hours = resource(r), file.round_seconds / 3600 / resource(r).scale
                told = (
                    f"the floors of its tasks take {kept * rounds * hours:.6g} {kind.one}-hours of {r} in this period"
                )
                yield (*place, "use", r), f"{told}. Raise the budget or lower floors."


def _pools(file: WorldFile) -> Iterator[Problem]:
    shares: dict[str, list[tuple[str, OfMachine]]] = {}
    for name, pool in file.pools.items():
        for r in pool.at_most:
            yield from _refers(("pools", name, "at_most", r), f"capacity of pool '{name}' called", r, pool.capacity)
            if pool.at_most[r] < 1:
                yield ("pools", name, "at_most", r), f"a pool with nothing has nothing to share. Remove {r} from it."
        for r, amount in pool.capacity.items():
            if isinstance(amount, OfMachine):
                shares.setdefault(r, []).append((name, amount))
    for r, parts in shares.items():
        if (total := sum(part.part for _, part in parts)) > 1:
            names = ", ".join(f"'{name}'" for name, _ in parts)
            yield (
                ("pools", parts[-1][0], "capacity", r),
                f"pools {names} together take {float(total * 100):g}% of this machine's {r}. Bring them to 100% or less.",
            )


def _task(file: WorldFile, name: str, task: Task) -> Iterator[Problem]:
    here: Place = ("tasks", name)
    yield from _refers((*here, "account"), "account", task.account, file.accounts)
    if members := [name for name, a in file.accounts.items() if a.parent == task.account]:
        yield (
            (*here, "account"),
            f"account '{task.account}' has others inside, and these have its tasks. {instead(task.account, members)}",
        )
    if task.sponsor is not None:
        yield from _refers((*here, "sponsor"), "account", task.sponsor, file.accounts)
    for k, other in enumerate(task.needs):
        if other == name:
            yield (*here, "needs", k), "a task cannot need itself. Remove it."
        yield from _refers((*here, "needs", k), "task", other, file.tasks)
    for k, pool in enumerate(task.pools or ()):
        yield from _refers((*here, "pools", k), "pool", pool, file.pools)
    if task.pools == ():
        yield (*here, "pools"), "a task without a pool can never be served. Name a pool, or leave 'pools' out for all."
    for k, r in enumerate(task.steady):
        yield from _refers((*here, "steady", k), f"demand of task '{name}' called", r, task.demand)
    yield from _served(file, here, task)
    yield from _floor(here, task)


def _served(file: WorldFile, here: Place, task: Task) -> Iterator[Problem]:
    """Some pool must have everything that the task wants."""
    named = [file.pools[p] for p in (task.pools or file.pools) if p in file.pools]
    offered = dict.fromkeys(r for pool in named for r in pool.capacity)
    unknown = [r for r in task.demand if named and r not in offered]
    for r in unknown:
        whose = "no pool" if task.pools is None else "none of its pools"
        yield (*here, "demand", r), f"{whose} has any {r}. {instead(r, offered)} Or give a pool some."
    wants = {r for r, amount in task.demand.items() if amount}
    if not unknown and named and not any(wants <= set(pool.capacity) for pool in named):
        yield (*here, "demand"), f"no single pool has all of {', '.join(sorted(wants))}. Give one pool all of them."


def _floor(here: Place, task: Task) -> Iterator[Problem]:
    if not isinstance(task.floor, dict):
        if task.floor > task.cap:
            yield (*here, "floor"), f"the floor is above its cap of {task.cap:g}. Lower the floor or raise the cap."
        return
    for r, amount in task.floor.items():
        kind = resource(r)
        if r not in task.demand:
            yield (*here, "floor", r), f"the task demands no {r}. {instead(r, task.demand)}"
        elif amount > task.demand[r]:
            wanted = kind.show(float(task.demand[r]))
            yield (
                (*here, "floor", r),
                f"the floor is above the demand of {wanted}. Lower the floor or raise the demand.",
            )
        elif amount > task.demand[r] * task.cap:
            most = f"{task.cap:g} x {kind.show(float(task.demand[r]))}"
            yield (
                (*here, "floor", r),
                f"the floor is above what its cap lets it use, {most}. Lower the floor or raise the cap.",
            )


def _reservations(file: WorldFile) -> Iterator[Problem]:
    paid: dict[str, int] = {}
    for name, one in file.reservations.items():
        here: Place = ("reservations", name)
        yield from _refers((*here, "account"), "account", one.account, file.accounts)
        yield from _refers((*here, "task"), "task", one.task, file.tasks)
        if one.task in file.tasks:
            yield from _floor(here, file.tasks[one.task].model_copy(update={"floor": one.floor}))
        first, last = one.rounds(file.round_seconds)
        if last < first:
            yield (*here, "for"), f"no round of {file.round_seconds:g} s begins meanwhile. Let it last longer."
        paid[one.account] = paid.get(one.account, 0) + micro(one.pays)
    if paid and not list(_accounts(file)):
        opening = dict(zip(file.accounts, file.opening.tolist(), strict=True))
        for account, pays in paid.items():
            if pays > opening.get(account, pays):
                has = f"'{account}' holds {opening[account] / MICRO:.15g} credits at the start"
                yield ("reservations",), f"{has} and pays {pays / MICRO:.15g}. Let it pay less, or give it a balance."


def _events(file: WorldFile) -> Iterator[Problem]:
    for k, event in enumerate(file.events):
        if isinstance(event.task, str):
            yield from _refers(("events", k, "task"), "task", event.task, file.tasks)
            continue
        if not event.task:
            yield ("events", k, "task"), "the event is about no task. Name one, for example 'task: arena'."
        for n, name in enumerate(event.task):
            yield from _refers(("events", k, "task", n), "task", name, file.tasks)
