"""What to try next, under limits: ageing evolution over genes. It knows neither KerasTuner nor workers nor files."""

from __future__ import annotations

import numpy as np

from saaug_keras import _validate
from saaug_keras.search import pareto

_REJECTS_SHOWN = 400  # per stage, kept for the page


class Evolution:
    """The policy of a search in stages: limits, proposals, and the ranking of what has finished.

    Args:
        owner: whose arguments these are, for errors.
        cost_names: of the spaces.
        stages: how many there are; the limits of the last are as given, of those before times `slack`.
        limits, slack, minimize, strategy, population_size, top, mutation_probability, reject_infeasible, attempts: as of
            `TwoStageOracle`.
    Attributes:
        rejects: stage (as text) -> reason -> count. rejected: stage -> costs of the last rejected candidates.
        tried: keys of all candidates that became trials.
    """

    def __init__(
        self,
        owner,
        cost_names,
        stages,
        *,
        limits,
        slack,
        minimize,
        strategy,
        population_size,
        top,
        mutation_probability,
        reject_infeasible,
        attempts,
    ):
        self.owner, self.cost_names, self.stages = owner, cost_names, stages
        self.strategy = _validate.one_of(owner, "strategy", strategy, ("evolution", "random"))
        self.population_size = _validate.int_in(owner, "population_size", population_size, 2, 100_000, " trials")
        self.top = _validate.int_in(owner, "top", top, 1, population_size, " trials")
        self.mutation_probability = _validate.number_in(owner, "mutation_probability", mutation_probability, 0, 1)
        self.attempts = _validate.int_in(owner, "attempts", attempts, 1, 1_000_000, " draws")
        self.limits, self.minimize, self.slack = dict(limits or {}), tuple(minimize), dict(slack or {})
        self.reject_infeasible = reject_infeasible
        for name in (*self.limits, *self.minimize, *self.slack):
            _validate.one_of(owner, "limits, minimize or slack", name, cost_names)
        for name, factor in self.slack.items():
            _validate.number_in(owner, f"slack of {name}", factor, 1, 1000)
        self.rejects, self.rejected, self.tried = {}, {}, set()

    # Limits

    def limits_of(self, stage) -> dict:
        """Cost name -> largest allowed value in a stage."""
        if stage == self.stages:
            return self.limits
        return {name: limit * self.slack.get(name, 1) for name, limit in self.limits.items()}

    def check_limits(self, space, stage):
        """Raises ValueError for limits of a stage that not even the smallest of its candidates meets."""
        candidates = [space.costs(values) for values in space.smallest()]
        unmet = []
        for name, limit in self.limits_of(stage).items():
            least = min(costs[name] for costs in candidates)
            if least > limit:
                unmet.append(f"{name}={limit:g} (the smallest network needs {least:g})")
        if unmet:
            raise ValueError(f"{self.owner}: `limits` that no candidate meets: {', '.join(unmet)}.")

    def has_descendant(self, space, stage: int, values: dict) -> bool:
        """Whether the next stage of a candidate, if there is one, has a candidate within that stage's limits."""
        following = space.second_stage(values) if stage < self.stages else None
        if following is None:
            return True
        return any(self.violation(stage + 1, following.costs(each)) == 0 for each in following.smallest())

    def violation(self, stage: int, costs: dict) -> float:
        """How far costs are beyond a stage's limits, as a sum of fractions of them; 0 is feasible."""
        return sum(
            max(0.0, costs[name] / limit - 1) if limit else float(costs[name]) for name, limit in self.limits_of(stage).items()
        )

    # Proposals

    @staticmethod
    def key(values):
        """What makes two candidates of a stage the same."""
        return tuple(values.items())

    def propose(self, space, stage: int, parents: list, rng) -> dict | None:
        """A candidate of a stage that was not tried yet, and that fits; None if there is none.

        Args:
            space: of the stage.
            parents: candidates to change; without any, candidates are drawn.
            rng: NumPy generator, all that chance comes from.
        """
        seeds = [s for s in map(space.canonical, space.seeds()) if self.key(s) not in self.tried]
        last = None
        for attempt in range(self.attempts):
            if attempt < len(seeds):
                values = seeds[attempt]
            elif not parents:
                values = space.sample(rng)
            elif rng.random() < 0.5 or len(parents) < 2:
                parent = parents[rng.integers(len(parents))]
                values = space.mutate(parent, rng, self.mutation_probability)
            else:
                first, second = rng.choice(len(parents), 2, replace=False)
                values = space.crossover(parents[first], parents[second], rng)
            if self._accept(space, stage, values):
                return values
            last = values
        for start in [last] + [space.sample(rng) for _ in range(20)]:
            for values in space.shrink(start, rng):
                if self._accept(space, stage, values):
                    return values
        return None

    def _accept(self, space, stage, values):
        counts = self.rejects.setdefault(str(stage), {})
        if self.key(values) in self.tried:
            counts["duplicate"] = counts.get("duplicate", 0) + 1
            return False
        costs = space.costs(values)
        beyond = [name for name, limit in self.limits_of(stage).items() if costs[name] > limit]
        if beyond and self.reject_infeasible:
            for name in beyond:
                counts[name] = counts.get(name, 0) + 1
            sample = self.rejected.setdefault(str(stage), [])
            sample.append({name: float(costs[name]) for name in self.cost_names})
            del sample[:-_REJECTS_SHOWN]
            return False
        if self.reject_infeasible and not self.has_descendant(space, stage, values):
            counts["descendants"] = counts.get("descendants", 0) + 1
            return False
        return True

    def parents(self, finished: list[dict], trials: int) -> list[dict]:
        """Values of the `top` best of the living; none until the first population is complete, or by strategy "random".

        Args:
            finished: candidates of the stage as of `rank`, in the order of finishing.
            trials: of the whole stage.
        """
        if self.strategy == "random" or len(finished) < min(self.population_size, trials // 2 or 1):
            return []
        living = finished[-self.population_size :]
        return [living[index]["values"] for index in self.rank(living)[: self.top]]

    # Ranking

    def rank(self, candidates: list[dict]):
        """Indices from best to worst, in NSGA-II's order: feasible ones first.

        Args:
            candidates: {"stage", "values", "costs", "score"} of each.
        """
        violations = [self.violation(c["stage"], c["costs"]) for c in candidates]
        return pareto.best_first(self._objectives(candidates, self.minimize), violations)

    def front(self, candidates: list[dict], minimize=None) -> list[int]:
        """Indices of the feasible candidates that no other dominates, by falling score.

        Args:
            candidates: as of `rank`.
            minimize: costs beside the score. Default: those of the search, or all if it has none.
        """
        minimize = tuple(minimize or self.minimize or self.cost_names)
        for name in minimize:
            _validate.one_of("pareto_front", "minimize", name, self.cost_names)
        feasible = [i for i, c in enumerate(candidates) if self.violation(c["stage"], c["costs"]) == 0]
        if not feasible:
            return []
        ranks = pareto.fronts(self._objectives([candidates[i] for i in feasible], minimize), np.zeros(len(feasible)))
        first = [i for i, rank in zip(feasible, ranks, strict=True) if rank == 0]
        return sorted(first, key=lambda i: -candidates[i]["score"])

    @staticmethod
    def _objectives(candidates, minimize):
        return np.array([[-c["score"], *(c["costs"][name] for name in minimize)] for c in candidates])
