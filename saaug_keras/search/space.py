"""The space of networks: elastic kernel, expansion, depth, width and resolution; and, around a winner, its layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from saaug_keras import _validate
from saaug_keras.backbones import BlockSpec, HeadSpec, NetSpec, StemSpec, count_macs, make_divisible
from saaug_keras.operators import parse_block, to_text
from saaug_keras.search.genes import Gene, GeneSpace

# Operators whose layers can take over a multiplicative layer's weights. "shiftadd" cannot: its second layer has none.
OPERATORS = ("conv", "shift", "shift5", "shift-ps", "shift5-ps", "adder", "binary")
DEPTHWISE_OPERATORS = (*OPERATORS, "channelshift")  # whose layers need no weights
COST_NAMES = ("ram_bytes", "flash_bytes", "operations", "energy_mj")


@dataclass(frozen=True)
class StageSpace:
    """A run of inverted residuals of equal width; the first has `strides` and changes the channels.

    Args:
        filters: channels at width 1.
        strides: 1 or 2.
        depths, kernel_sizes, expand_ratios: the choices, ascending.
    """

    filters: int
    strides: int = 2
    depths: tuple[int, ...] = (1, 2, 3)
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    expand_ratios: tuple[int, ...] = (3, 4, 6)


def measure(spec: NetSpec, *, target: str = "c", core: str = "m4") -> dict[str, float]:
    """The costs of a deployed network, by `COST_NAMES`, from its spec alone; flash and RAM are `target`'s on `core`."""
    from saaug_keras import cost

    found = cost.estimate(spec, target=target, core=core)
    return {name: getattr(found, name) for name in COST_NAMES}


