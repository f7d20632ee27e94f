"""Search spaces as data: genes with choices, and candidates as dicts of the genes that are active.

The oracle knows only what is here; what a candidate means (a network, its costs) is a subclass's business.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Gene:
    """One choice among `choices`, written from the smallest network to the largest.

    A gene with a `parent` is active only while the parent gene has one of `parent_values`; the parent itself has none.
    """

    name: str
    choices: tuple
    parent: str | None = None
    parent_values: tuple = ()


class GeneSpace:
    """A set of genes, with the draws that evolution needs. Draws take a `numpy.random.Generator` and keep no state.

    Subclasses give `costs`; those of a first stage also give `second_stage`.

    Args:
        genes: sequence of `Gene`, parents before their children.
        cost_names: the keys of what `costs` returns.
    """

    def __init__(self, genes, cost_names=()):
        self.genes = {gene.name: gene for gene in genes}
        self.cost_names = tuple(cost_names)

    # What a candidate means

    def costs(self, values: dict) -> dict[str, float]:
        """The costs of a candidate, all to be kept small; deterministic and fast, for it runs on every proposal."""
        raise NotImplementedError

    def second_stage(self, values: dict) -> GeneSpace | None:
        """The space of the second stage around the first stage's winner; None for a search of one stage."""
        return None

    def smallest(self) -> tuple[dict, ...]:
        """Candidates of which, for each cost, one is the least that the space offers."""
        return (self.canonical({name: gene.choices[0] for name, gene in self.genes.items()}),)

    def seeds(self) -> tuple[dict, ...]:
        """Candidates worth proposing before any draw, for every strategy alike."""
        return ()

    def describe(self) -> dict:
        """Plain data that changes when the space does."""
        return {name: [list(g.choices), g.parent, list(g.parent_values)] for name, g in self.genes.items()}

    @property
    def identity(self) -> str:
        """A short hash of `describe()`: two processes with the same one search the same space."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]

    # Candidates

    def is_active(self, name: str, values: dict) -> bool:
        gene = self.genes[name]
        return gene.parent is None or values.get(gene.parent) in gene.parent_values

    def canonical(self, values: dict) -> dict:
        """The candidate with its active genes only, in the order of the genes; a missing one takes its first choice.

        Raises:
            ValueError: an active gene has a value that is not among its choices.
        """
        result = {}
        for name, gene in self.genes.items():
            if self.is_active(name, result):
                value = values.get(name, gene.choices[0])
                if value not in gene.choices:
                    choices = ", ".join(map(repr, gene.choices))
                    raise ValueError(f"{type(self).__name__}: `{name}` must be one of {choices}. Received: {name}={value!r}.")
                result[name] = value
        return result

    def size(self) -> int:
        """How many different candidates there are."""
        total = 1
        for name, gene in self.genes.items():
            if gene.parent is None:
                children = [g for g in self.genes.values() if g.parent == name]
                total *= sum(math.prod(len(g.choices) for g in children if value in g.parent_values) for value in gene.choices)
        return total

    # Draws

    def sample(self, rng) -> dict:
        """A candidate with every active gene drawn uniformly."""
        result = {}
        for name, gene in self.genes.items():
            if self.is_active(name, result):
                result[name] = gene.choices[rng.integers(len(gene.choices))]
        return result

    def mutate(self, values: dict, rng, probability: float) -> dict:
        """A copy in which each gene is drawn anew with `probability`; at least one is, and newly active ones are."""
        active = list(values)
        hit = rng.random(len(active)) < probability
        if active and not hit.any():
            hit[rng.integers(len(active))] = True
        again = {name for name, is_hit in zip(active, hit, strict=True) if is_hit}
        result = {}
        for name, gene in self.genes.items():
            if self.is_active(name, result):
                if name in values and name not in again:
                    result[name] = values[name]
                else:
                    others = [c for c in gene.choices if c != values.get(name)] or list(gene.choices)
                    result[name] = others[rng.integers(len(others))]
        return result

    def crossover(self, first: dict, second: dict, rng) -> dict:
        """A child whose every gene comes from one of its parents; a gene that neither has is drawn."""
        result = {}
        for name, gene in self.genes.items():
            if self.is_active(name, result):
                donors = [p[name] for p in (first, second) if name in p]
                choices = donors or gene.choices
                result[name] = choices[rng.integers(len(choices))]
        return result

    def shrink(self, values: dict, rng):
        """Yields ever smaller candidates: one gene after another, in a drawn order, takes its smallest choice."""
        values = dict(values)
        names = [name for name in values if values[name] != self.genes[name].choices[0]]
        for index in rng.permutation(len(names)):
            values[names[index]] = self.genes[names[index]].choices[0]
            values = self.canonical(values)
            yield dict(values)

    def hyperparameters(self):
        """The space as `keras_tuner.HyperParameters`, with conditional genes, for KerasTuner's own oracles."""
        import keras_tuner

        space = keras_tuner.HyperParameters()
        for gene in self.genes.values():
            options = {"ordered": not isinstance(gene.choices[0], str)}
            if gene.parent is not None:
                options |= {"parent_name": gene.parent, "parent_values": list(gene.parent_values)}
            space.Choice(gene.name, list(gene.choices), **options)
        return space
