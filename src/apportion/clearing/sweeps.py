"""One pass over all tasks at given prices: what they take, what it is worth, and how that bends with prices (Numba).

Prices arrive as p (credits per unit of demand), loads leave in units of demand. A pass smooths the choice between pools by
a temperature tau: tasks spread over pools that are nearly as good as the best. Pools too far behind it are dropped before
anything is exponentiated; few are left, so a pass costs little more than pricing the pairs.

    h[place[j, l], r, t]  collects  W_kl d_r d_t  with W = -dx/dc of a task's own pairs (k in pool j, l in pool l; l <= j)
"""

from __future__ import annotations

from math import exp, log
from typing import no_type_check

import numpy as np
from numba import njit

compiled = njit(
    cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}
)  # the same bytes wherever arrays lie: nothing is reordered
FAR = 20.0  # in units of tau: e^-20 of the best pool's weight is nothing


@compiled
@no_type_check
def _collect(h, place, pool, d, index, k, w):
    """Add W d d' to the pools' blocks; w is k by k, the first k of index are the pairs' places."""
    resources = d.shape[0]
    for e in range(k):
        je = pool[index[e]]
        for f in range(e + 1):
            jf = pool[index[f]]
            x = w[e, f]
            if e != f and je == jf:
                x = 2.0 * x
            block = h[place[max(je, jf), min(je, jf)]]
            for r in range(resources):
                y = x * d[r]
                for t in range(resources):
                    block[r, t] += y * d[t]


@compiled
@no_type_check
def _cost(out, pool, d, p):
    """Price a task's pairs; give the cheapest."""
    cheapest = np.inf
    for e in range(len(pool)):
        cost, j = 0.0, pool[e]
        for r in range(d.shape[0]):
            cost += d[r] * p[j, r]
        out[e] = cost
    for e in range(len(pool)):
        cheapest = min(cheapest, out[e])
    return cheapest


@compiled
@no_type_check
def _take(load, j, share, d):
    """Add what a share takes of pool j."""
    for r in range(d.shape[0]):
        load[j, r] += share * d[r]


@compiled
@no_type_check
def meet(indptr, pool, pools):
    """Tell which two pools, the later first, some task may use both."""
    out = np.zeros((pools, pools), np.bool_)
    for i in range(len(indptr) - 1):
        mine = pool[indptr[i] : indptr[i + 1]]
        for e in range(len(mine)):
            for f in range(e + 1):
                out[max(mine[e], mine[f]), min(mine[e], mine[f])] = True
    return out


@compiled
@no_type_check
def charges(indptr, pool, d, p):
    """Price each pair."""
    out = np.empty(len(pool))
    for i in range(len(d)):
        _cost(out[indptr[i] : indptr[i + 1]], pool[indptr[i] : indptr[i + 1]], d[i], p)
    return out


@compiled
@no_type_check
def _most(indptr):
    most = 0
    for i in range(len(indptr) - 1):
        most = max(most, indptr[i + 1] - indptr[i])
    return most


LOG, SATURATING, PIECES = 0, 1, 2  # kinds of worth


@compiled
@no_type_check
def _buy(kind, w, own, tau, price):
    """Give how much service a task buys at this price of service, and how what it spends moves with the price's logarithm.

    LOG          w log(m + u)                          own: m
    SATURATING   w (1 - e^-ku) / (1 - e^-k)            own: k, the slope at 0 for a weight of 1
    PIECES       w sum of slope * filled, equal length own: -, the slopes for a weight of 1; tau blurs at which price a piece is bought
    """
    if kind == SATURATING:
        first = w * own[1]
        if price >= first:
            return 0.0, 0.0
        u = log(first / price) / own[0]
        return u, price * u - price / own[0]
    u, bend, length = 0.0, 0.0, 1.0 / (len(own) - 1)
    for e in range(1, len(own)):
        slope = w * own[e]
        heat = tau * slope
        if heat > 0.0 and abs(slope - price) < FAR * heat:
            part = 1.0 / (1.0 + exp((price - slope) / heat))
            u += length * part
            bend -= length * part * (1.0 - part) / heat
        elif slope > price:
            u += length
    return u, price * (u + price * bend)


