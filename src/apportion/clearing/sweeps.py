"""One pass over all tasks at given prices: what they take, what it is worth, and how that bends with prices (Numba).

Prices arrive as p (credits per unit of demand), loads leave in units of demand. A pass smooths the choice between pools by
a temperature tau: tasks spread over pools that are nearly as good as the best. Pools too far behind it are dropped before
anything is exponentiated; few are left, so a pass costs little more than pricing the pairs.

    h[place[j, l], r, t]  collects  W_kl d_r d_t  with W = -dx/dc of a task's own pairs (k in pool j, l in pool l; l <= j)
"""

from __future__ import annotations

from math import exp, floor, log, log2
from typing import no_type_check

import numpy as np
from numba import njit

compiled = njit(
    cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}
)  # the same bytes wherever arrays lie: nothing is reordered
THIN = 1e-4  # of a task's load, squared: what two pools share below it bends nothing that a step would feel
SLACK = 0.03  # of its cap: from here on max-min's barrier keeps a task from it
FAR = 20.0  # in units of tau: e^-20 of the best pool's weight is nothing


@compiled
@no_type_check
def _collect(h, place, one, other, same, w, d, unrolled):
    """Add W_kl d d' to the block of these pools, k in one and l in the other; same: k is l."""
    resources = len(unrolled) if len(unrolled) > 0 else d.shape[0]
    w = 2.0 * w if one == other and not same else w
    block = h[place[max(one, other), min(one, other)]]
    for r in range(resources):
        y = w * d[r]
        for t in range(resources):
            block[r, t] += y * d[t]


@compiled
@no_type_check
def _cost(out, pool, d, p, unrolled):
    """Price a task's pairs."""
    resources = len(unrolled) if len(unrolled) > 0 else d.shape[0]
    for e in range(len(pool)):
        cost, j = 0.0, pool[e]
        for r in range(resources):
            cost += d[r] * p[j, r]
        out[e] = cost


@compiled
@no_type_check
def _take(load, j, share, d, unrolled):
    """Add what a share takes of pool j."""
    for r in range(len(unrolled) if len(unrolled) > 0 else d.shape[0]):
        load[j, r] += share * d[r]


@compiled
@no_type_check
def _most(indptr):
    most = 0
    for i in range(len(indptr) - 1):
        most = max(most, indptr[i + 1] - indptr[i])
    return most


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
def cheapest(indptr, pool, takes, d, p, unrolled):
    """Give each task's least price of service."""
    out, c = np.empty(len(d)), np.empty(_most(indptr))
    for i in range(len(d)):
        begin, size = indptr[i], indptr[i + 1] - indptr[i]
        _cost(c, pool[begin : begin + size], d[i], p, unrolled)
        least = np.inf
        for e in range(size):
            least = min(least, c[e] * takes[begin + e])
        out[i] = least
    return out


def sharpness(tau):
    """Give the nearest 2^m or 3 2^m to 1/tau: what `concave` can raise to by squaring alone."""
    whole = floor(-log2(tau))
    part = 2.0**-whole / tau  # in [1, 2)
    return 2**whole if part < 1.25 or whole < 1 else 3 * 2 ** (whole - 1) if part < 1.75 else 2 ** (whole + 1)


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


