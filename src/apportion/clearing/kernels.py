"""Loops over tasks and their pairs, compiled (Numba, cached on disk). `no_type_check`: a checked function cannot be compiled."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

CRUMB = 1000.0  # parts: a millionth of what a task wants; less is not worth looking for
compiled = njit(cache=True, fastmath={"contract", "nsz", "arcp"})  # sums keep their order: same input, same bytes


@compiled
@no_type_check
def load(part, pool, z, pools):
    """Sum part * z into each pool and resource."""
    out = np.zeros((pools, part.shape[1]))
    for e in range(len(pool)):
        for r in range(part.shape[1]):
            out[pool[e], r] += part[e, r] * z[e]
    return out


@compiled
@no_type_check
def total(row, pool, demand, x, pools):
    """Sum demand * x into each pool and resource."""
    out = np.zeros((pools, demand.shape[1]))
    for e in range(len(pool)):
        for r in range(demand.shape[1]):
            out[pool[e], r] += demand[row[e], r] * x[e]
    return out


@compiled
@no_type_check
def least_factor(row, pool, demand, factor):
    """Give the least factor of each pair's pool, among the resources that its task wants; 1 at most."""
    out = np.ones(len(pool))
    for e in range(len(pool)):
        for r in range(demand.shape[1]):
            if demand[row[e], r] > 0.0 and factor[pool[e], r] < out[e]:
                out[e] = factor[pool[e], r]
    return out


@compiled
@no_type_check
def cost(part, pool, lam):
    """Price each pair."""
    out = np.empty(len(pool))
    for e in range(len(pool)):
        c = 0.0
        for r in range(part.shape[1]):
            c += part[e, r] * lam[pool[e], r]
        out[e] = c
    return out


@compiled
@no_type_check
def gram(start, stop, part, pool, root, q1, q2, p11, p12, p22, pools):
    """Give sum_i A_i B_i A_i', B_i = root (I - QQ' + Q P Q') root; I - QQ' is squared, so that nothing cancels."""
    resources, most = part.shape[1], (stop - start).max()
    out = np.zeros((pools * resources, pools * resources))
    away, b = np.empty((most, most)), np.empty((most, most))
    for i in range(len(start)):
        at, k = start[i], stop[i] - start[i]
        for e in range(k):
            for f in range(k):
                away[e, f] = -q1[at + e] * q1[at + f] - q2[at + e] * q2[at + f]
            away[e, e] += 1.0
        for e in range(k):
            for f in range(e + 1):
                both = q1[at + e] * (p11[i] * q1[at + f] + p12[i] * q2[at + f])
                both += q2[at + e] * (p12[i] * q1[at + f] + p22[i] * q2[at + f])
                for g in range(k):
                    both += away[e, g] * away[f, g]
                b[e, f] = b[f, e] = both * root[at + e] * root[at + f]
        for e in range(k):
            for f in range(k):
                if pool[at + f] > pool[at + e]:
                    continue
                for r in range(resources):
                    left = b[e, f] * part[at + e, r]
                    for t in range(resources):
                        out[pool[at + e] * resources + r, pool[at + f] * resources + t] += left * part[at + f, t]
    for a in range(len(out)):
        for c in range(a):
            out[c, a] = out[a, c]
    return out


@compiled
@no_type_check
def refill(tasks, indptr, pool, usable, value, demand, room, spare, parts):
    """Give these tasks, one after another, what room they have in what pools have to spare, in whole parts: the best pair first."""
    for i in tasks:
        for _ in range(indptr[i + 1] - indptr[i]):
            best = -1
            for e in range(indptr[i], indptr[i + 1]):
                if (best < 0 or value[e] > value[best]) and usable[e]:
                    fits = True
                    for r in range(demand.shape[1]):
                        fits &= demand[i, r] * CRUMB <= spare[pool[e], r]
                    if fits:
                        best = e
            if best < 0:
                break
            most = room[i]
            for r in range(demand.shape[1]):
                if demand[i, r] > 0.0:
                    most = min(most, spare[pool[best], r] / demand[i, r])
            most = np.floor(most)
            parts[best] += np.int64(most)
            room[i] -= most
            for r in range(demand.shape[1]):
                spare[pool[best], r] = max(spare[pool[best], r] - most * demand[i, r], 0.0)
            if room[i] <= CRUMB:
                break