@compiled
@no_type_check
def _gain(kind, w, own, tau, price):
    """Give what a task gains at this price of service: the conjugate of its worth, blurred by tau like what it buys."""
    if kind == LOG:
        return w * log(w / price) - w + own[0] * price if w > own[0] * price else w * log(own[0])
    if kind == SATURATING:
        first = w * own[1]
        return (first - price - price * log(first / price)) / own[0] if price < first else 0.0
    gain, length = 0.0, 1.0 / (len(own) - 1)
    for e in range(1, len(own)):
        slope = w * own[e]
        heat = tau * slope
        if heat > 0.0 and abs(slope - price) < FAR * heat:
            gain += length * heat * log(1.0 + exp((slope - price) / heat))
        elif slope > price:
            gain += length * (slope - price)
    return gain


@compiled
@no_type_check
def _worth(kind, w, own, u):
    """Give what service u is worth."""
    if kind == LOG:
        return w * log(max(own[0] + u, 1e-300))
    if kind == SATURATING:
        return w * own[1] / own[0] * (1.0 - exp(-own[0] * u))
    worth, length = 0.0, 1.0 / (len(own) - 1)
    for e in range(1, len(own)):
        worth += w * own[e] * min(length, max(0.0, u - (e - 1) * length))
    return worth


@compiled
@no_type_check
def _largest(values):
    top = 0.0
    for e in range(len(values)):
        top = max(top, values[e])
    return top


def _concave(logs: bool):
    """Make the pass over worths that bend; logs: over logarithms alone, which need no look at each task's kind."""

    @compiled
    @no_type_check
    def concave(indptr, pool, value, d, w, kind, own, lower, upper, q, p, tau, load, place, h, bend, x, write):
        """Sums of concave worths of service. q keeps each task's row price between passes: above 0 at the cap, below at the floor.

        Service is bought at a price that blurs a task's pools, P = (sum_k ((c_k + q) / v_k)^(-1/tau))^(-tau), so that
        x_k = u P s_k / (c_k + q) with s the softmax of -log((c + q) / v) / tau.
        Gives (smoothed dual, what the plan is worth, exact dual at these p and q), tasks' parts only; fills load, h, x.
        """
        most = _most(indptr)
        c, s, a, ones, ratio = np.empty(most), np.empty(most), np.empty(most), np.empty(most), np.empty(most)
        index, block = np.empty(most, np.uint32), np.empty((most, most))
        smoothed, worth, bound, reach = 0.0, 0.0, 0.0, exp(FAR * tau)
        load[:] = 0.0
        if bend:
            h[:] = 0.0
        for i in range(len(d)):
            begin, end, weight, sort, mine = indptr[i], indptr[i + 1], w[i], kind[i], own[i]
            if begin == end or weight == 0.0:
                continue
            pools, values, wants = pool[begin:end], value[begin:end], d[i]
            past = mine[0]
            cheapest = _cost(c, pools, wants, p)
            least = -cheapest  # a row price lies between this and
            greatest = weight / upper[i] if logs else 2.0 * weight * mine[1] * _largest(values)
            row = min(max(q[i], least + 1e-9 * weight), greatest)
            if lower[i] == 0.0:
                least = 0.0
                row = max(row, 0.0)
            spent, total, k, best, price, taken, first, rate = 0.0, 1.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0
            for _ in range(60):
                best = np.inf
                for e in range(len(pools)):
                    ratio[e] = (c[e] + row) / values[e]
                    best = min(best, ratio[e])
                best = max(best, 1e-300)
                far, k = best * reach, 0
                for e in range(len(pools)):  # without a branch: which pools are near is anybody's guess
                    index[k] = e
                    s[k] = ratio[e]
                    k += 1 if ratio[e] <= far else 0
                if k == 1:
                    total, s[0], price = 1.0, 1.0, best
                    a[0] = first = 1.0 / max(c[index[0]] + row, 1e-300)
                    bent = first * first
                else:
                    total, first, bent = 0.0, 0.0, 0.0
                    for e in range(k):
                        s[e] = exp(log(best / max(s[e], 1e-300)) / tau) if s[e] > best else 1.0
                        total += s[e]
                    for e in range(k):
                        s[e] /= total
                        a[e] = 1.0 / max(c[index[e]] + row, 1e-300)
                        first += s[e] * a[e]
                        bent += s[e] * a[e] * a[e]
                    price = best * exp(-tau * log(total))  # of service
                if logs:
                    spent = max(weight - past * price, 0.0)
                    rate = -past * price if spent > 0.0 else 0.0
                else:
                    bought, rate = _buy(sort, weight, mine, tau, price)
                    spent = bought * price
                taken = spent * first
                if spent == 0.0 and row == 0.0 and lower[i] == 0.0:
                    break
                steep = spent * (1.0 + 1.0 / tau)
                slope = steep * bent - (spent / tau + rate) * first * first
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
                guess = row + miss * taken / (limit * slope) if limit > 0.0 and slope > 0.0 else 0.0
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
            held = row * upper[i] if row > 0.0 else row * lower[i]
            if logs:  # written out: calls that tell kinds apart would cost as much as the rest
                if spent > 0.0:
                    gain = weight * log(weight / price) - spent
                else:
                    gain = weight * log(past)
                exact = gain
                if k > 1 and weight > past * best:
                    exact = weight * log(weight / best) - weight + past * best
            else:
                gain = _gain(sort, weight, mine, tau, price)
                exact = gain if k == 1 and sort != PIECES else _gain(sort, weight, mine, 0.0, best)
            bound += held + exact
            smoothed += held + gain
            served = 0.0
            for e in range(k):
                share = spent * s[e] * a[e]
                served += share * values[index[e]]
                _take(load, pools[index[e]], share, wants)
                if write:
                    x[begin + index[e]] = share
            if k == 1 and (logs or sort != PIECES):
                worth += gain + spent
            elif logs:
                worth += weight * log(max(past + served, 1e-300))
            else:
                worth += _worth(sort, weight, mine, served)
            if bend and spent > 0.0:
                if k == 1 and row != 0.0:
                    continue  # all it may have, in one pool: nothing moves
                steep, mixed = spent * (1.0 + 1.0 / tau), -(spent / tau + rate)
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
                _collect(h, place, pools, wants, index, k, block)
        return smoothed, worth, bound

    return concave