def _concave(logs: bool):
    """Make the pass over worths that bend; logs: over logarithms alone, which need no look at each task's kind."""

    @compiled
    @no_type_check
    def concave(
        indptr, pool, takes, d, w, kind, own, lower, upper, q, p, sharp, load, place, h, bend, x, write, unrolled
    ):
        """Sums of concave worths of service. q keeps each task's row price between passes: above 0 at the cap, below at the floor.

        Service is bought at a price that blurs a task's pools, P = (sum_k y_k^-sharp)^(-1/sharp), y_k = (c_k + q) / v_k,
        so that x_k = u P s_k / (c_k + q) with s_k = (y_k / P)^-sharp. sharp = 1/tau is 2^m or 3 2^m: powers by squaring.
        takes = 1 / v. Gives (smoothed dual, what the plan is worth, exact dual at these p and q), tasks' parts only; fills load,
        h, x.
        """
        most, resources = _most(indptr), len(unrolled) if len(unrolled) > 0 else d.shape[1]
        c, s, a, ones, ratio = np.empty(most), np.empty(most), np.empty(most), np.empty(most), np.empty(most)
        index, tau = np.empty(most, np.uint32), 1.0 / sharp
        cubed, doublings = sharp % 3 == 0, int(log2(sharp // 3 if sharp % 3 == 0 else sharp) + 0.5)
        smoothed, worth, bound, reach = 0.0, 0.0, 0.0, exp(FAR * tau)
        load[:] = 0.0
        if bend:
            h[:] = 0.0
        for i in range(len(d)):
            begin, size, weight, sort, mine = indptr[i], indptr[i + 1] - indptr[i], w[i], kind[i], own[i]
            if write:
                x[begin : begin + size] = 0.0
            if size == 0 or weight == 0.0:
                continue
            past, fewest, upmost = mine[0], lower[i], upper[i]
            cheapest, leanest = np.inf, np.inf
            for e in range(size):
                j, cost = pool[begin + e], 0.0
                for r in range(resources):
                    cost += d[i, r] * p[j, r]
                c[e] = cost
                cheapest, leanest = min(cheapest, cost), min(leanest, takes[begin + e])
            least = -cheapest  # a row price lies between this and
            greatest = weight / upmost if logs else 2.0 * weight * mine[1] / leanest
            row = min(max(q[i], least + 1e-9 * weight), greatest)
            if fewest == 0.0:
                least = 0.0
                row = max(row, 0.0)
            k, at, spent, total, best, price, taken, first, rate = 0, 0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
            stride = np.inf
            for _ in range(60):
                best, k = np.inf, 0
                for e in range(size):
                    ratio[e] = (c[e] + row) * takes[begin + e]
                    if ratio[e] < best:
                        best, at = ratio[e], e
                best = max(best, 1e-300)
                far = best * reach
                for e in range(size):
                    k += 1 if ratio[e] <= far else 0
                if k == 1:
                    index[0], s[0], total, price = at, 1.0, 1.0, best
                    a[0] = first = 1.0 / max(c[at] + row, 1e-300)
                    bent = first * first
                else:
                    k, total, first, bent = 0, 0.0, 0.0, 0.0
                    for e in range(size):  # without a branch: which pools are near is anybody's guess
                        index[k], s[k] = e, ratio[e]
                        k += 1 if ratio[e] <= far else 0
                    for e in range(k):
                        y = best / s[e]
                        y = y * y * y if cubed else y
                        for _ in range(doublings):
                            y *= y
                        s[e] = y
                        a[e] = 1.0 / max(c[index[e]] + row, 1e-300)
                        total += y
                        first += y * a[e]
                        bent += y * a[e] * a[e]
                    first, bent = first / total, bent / total
                    price = best if logs and past == 0.0 else best * exp(-tau * log(total))  # of service
                if logs:
                    spent = max(weight - past * price, 0.0)
                    rate = -past * price if spent > 0.0 else 0.0
                else:
                    bought, rate = _buy(sort, weight, mine, tau, price)
                    spent = bought * price
                taken = spent * first
                if spent == 0.0 and row == 0.0 and fewest == 0.0:
                    break
                if row == 0.0:
                    if fewest <= taken <= upmost:
                        break
                    if taken > upmost:
                        least = 0.0
                    else:
                        greatest = 0.0
                limit = upmost if row > 0.0 or (row == 0.0 and taken > upmost) else fewest
                miss = taken - limit
                if row != 0.0 and abs(miss) <= 1e-9 * limit:
                    break
                if miss > 0.0:
                    least = max(least, row)
                else:
                    greatest = min(greatest, row)
                # Newton on 1/taken is nearly straight in the row price
                slope = spent * (1.0 + sharp) * bent - (spent * sharp + rate) * first * first
                guess = row + miss * taken / (limit * slope) if limit > 0.0 and slope > 0.0 else 0.0
                if (row > 0.0 and miss < 0.0 and guess <= 0.0 and least <= 0.0) or (
                    row < 0.0 and miss > 0.0 and guess >= 0.0 and greatest >= 0.0
                ):
                    guess = 0.0
                elif not (least < guess < greatest) or abs(guess - row) > 0.5 * stride:  # no nearer than before: halve
                    guess = 0.5 * (least + greatest)
                if guess == row:
                    break
                stride, row = abs(guess - row), guess
            q[i] = row
            held = row * upmost if row > 0.0 else row * fewest
            if logs:  # written out: calls that tell kinds apart would cost as much as the rest
                gain = weight * log(past) if spent == 0.0 else weight * log(weight / best) - spent
                exact = gain
                if k > 1 and spent > 0.0:
                    exact, gain = gain + spent - weight + past * best, gain + weight * tau * log(total)
            else:
                gain = _gain(sort, weight, mine, tau, price)
                exact = gain if k == 1 and sort != PIECES else _gain(sort, weight, mine, 0.0, best)
            bound += held + exact
            smoothed += held + gain
            served = 0.0
            for e in range(k):
                j, share = pool[begin + index[e]], spent * s[e] / total * a[e]
                served += share / takes[begin + index[e]]
                for r in range(resources):
                    load[j, r] += share * d[i, r]
                if write:
                    x[begin + index[e]] = share
            if k == 1 and (logs or sort != PIECES):
                worth += gain + spent
            elif logs:
                worth += weight * log(max(past + served, 1e-300))
            else:
                worth += _worth(sort, weight, mine, served)
            if bend and spent > 0.0 and (k > 1 or row == 0.0):  # all it may have, in one pool: nothing moves
                steep, mixed, every = spent * (1.0 + sharp), -(spent * sharp + rate), 0.0
                for e in range(k):
                    s[e] *= a[e] / total
                    ones[e] = s[e] * (steep * a[e] + mixed * first)
                    every += ones[e]
                tied = 1.0 / every if row != 0.0 and every > 0.0 else 0.0
                for e in range(k):
                    for f in range(e + 1):
                        if s[e] * s[f] < THIN * first * first and e != f:
                            continue
                        bent = mixed * s[e] * s[f] - ones[e] * ones[f] * tied
                        if e == f:
                            bent += steep * s[e] * a[e]
                        _collect(h, place, pool[begin + index[e]], pool[begin + index[f]], e == f, bent, d[i], unrolled)
        return smoothed, worth, bound

    return concave


proportional, concave = _concave(True), _concave(False)


@compiled
@no_type_check
def welfare(indptr, pool, value, d, w, tau, lower, upper, p, load, place, h, bend, x, write, unrolled):
    """f = w u; tau is each task's own, in credits. A floor that binds fixes what goes unserved.

    Gives (smoothed dual, what the plan is worth, exact dual), tasks' parts only; fills load, h, x.
    """
    most = _most(indptr)
    s, index = np.empty(most), np.empty(most, np.uint32)
    smoothed, worth, bound = 0.0, 0.0, 0.0
    load[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(len(d)):
        begin, end, weight, heat = indptr[i], indptr[i + 1], w[i], tau[i]
        if write:
            x[begin:end] = 0.0
        if begin == end:
            continue
        pools, values, wants = pool[begin:end], value[begin:end], d[i]
        _cost(s, pools, wants, p, unrolled)
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
            k += 1 if gain >= best - far else 0
        if k == 1 and best > far:  # all of it, in one pool
            smoothed += upper[i] * best
            worth += weight * values[index[0]] * upper[i]
            _take(load, pools[index[0]], upper[i], wants, unrolled)
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
            _take(load, pools[index[e]], share, wants, unrolled)
            if write:
                x[begin + index[e]] = share
        if bend:
            over = 1.0 / (mass if fixed else upper[i])
            if k == 1 and fixed:
                continue
            for e in range(k):
                for f in range(e + 1):
                    if s[e] * s[f] < THIN * mass * mass and e != f:
                        continue
                    bent = -s[e] * s[f] * over / heat + (s[e] / heat if e == f else 0.0)
                    _collect(h, place, pools[index[e]], pools[index[f]], e == f, bent, wants, unrolled)
    return smoothed, worth, bound


@compiled
@no_type_check
def maxmin(
    indptr, pool, takes, d, w, unit, firm, lower, upper, q, t, p, load, along, place, h, bend, x, write, unrolled
):
    """Cost S of serving every task at u = t w, cheapest first but for a temperature: unit is each task's own, in price of u.

    takes = 1 / v; x_k = t w z_k / v_k with z a softmin of (c_k + q) / v_k, so that u = t w holds exactly; q > 0 where the cap
    binds (and a little before: a barrier of weight mass, over the last tenth, so that S has no kinks in t), q < 0 where the floor does. A floor that serves more than t w by itself is bought where shares are cheapest.
    Gives (S, dS/dt, d2S/dt2, sum of w times the least price, sum of q cap or q floor); fills load, along = d load / dt, h, x.
    """
    most = _most(indptr)
    c, z, y, ones, ratio = np.empty(most), np.empty(most), np.empty(most), np.empty(most), np.empty(most)
    index = np.empty(most, np.uint32)
    cost, slope, curve, prices, held = 0.0, 0.0, 0.0, 0.0, 0.0
    load[:] = 0.0
    along[:] = 0.0
    if bend:
        h[:] = 0.0
    for i in range(len(d)):
        begin, end = indptr[i], indptr[i + 1]
        if write:
            x[begin:end] = 0.0
        if begin == end or (w[i] == 0.0 and lower[i] == 0.0):
            continue
        pools, per, wants, level = pool[begin:end], takes[begin:end], d[i], t * w[i]
        _cost(c, pools, wants, p, unrolled)
        heat, row, low, high, limit = unit[i], q[i], 0.0, np.inf, upper[i]
        slack, mass = SLACK * upper[i], firm * heat * upper[i]
        k, total, best, steep, first, stride = 0, 1.0, 0.0, 0.0, 0.0, np.inf
        if lower[i] > 0.0:
            cheapest = np.inf
            for e in range(len(pools)):
                cheapest = min(cheapest, c[e])
            for e in range(len(pools)):
                index[k], z[k] = e, c[e]
                k += 1 if c[e] <= cheapest + FAR * heat else 0
            total, served = 0.0, 0.0
            for e in range(k):
                z[e] = exp((cheapest - z[e]) / heat)
                total += z[e]
                served += z[e] / per[index[e]]
            if served * lower[i] >= level * total:
                q[i] = -cheapest
                cost += lower[i] * (cheapest - heat * log(total))
                held -= lower[i] * cheapest
                for e in range(k):
                    z[e] *= lower[i] / total
                    _take(load, pools[index[e]], z[e], wants, unrolled)
                    if write:
                        x[begin + index[e]] = z[e]
                    for f in range(e + 1):
                        if bend and k > 1:
                            bent = -z[e] * z[f] / (lower[i] * heat) + (z[e] / heat if e == f else 0.0)
                            _collect(h, place, pools[index[e]], pools[index[f]], e == f, bent, wants, unrolled)
                continue
            low = -cheapest
        row = max(row, low)
        for _ in range(80):
            best = np.inf
            for e in range(len(pools)):
                ratio[e] = (c[e] + row) * per[e]
                best = min(best, ratio[e])
            k, far = 0, best + FAR * heat
            for e in range(len(pools)):  # without a branch: which pools are near is anybody's guess
                index[k] = e
                z[k] = ratio[e]
                k += 1 if ratio[e] <= far else 0
            if k == 1:
                total, z[0], y[0] = 1.0, 1.0, per[index[0]]
                first, steep = y[0], 0.0
            else:
                total, first, steep = 0.0, 0.0, 0.0
                for e in range(k):
                    z[e] = exp((best - z[e]) / heat)
                    total += z[e]
                for e in range(k):
                    z[e] /= total
                    y[e] = z[e] * per[index[e]]
                    first += y[e]
                    steep += y[e] * per[index[e]]
                steep = level / heat * max(steep - first * first, 0.0)
            taken = level * first
            if row == 0.0 and lower[i] <= taken <= upper[i] - slack:
                break
            if row > 0.0 or (row == 0.0 and taken > lower[i]):
                limit = upper[i]
                spare = mass / (row + mass / slack)
                miss, rate = taken - limit + spare, steep + spare * spare / mass
            else:
                limit = lower[i]
                miss, rate = taken - limit, steep
            if abs(miss) <= 1e-10 * limit:
                break
            if miss > 0.0:
                low = row
            else:
                high = row
            guess = row + miss / rate if rate > 0.0 else (np.inf if miss > 0.0 else -np.inf)
            if k == 1 and row >= 0.0 and limit == upper[i] and taken < limit:
                guess = max(mass / (limit - taken) - mass / slack, 0.0)
            if (row > 0.0 and miss < 0.0 and guess <= 0.0 and low <= 0.0) or (
                row < 0.0 and miss > 0.0 and guess >= 0.0 and high >= 0.0
            ):
                guess = 0.0
            elif not (low < guess < high) or (high < np.inf and abs(guess - row) > 0.5 * stride):
                guess = 0.5 * (low + high) if high < np.inf else 2.0 * row + heat
            if guess == row:
                break
            stride, row = abs(guess - row), guess
        q[i] = row
        softest = best - heat * log(total) if k > 1 else best
        cost += level * softest - row * limit
        spare = 0.0
        if row > 0.0:
            spare = mass / (row + mass / slack)
            cost -= mass * log(spare / slack)
        slope += w[i] * softest
        prices += w[i] * best
        held += row * limit
        rate, yields = 0.0, steep + spare * spare / mass
        tied = row != 0.0 and yields > 0.0
        if tied:
            rate = level * first / (t * yields)  # dq/dt
            curve += level * first / t * rate
        if k == 1:
            share = level * y[0]
            _take(load, pools[index[0]], share, wants, unrolled)
            _take(along, pools[index[0]], share / t, wants, unrolled)
            if write:
                x[begin + index[0]] = share
            continue
        for e in range(k):
            ones[e] = level / heat * y[e] * (per[index[e]] - first)
        for e in range(k):
            share = level * y[e]
            _take(load, pools[index[e]], share, wants, unrolled)
            _take(along, pools[index[e]], share / t - ones[e] * rate, wants, unrolled)
            if write:
                x[begin + index[e]] = share
        if bend:
            for e in range(k):
                for f in range(e + 1):
                    if y[e] * y[f] < THIN * first * first and e != f:
                        continue
                    bent = -level / heat * y[e] * y[f] - (ones[e] * ones[f] / yields if tied else 0.0)
                    if e == f:
                        bent += level / heat * y[e] * per[index[e]]
                    _collect(h, place, pools[index[e]], pools[index[f]], e == f, bent, wants, unrolled)
    return cost, slope, curve, prices, held
