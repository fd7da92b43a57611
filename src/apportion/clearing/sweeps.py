"""One pass over all tasks at given prices: what they take, what it is worth, and how that bends with prices (Numba).

Prices arrive as p (credits per unit of demand), loads leave in units of demand. A pass smooths the choice between pools by
a temperature tau: tasks spread over pools that are nearly as good as the best. Pools too far behind it are dropped before
anything is exponentiated; few are left, so a pass costs little more than pricing the pairs.

    h[j, l, r, t]  collects  W_kl d_r d_t  with W = -dx/dc of a task's own pairs (k in pool j, l in pool l)
"""

from __future__ import annotations

from math import exp, log
from typing import no_type_check

import numpy as np
from numba import njit

compiled = njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
FAR = 30.0  # in units of tau: e^-30 of the best pool's weight is nothing


@compiled
@no_type_check
def _collect(h, pool, d, at, k, index, w):
    """Add W d d' to the pools' blocks; w is k by k, the first k of index are the pairs' places."""
    resources = d.shape[0]
    for e in range(k):
        je = pool[at + index[e]]
        for f in range(e + 1):
            jf = pool[at + index[f]]
            x = w[e, f]
            big, small = (je, jf) if je > jf else (jf, je)
            if e != f and je == jf:
                x = 2.0 * x
            for r in range(resources):
                y = x * d[r]
                for t in range(resources):
                    h[big, small, r, t] += y * d[t]


@compiled
@no_type_check
def charges(indptr, pool, d, p):
    """Price each pair."""
    out = np.empty(len(pool))
    for i in range(len(d)):
        for e in range(indptr[i], indptr[i + 1]):
            cost = 0.0
            for r in range(d.shape[1]):
                cost += d[i, r] * p[pool[e], r]
            out[e] = cost
    return out


