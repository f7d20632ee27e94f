"""Constrained Pareto ranking, as NSGA-II (Deb et al. 2002) does it. Arrays in, arrays out."""

from __future__ import annotations

import numpy as np


def dominance(objectives, violations) -> np.ndarray:
    """Who dominates whom, under constraints.

    A feasible point dominates every infeasible one; of two infeasible points the one with the smaller violation; of
    two feasible ones the one that is nowhere worse and somewhere better.

    Args:
        objectives: (n, m), every column to be minimised.
        violations: (n,), 0 for a feasible point, else how far it is from feasible.
    Returns:
        (n, n) bool; [i, j] is True where i dominates j.
    """
    objectives = np.asarray(objectives, float)
    violations = np.asarray(violations, float)
    a, b = objectives[:, None, :], objectives[None, :, :]
    better = (a <= b).all(-1) & (a < b).any(-1)
    both_feasible = (violations[:, None] == 0) & (violations[None, :] == 0)
    return np.where(both_feasible, better, violations[:, None] < violations[None, :])


def fronts(objectives, violations) -> np.ndarray:
    """The rank of each point, (n,) int: 0 for those nobody dominates, 1 for those only rank 0 dominates, ..."""
    dominates = dominance(objectives, violations)
    ranks = np.full(len(dominates), -1)
    rank = 0
    while (ranks < 0).any():
        left = ranks < 0
        free = left & ~dominates[left].any(axis=0)
        ranks[free] = rank
        rank += 1
    return ranks


def crowding(objectives, ranks) -> np.ndarray:
    """The crowding distance of each point within its rank, (n,): large where neighbours are far, infinite at ends."""
    objectives = np.asarray(objectives, float)
    distance = np.zeros(len(objectives))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        for column in objectives.T:
            order = members[np.argsort(column[members], kind="stable")]
            span = column[order[-1]] - column[order[0]]
            distance[order[[0, -1]]] = np.inf
            if span > 0 and len(order) > 2:
                distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def best_first(objectives, violations) -> np.ndarray:
    """Indices from best to worst: by rank, then by crowding distance; ties stay in the order given.

    With a single objective the ends of a rank are all there is, so equal values are simply ties.
    """
    if len(objectives) == 0:
        return np.zeros(0, int)
    ranks = fronts(objectives, violations)
    return np.lexsort((-crowding(objectives, ranks), ranks))