class SearchSpace(GeneSpace):
    """Networks with elastic width, resolution, depth, kernel sizes and expansion ratios.

    Args:
        stages: sequence of `StageSpace`.
        num_classes: outputs.
        resolutions: input sizes in pixels, ascending; images are resized.
        widths: multipliers of every channel count, ascending; counts are rounded to multiples of `divisor`.
        channels: of the image.
        stem: filters of the stem at width 1; `stem_strides`, `stem_kernel_size`: its shape.
        first: filters of the block without expansion behind the stem; 0 for none.
        head: filters of a 1x1 layer before the pooling; 0 for none.
        operators: of the blocks of the second stage; the first one also prices the first stage. From `OPERATORS`, or three
            as "adder/shift/adder"; the depthwise layer's may be "channelshift".
        activation: of all layers that have one.
        divisor: of channel counts.
        measure: NetSpec -> costs, by `COST_NAMES`.
        name: of the networks.
    Raises:
        ValueError: choices that are empty, not ascending or out of range; an unknown operator.
    """

    def __init__(
        self,
        stages,
        num_classes,
        *,
        resolutions,
        widths=(1.0,),
        channels=3,
        stem=16,
        stem_strides=2,
        stem_kernel_size=3,
        first=8,
        head=0,
        operators=("shift",),
        activation="relu6",
        divisor=8,
        measure=measure,
        name="searched",
    ):
        owner = "SearchSpace"
        self.stages = tuple(stages)
        self.resolutions = _ascending(owner, "resolutions", resolutions, 4, 4096)
        self.widths = _ascending(owner, "widths", widths, 0.05, 20)
        for stage in self.stages:
            _ascending(owner, "depths", stage.depths, 1, 32)
            _ascending(owner, "expand_ratios", stage.expand_ratios, 2, 32)
            for size in _ascending(owner, "kernel_sizes", stage.kernel_sizes, 1, 15):
                _validate.one_of(owner, "kernel_sizes", size, range(1, 16, 2))
        self.operators = tuple(_block_text(owner, operator) for operator in operators)
        if not self.operators or not self.stages:
            raise ValueError(f"{owner}: `stages` and `operators` must not be empty.")
        self.options = {
            "num_classes": _validate.int_in(owner, "num_classes", num_classes, 1, 1 << 20),
            "channels": channels,
            "stem": stem,
            "stem_strides": stem_strides,
            "stem_kernel_size": stem_kernel_size,
            "first": first,
            "head": head,
            "operators": self.operators,
            "activation": activation,
            "divisor": divisor,
            "name": name,
        }
        self.measure = measure
        genes = [Gene("width", self.widths), Gene("resolution", self.resolutions)]
        for number, stage in enumerate(self.stages):
            depth = f"stage{number}_depth"
            genes.append(Gene(depth, tuple(stage.depths)))
            for block in range(max(stage.depths)):
                deep_enough = tuple(d for d in stage.depths if d > block)
                genes.append(Gene(f"stage{number}_block{block}_kernel", tuple(stage.kernel_sizes), depth, deep_enough))
                genes.append(Gene(f"stage{number}_block{block}_expand", tuple(stage.expand_ratios), depth, deep_enough))
        super().__init__(genes, COST_NAMES)

    def describe(self):
        """All that makes the networks what they are, as plain data."""
        options = {**self.options, "operators": list(self.operators)}
        return {**super().describe(), "stages": [dataclasses.asdict(s) for s in self.stages], "options": options}

    def narrowed(self, *, width=None, resolution=None) -> SearchSpace:
        """The same space with the width or the resolution fixed."""
        options = dict(self.options)
        return SearchSpace(
            self.stages,
            options.pop("num_classes"),
            resolutions=self.resolutions if resolution is None else (resolution,),
            widths=self.widths if width is None else (width,),
            measure=self.measure,
            **options,
        )

    def channels(self, filters: int, width: float) -> int:
        """A channel count of width 1 at another width."""
        return make_divisible(filters * width, self.options["divisor"])

    # Candidates as networks

    def spec(self, values: dict) -> NetSpec:
        """The network of a candidate of the first stage, with the first of `operators` in its blocks."""
        values = self.canonical(values)
        options, width = self.options, values["width"]
        stem = self.channels(options["stem"], width)
        blocks, inputs = [], stem
        if options["first"]:
            inputs = self.channels(options["first"], width)
            blocks.append(BlockSpec(inputs, stem, activation=options["activation"]))
        for number, stage in enumerate(self.stages):
            filters = self.channels(stage.filters, width)
            for block in range(values[f"stage{number}_depth"]):
                gene = f"stage{number}_block{block}_"
                blocks.append(
                    BlockSpec(
                        filters,
                        inputs * values[gene + "expand"],
                        values[gene + "kernel"],
                        strides=1 if block else stage.strides,
                        residual=block > 0,
                        activation=options["activation"],
                    )
                )
                inputs = filters
        head = (HeadSpec(self.channels(options["head"], width), options["activation"]),) if options["head"] else ()
        resolution = values["resolution"]
        net = NetSpec(
            options["name"],
            (resolution, resolution, options["channels"]),
            options["num_classes"],
            StemSpec(stem, options["stem_kernel_size"], options["stem_strides"], options["activation"]),
            tuple(blocks),
            head,
        )
        return net.with_operator(self.operators[0])

    def candidate_spec(self, values: dict) -> NetSpec:
        """The network of a trial's values, of either stage."""
        if values.get("stage", 1) == 1:
            return self.spec({name: value for name, value in values.items() if name in self.genes})
        targets = self.second_stage({name: value for name, value in values.items() if name in self.genes})
        return targets.spec({name: value for name, value in values.items() if name in targets.genes})

    def costs(self, values):
        return self.measure(self.spec(values))

    def second_stage(self, values):
        return TargetSpace(self.spec(values), self.operators, self.measure)

    # The SuperNet's view

    def occupied(self, values: dict) -> tuple[int, ...]:
        """For each block of `candidate_spec(values)`, in order, the index of its place in the `largest` candidate."""
        result, place = [], 0
        if self.options["first"]:
            result, place = [0], 1
        for number, stage in enumerate(self.stages):
            depth = values.get(f"stage{number}_depth", stage.depths[0])
            result.extend(range(place, place + depth))
            place += stage.depths[-1]
        return tuple(result)

    def largest(self) -> dict:
        """The candidate with the last choice of every gene."""
        return self.canonical({name: gene.choices[-1] for name, gene in self.genes.items()})