proportional, concave = _concave(True), _concave(False)


@compiled
@no_type_check
def welfare(indptr, pool, value, d, w, tau, lower, upper, p, load, place, h, bend, x, write):
    """f = w u; tau is each task's own, in credits. A floor that binds fixes what goes unserved.

    Gives (smoothed dual, what the plan is worth, exact dual), tasks' parts only; fills load, h, x.
    """
    most = _most(indptr)
    s, index, block = np.empty(most), np.empty(most, np.uint32), np.empty((most, most))
    smoothed, worth, bound = 0.0, 0.0, 0.0
    load[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(len(d)):
        begin, end, weight, heat = indptr[i], indptr[i + 1], w[i], tau[i]
        if begin == end:
            continue
        pools, values, wants = pool[begin:end], value[begin:end], d[i]
        _cost(s, pools, wants, p)
        best, k = -np.inf, 0
        for e in range(len(pools)):
            s[e] = weight * values[e] - s[e]
            best = max(best, s[e])
        bound += upper[i] * best if best > 0.0 else lower[i] * best
        far = FAR * heat
        if lower[i] == 0.0 and best < -far:
            continue
        for e in range(len(pools)):  # without a branch: which pools are near is anybody's guess
            index[k] = e
            gain = s[e]
            s[k] = gain
            k += 1 if gain > best - far else 0
        if k == 1 and best > far:  # all of it, in one pool
            smoothed += upper[i] * best
            worth += weight * values[index[0]] * upper[i]
            _take(load, pools[index[0]], upper[i], wants)
            if write:
                x[begin + index[0]] = upper[i]
            continue
        peak = best if lower[i] > 0.0 else max(best, 0.0)  # what a floor serves may be far below going unserved
        total = 0.0
        for e in range(k):
            s[e] = exp((s[e] - peak) / heat)
            total += s[e]
        silent = exp(-peak / heat)
        mass = upper[i] * total / (total + silent)
        fixed = mass < lower[i]
        if fixed:
            mass = lower[i]
            smoothed += mass * (peak + heat * log(total))
            smoothed -= heat * mass * log(mass / upper[i])
            if upper[i] > mass:
                smoothed -= heat * (upper[i] - mass) * log(1.0 - mass / upper[i])
        else:
            smoothed += upper[i] * (peak + heat * log(total + silent))
        for e in range(k):
            share = mass * s[e] / total
            s[e] = share
            worth += weight * values[index[e]] * share
            _take(load, pools[index[e]], share, wants)
            if write:
                x[begin + index[e]] = share
        if bend:
            over = 1.0 / (mass if fixed else upper[i])
            if k == 1 and fixed:
                continue
            for e in range(k):
                for f in range(e + 1):
                    block[e, f] = -s[e] * s[f] * over / heat
                block[e, e] += s[e] / heat
            _collect(h, place, pools, wants, index, k, block)
    return smoothed, worth, bound


@compiled
@no_type_check
def maxmin(indptr, pool, value, d, w, unit, upper, q, t, p, load, along, place, h, bend, x, write):
    """Cost S of serving every task at u = t w, cheapest first but for a temperature: unit is each task's own, in price of u.

    x_k = t w z_k / v_k with z a softmin of (c_k + q) / v_k, so that u = t w holds exactly; q > 0 where the cap binds.
    Gives (S, dS/dt, d2S/dt2, sum of w times the least price, sum of q cap); fills load, along = d load / dt, h, x.
    """
    most = _most(indptr)
    c, z, y, ones, ratio = np.empty(most), np.empty(most), np.empty(most), np.empty(most), np.empty(most)
    index, block = np.empty(most, np.uint32), np.empty((most, most))
    cost, slope, curve, prices, held = 0.0, 0.0, 0.0, 0.0, 0.0
    load[:] = 0.0
    along[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(len(d)):
        begin, end = indptr[i], indptr[i + 1]
        if begin == end or w[i] == 0.0:
            continue
        pools, values, wants, level = pool[begin:end], value[begin:end], d[i], t * w[i]
        _cost(c, pools, wants, p)
        heat, row, low, high = unit[i], q[i], 0.0, np.inf
        k, total, best, steep, first = 0, 1.0, 0.0, 0.0, 0.0
        for _ in range(80):
            best = np.inf
            for e in range(len(pools)):
                ratio[e] = (c[e] + row) / values[e]
                best = min(best, ratio[e])
            k, far = 0, best + FAR * heat
            for e in range(len(pools)):  # without a branch: which pools are near is anybody's guess
                index[k] = e
                z[k] = ratio[e]
                k += 1 if ratio[e] <= far else 0
            if k == 1:
                total, z[0], y[0] = 1.0, 1.0, 1.0 / values[index[0]]
                first, steep = y[0], 0.0
            else:
                total, first, steep = 0.0, 0.0, 0.0
                for e in range(k):
                    z[e] = exp((best - z[e]) / heat)
                    total += z[e]
                for e in range(k):
                    z[e] /= total
                    y[e] = z[e] / values[index[e]]
                    first += y[e]
                    steep += y[e] / values[index[e]]
                steep = level / heat * max(steep - first * first, 0.0)
            taken = level * first
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
        softest = best - heat * log(total) if k > 1 else best
        cost += level * softest - row * upper[i]
        slope += w[i] * softest
        prices += w[i] * best
        held += row * upper[i]
        tied = row > 0.0 and steep > 0.0
        rate = 0.0
        if tied:
            rate = upper[i] / (t * steep)  # dq/dt
            curve += upper[i] / t * rate
        if k == 1:
            share = level * y[0]
            _take(load, pools[index[0]], share, wants)
            _take(along, pools[index[0]], share / t, wants)
            if write:
                x[begin + index[0]] = share
            continue
        every = 0.0
        for e in range(k):
            ones[e] = level / heat * y[e] * (1.0 / values[index[e]] - first)
            every += ones[e]
        for e in range(k):
            share = level * y[e]
            _take(load, pools[index[e]], share, wants)
            _take(along, pools[index[e]], share / t - ones[e] * rate, wants)
            if write:
                x[begin + index[e]] = share
        if bend:
            for e in range(k):
                for f in range(e + 1):
                    block[e, f] = -level / heat * y[e] * y[f]
                    if tied:
                        block[e, f] -= ones[e] * ones[f] / every
                block[e, e] += level / heat * y[e] / values[index[e]]
            _collect(h, place, pools, wants, index, k, block)
    return cost, slope, curve, prices, held