@compiled
@no_type_check
def proportional(indptr, pool, value, d, w, memory, lower, upper, q, p, tau, load, h, bend, x, write):
    """f = w log(memory + u). q keeps each task's row price between passes: above 0 at the cap, below at the floor.

    Gives (smoothed dual, what the plan is worth, exact dual at these p and q), tasks' parts only; fills load, h, x.
    """
    n, resources = d.shape
    most = 0
    for i in range(n):
        most = max(most, indptr[i + 1] - indptr[i])
    c, s, a, ones = np.empty(most), np.empty(most), np.empty(most), np.empty(most)
    index, block = np.empty(most, np.int64), np.empty((most, most))
    smoothed, worth, bound = 0.0, 0.0, 0.0
    load[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(n):
        at, count = indptr[i], indptr[i + 1] - indptr[i]
        if count == 0 or w[i] == 0.0:
            continue
        cheapest = np.inf
        for e in range(count):
            cost = 0.0
            for r in range(resources):
                cost += d[i, r] * p[pool[at + e], r]
            c[e] = cost
            cheapest = min(cheapest, cost)
        least, greatest = -cheapest, w[i] / upper[i]  # a row price lies between them
        row = min(max(q[i], least + 1e-9 * w[i]), greatest)
        if lower[i] == 0.0:
            least = 0.0
            row = max(row, 0.0)
        spent, total, k, best = 0.0, 0.0, 0, 0.0
        for _ in range(60):
            best = np.inf
            for e in range(count):
                best = min(best, (c[e] + row) / value[at + e])
            best = max(best, 1e-300)
            far, k, total = best * exp(FAR * tau), 0, 0.0
            for e in range(count):
                ratio = (c[e] + row) / value[at + e]
                if ratio <= far:
                    s[k] = exp(log(best / max(ratio, 1e-300)) / tau) if ratio > best else 1.0
                    a[k] = 1.0 / max(c[e] + row, 1e-300)
                    index[k] = e
                    total += s[k]
                    k += 1
            price = best * exp(-tau * log(total))  # of service
            spent = max(w[i] - memory[i] * price, 0.0)
            taken, bent, first = 0.0, 0.0, 0.0
            for e in range(k):
                s[e] /= total
                first += s[e] * a[e]
                bent += s[e] * a[e] * a[e]
            taken = spent * first
            slope = spent * (1.0 + 1.0 / tau) * bent + (w[i] - spent * (1.0 + 1.0 / tau)) * first * first
            if spent == 0.0:
                break
            if row == 0.0:
                if lower[i] <= taken <= upper[i]:
                    break
                if taken > upper[i]:
                    least = 0.0
                else:
                    greatest = 0.0
            limit = upper[i] if row > 0.0 or (row == 0.0 and taken > upper[i]) else lower[i]
            miss = taken - limit
            if row != 0.0 and abs(miss) <= 1e-9 * limit:
                break
            if miss > 0.0:
                least = max(least, row)
            else:
                greatest = min(greatest, row)
            # Newton on 1/taken is nearly straight in the row price
            guess = row + miss * taken / (limit * slope) if limit > 0.0 else 0.0
            if (row > 0.0 and miss < 0.0 and guess <= 0.0 and least <= 0.0) or (
                row < 0.0 and miss > 0.0 and guess >= 0.0 and greatest >= 0.0
            ):
                guess = 0.0
            elif not (least < guess < greatest):
                guess = 0.5 * (least + greatest)
            if guess == row:
                break
            row = guess
        q[i] = row
        price = best * exp(-tau * log(total))
        held = row * upper[i] if row > 0.0 else row * lower[i]
        if spent > 0.0:
            smoothed += held + w[i] * log(w[i] / price) - w[i] + memory[i] * price
        else:
            smoothed += held + w[i] * log(memory[i])
        served = 0.0
        for e in range(k):
            share = spent * s[e] * a[e]
            served += share * value[at + index[e]]
            j = pool[at + index[e]]
            for r in range(resources):
                load[j, r] += share * d[i, r]
            if write:
                x[at + index[e]] = share
        worth += w[i] * log(max(memory[i] + served, 1e-300))
        u = w[i] / best - memory[i]
        if u > 0.0:
            bound += held + w[i] * log(w[i] / best) - w[i] + memory[i] * best
        else:
            bound += held + w[i] * log(memory[i])
        if bend and spent > 0.0:
            first, steep = 0.0, spent * (1.0 + 1.0 / tau)
            for e in range(k):
                first += s[e] * a[e]
            mixed = w[i] - steep
            if row != 0.0:
                every = 0.0
                for e in range(k):
                    ones[e] = s[e] * a[e] * (steep * a[e] + mixed * first)
                    every += ones[e]
            for e in range(k):
                for f in range(e + 1):
                    block[e, f] = mixed * s[e] * a[e] * s[f] * a[f]
                    if row != 0.0 and every > 0.0:
                        block[e, f] -= ones[e] * ones[f] / every
                block[e, e] += steep * s[e] * a[e] * a[e]
            _collect(h, pool, d[i], at, k, index, block)
    return smoothed, worth, bound


@compiled
@no_type_check
def welfare(indptr, pool, value, d, w, tau, lower, upper, p, load, h, bend, x, write):
    """f = w u; tau is each task's own, in credits. A floor that binds fixes what goes unserved.

    Gives (smoothed dual, what the plan is worth, exact dual), tasks' parts only; fills load, h, x.
    """
    n, resources = d.shape
    most = 0
    for i in range(n):
        most = max(most, indptr[i + 1] - indptr[i])
    s, index, block = np.empty(most), np.empty(most, np.int64), np.empty((most, most))
    smoothed, worth, bound = 0.0, 0.0, 0.0
    load[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(n):
        at, count = indptr[i], indptr[i + 1] - indptr[i]
        if count == 0:
            continue
        best = -np.inf
        for e in range(count):
            cost = 0.0
            for r in range(resources):
                cost += d[i, r] * p[pool[at + e], r]
            s[e] = w[i] * value[at + e] - cost
            best = max(best, s[e])
        bound += upper[i] * best if best > 0.0 else lower[i] * best
        peak = best if lower[i] > 0.0 else max(best, 0.0)  # what a floor serves may be far below going unserved
        if lower[i] == 0.0 and best < -FAR * tau[i]:
            continue
        k, total = 0, 0.0
        for e in range(count):
            if s[e] > best - FAR * tau[i]:
                index[k] = e
                s[k] = exp((s[e] - peak) / tau[i])
                total += s[k]
                k += 1
        silent = exp(-peak / tau[i])
        mass = upper[i] * total / (total + silent)
        fixed = mass < lower[i]
        if fixed:
            mass = lower[i]
            smoothed += mass * (peak + tau[i] * log(total))
            smoothed -= tau[i] * mass * log(mass / upper[i])
            if upper[i] > mass:
                smoothed -= tau[i] * (upper[i] - mass) * log(1.0 - mass / upper[i])
        else:
            smoothed += upper[i] * (peak + tau[i] * log(total + silent))
        for e in range(k):
            share = mass * s[e] / total
            s[e] = share
            worth += w[i] * value[at + index[e]] * share
            j = pool[at + index[e]]
            for r in range(resources):
                load[j, r] += share * d[i, r]
            if write:
                x[at + index[e]] = share
        if bend:
            over = 1.0 / (mass if fixed else upper[i])
            if k == 1 and (fixed or s[0] * over > 1.0 - 1e-13):
                continue
            for e in range(k):
                for f in range(e + 1):
                    block[e, f] = -s[e] * s[f] * over / tau[i]
                block[e, e] += s[e] / tau[i]
            _collect(h, pool, d[i], at, k, index, block)
    return smoothed, worth, bound


@compiled
@no_type_check
def maxmin(indptr, pool, value, d, w, unit, upper, q, t, p, load, along, h, bend, x, write):
    """Cost S of serving every task at u = t w, cheapest first but for a temperature: unit is each task's own, in price of u.

    x_k = t w z_k / v_k with z a softmin of (c_k + q) / v_k, so that u = t w holds exactly; q > 0 where the cap binds.
    Gives (S, dS/dt, d2S/dt2, sum of w times the least price, sum of q cap); fills load, along = d load / dt, h, x.
    """
    n, resources = d.shape
    most = 0
    for i in range(n):
        most = max(most, indptr[i + 1] - indptr[i])
    c, z, y, ones = np.empty(most), np.empty(most), np.empty(most), np.empty(most)
    index, block = np.empty(most, np.int64), np.empty((most, most))
    cost, slope, curve, prices, held = 0.0, 0.0, 0.0, 0.0, 0.0
    load[:] = 0.0
    along[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(n):
        at, count = indptr[i], indptr[i + 1] - indptr[i]
        if count == 0 or w[i] == 0.0:
            continue
        for e in range(count):
            charge = 0.0
            for r in range(resources):
                charge += d[i, r] * p[pool[at + e], r]
            c[e] = charge
        heat, row, low, high = unit[i], q[i], 0.0, np.inf
        k, total, best, taken, steep = 0, 0.0, 0.0, 0.0, 0.0
        for _ in range(80):
            best = np.inf
            for e in range(count):
                best = min(best, (c[e] + row) / value[at + e])
            k, total = 0, 0.0
            for e in range(count):
                ahead = ((c[e] + row) / value[at + e] - best) / heat
                if ahead <= FAR:
                    z[k] = exp(-ahead)
                    index[k] = e
                    total += z[k]
                    k += 1
            taken, steep, first = 0.0, 0.0, 0.0
            for e in range(k):
                z[e] /= total
                y[e] = z[e] / value[at + index[e]]
                first += y[e]
                steep += y[e] / value[at + index[e]]
            taken = t * w[i] * first
            steep = t * w[i] / heat * max(steep - first * first, 0.0)
            if row == 0.0 and taken <= upper[i]:
                break
            miss = taken - upper[i]
            if abs(miss) <= 1e-10 * upper[i]:
                break
            if miss > 0.0:
                low = row
            else:
                high = row
            guess = row + miss / steep if steep > 0.0 else np.inf
            if guess <= 0.0 and low == 0.0:
                guess = 0.0
            elif not (low < guess < high):
                guess = 0.5 * (low + high) if high < np.inf else 2.0 * row + heat
            if high < np.inf and guess > 4.0 * row + 4.0 * heat and row > 0.0:
                guess = min(guess, 0.5 * (low + high))
            if guess == row:
                break
            row = guess
        q[i] = row
        softest = best - heat * log(total)
        cost += t * w[i] * softest - row * upper[i]
        slope += w[i] * softest
        prices += w[i] * best
        held += row * upper[i]
        tied = row > 0.0 and steep > 0.0
        rate = 0.0
        if tied:
            rate = upper[i] / (t * steep)  # dq/dt
            curve += upper[i] / t * rate
        first, every = 0.0, 0.0
        for e in range(k):
            first += y[e]
        for e in range(k):
            ones[e] = t * w[i] / heat * y[e] * (1.0 / value[at + index[e]] - first)
            every += ones[e]
        for e in range(k):
            share = t * w[i] * y[e]
            change = share / t - ones[e] * rate
            j = pool[at + index[e]]
            for r in range(resources):
                load[j, r] += share * d[i, r]
                along[j, r] += change * d[i, r]
            if write:
                x[at + index[e]] = share
        if bend and k > 1:
            for e in range(k):
                for f in range(e + 1):
                    block[e, f] = -t * w[i] / heat * y[e] * y[f]
                    if tied:
                        block[e, f] -= ones[e] * ones[f] / every
                block[e, e] += t * w[i] / heat * y[e] / value[at + index[e]]
            _collect(h, pool, d[i], at, k, index, block)
    return cost, slope, curve, prices, held
