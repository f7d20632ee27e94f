"""A small search space with a known answer, for the tests of the oracle; no network, no training."""

import numpy as np

from saaug_keras.search.genes import Gene, GeneSpace


class ToySpace(GeneSpace):
    """Stages of blocks, as a network has them; more is better, dearer, and better only together with its neighbour."""

    def __init__(self, stages=4, second=True):
        genes = [Gene("width", (0.25, 0.5, 0.75, 1.0))]
        for stage in range(stages):
            genes.append(Gene(f"depth{stage}", (1, 2, 3)))
            for block in range(3):
                parents = tuple(d for d in (1, 2, 3) if d > block)
                genes.append(Gene(f"kernel{stage}{block}", (3, 5, 7), f"depth{stage}", parents))
                genes.append(Gene(f"expand{stage}{block}", (2, 4, 6), f"depth{stage}", parents))
        super().__init__(genes, ("flash_bytes", "ram_bytes"))
        self.second = second

    def costs(self, values):
        flash = sum(v * v for name, v in values.items() if name[:6] in ("kernel", "expand")) * values["width"]
        sram = max(v for n, v in values.items() if n[:6] == "expand") * values["width"]
        return {"flash_bytes": flash, "ram_bytes": sram}

    def second_stage(self, values):
        return ToyTargets(self, values) if self.second else None


class ToyTargets(GeneSpace):
    """Which of six layers stay, and their operators."""

    def __init__(self, first, subnet):
        genes = [g for i in range(6) for g in (Gene(f"keep{i}", (0, 1)), Gene(f"operator{i}", ("shift", "adder")))]
        super().__init__(genes, first.cost_names)
        self.base = first.costs(subnet)

    def costs(self, values):
        kept = sum(values[f"keep{i}"] for i in range(6))
        return {name: cost * (2 + kept) / 10 for name, cost in self.base.items()}


def toy_accuracy(values):
    """Rugged, deterministic, in [0, 1]."""
    if values.get("stage", 1) == 2:
        signs = [values[f"keep{i}"] * (1.2 if values[f"operator{i}"] == "shift" else 1.0) for i in range(6)]
        return float(sum(signs) / 7.2)
    score = 4 * values["width"]
    for name, value in values.items():
        if name.startswith("kernel"):
            expand = values["expand" + name[6:]]
            # The right kernel differs from place to place, and wants an expansion to match.
            best = 3 + 2 * (sum(map(ord, name)) % 3)
            score += 1.5 - abs(value - best) / 2 + 0.3 * (value == best) * expand
    digits = sum(ord(c) * (i + 1) for i, c in enumerate(repr(sorted(values.items()))))
    return float((score + 0.3 * np.sin(digits)) / 50)