class TargetSpace(GeneSpace):
    """Which blocks of a SubNet the deployed network keeps, and the operator of each.

    Only residual blocks can go; those that do not stay are the depth augmentation of its training.
    """

    def __init__(self, subnet: NetSpec, operators, measure=measure):
        self.subnet = subnet
        self.operators = tuple(operators)
        self.measure = measure
        genes = []
        for index, block in enumerate(subnet.blocks):
            keep = f"block{index}_keep"
            if block.residual:
                genes.append(Gene(keep, (0, 1)))
            parent = (keep, (1,)) if block.residual else (None, ())
            genes.append(Gene(f"block{index}_operator", self.operators, *parent))
        super().__init__(genes, COST_NAMES)

    def spec(self, values: dict) -> NetSpec:
        """The network of a candidate; blocks that are left out have `kept=False`."""
        values = self.canonical(values)
        count = len(self.subnet.blocks)
        net = self.subnet.with_operator([values.get(f"block{i}_operator", self.operators[0]) for i in range(count)])
        kept = [bool(values.get(f"block{i}_keep", 1)) for i in range(count)]
        blocks = tuple(dataclasses.replace(b, kept=k) for b, k in zip(net.blocks, kept, strict=True))
        return dataclasses.replace(net, blocks=blocks)

    def costs(self, values):
        return self.measure(self.spec(values))

    def smallest(self):
        bare = {name: gene.choices[0] for name, gene in self.genes.items()}
        return tuple(
            self.canonical({name: operator if name.endswith("operator") else value for name, value in bare.items()})
            for operator in self.operators
        )

    def seeds(self):
        """All blocks, and none that can go, in each operator alone."""
        return tuple(
            self.canonical({n: operator if n.endswith("operator") else keep for n in self.genes})
            for operator in self.operators
            for keep in (1, 0)
        )


def _block_text(owner, operator):
    """The text of a block's operators, "shift" for "shift/shift/shift"; refuses those that take over no weights."""
    three = parse_block(operator, owner)
    for part, known in zip(three, (OPERATORS, DEPTHWISE_OPERATORS, OPERATORS), strict=True):
        _validate.one_of(owner, "operators", to_text(part), known)
    return to_text(three[0] if len(set(three)) == 1 else three)


def _ascending(owner, name, values, low, high):
    values = tuple(values)
    for value in values:
        _validate.number_in(owner, name, value, low, high)
    if not values or list(values) != sorted(set(values)):
        raise ValueError(f"{owner}: `{name}` must be ascending and not empty. Received: {name}={values}.")
    return values


# ---------------------------------------------------------------------------------------------------------------------
# The choice of width and resolution


@dataclass(frozen=True)
class SpaceChoice:
    """What tinyNAS found for one pair of width and resolution; `macs` are those of the feasible draws, ascending."""

    width: float
    resolution: int
    draws: int
    macs: tuple[int, ...]

    @property
    def feasible_share(self) -> float:
        return len(self.macs) / self.draws

    @property
    def mean_macs(self) -> float:
        return float(np.mean(self.macs)) if self.macs else 0.0


def rank_subspaces(space: SearchSpace, limits: dict, *, samples=100, attempts=500, seed=0) -> tuple[SpaceChoice, ...]:
    """tinyNAS: for each width and resolution, how large the candidates are that fit; the best pair comes first.

    A space is the better, the more operations its feasible candidates do: a network that uses what it is given is
    likely to be the more accurate. Compared are the means of the feasible draws' MACs; pairs of which fewer than a
    hundredth of the draws fit come last.

    Args:
        space: all widths and resolutions.
        limits: cost name -> largest value, as for `TwoStageOracle`.
        samples: feasible draws per pair that are enough; `attempts`: draws per pair at most.
        seed: of the draws.
    Raises:
        ValueError: no pair has a feasible candidate.
    Source: MCUNet, Lin et al. 2020, arXiv:2007.10319.
    """
    _validate.int_in("rank_subspaces", "samples", samples, 1, 1_000_000, " draws")
    _validate.int_in("rank_subspaces", "attempts", attempts, samples, 1_000_000, " draws")
    choices = []
    for index, (width, resolution) in enumerate((w, r) for w in space.widths for r in space.resolutions):
        part = space.narrowed(width=width, resolution=resolution)
        rng = np.random.default_rng([seed, index])
        macs, draws = [], 0
        while draws < attempts and len(macs) < samples:
            values = part.sample(rng) if draws else part.smallest()[0]
            draws += 1
            costs = part.costs(values)
            if all(costs[name] <= limit for name, limit in limits.items()):
                macs.append(count_macs(part.spec(values)))
        choices.append(SpaceChoice(width, resolution, draws, tuple(sorted(macs))))
    choices.sort(key=lambda c: (c.feasible_share < 0.01, -c.mean_macs))
    if not choices[0].macs:
        raise ValueError(
            f"rank_subspaces: `limits` must be met by some of {len(choices) * attempts} candidates, the smallest among "
            f"them; none does. Received: limits={limits}."
        )
    return tuple(choices)
