"""All that a search is made of, as data."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from saaug_keras import _validate, devices, memory
from saaug_keras.recipes import Recipe
from saaug_keras.search.space import COST_NAMES, SearchSpace, StageSpace, measure


@dataclass(frozen=True)
class Plan:
    """All that a search is made of; the same plan, data and version give the same result.

    Args:
        device: name of a `devices.Device`, or None.
        target, core: what flash and RAM are counted for: of `memory.TARGETS`, on one of `memory.CORES`; None: on the
            device's core, "m4" without a device.
        sram, flash, max_energy, max_ops: limits in place of the device's or beside them; see `devices.limits`.
        slack: factor >= 1 on flash, energy and operations for the SubNet, whose blocks may go later.
        space: "tiny" or "small", see `make_space`; None: by the size of the images.
        widths, resolutions: of the space, in place of its own.
        operators: that the blocks may have, the first one prices the first stage.
        minimize: costs ranked beside accuracy; none: accuracy alone, within the limits.
        strategy: "evolution" or "random".
        subnet_trials, target_trials: of the stages.
        population_size, top: of the evolution.
        supernet_epochs, adapt_epochs, random_candidates, distill: of the SuperNet's training.
        supernet_rate, adapt_rate: their learning rates.
        calibration_images, held_out_images: per candidate.
        recipe: of the TargetNet's augmented training, whose network the search finds. The SuperNet is trained by it, too, but
            for its own epochs and rates, without a warm-up.
    """

    device: str | None = None
    target: str = "c"
    core: str | None = None
    sram: int | None = None
    flash: int | None = None
    max_energy: float | None = None
    max_ops: float | None = None
    slack: float = 1.5
    space: str | None = None
    widths: tuple[float, ...] | None = None
    resolutions: tuple[int, ...] | None = None
    operators: tuple[str, ...] = ("shift",)
    minimize: tuple[str, ...] = ()
    strategy: str = "evolution"
    subnet_trials: int = 300
    target_trials: int = 150
    population_size: int = 50
    top: int = 10
    supernet_epochs: int = 20
    adapt_epochs: int = 4
    random_candidates: int = 1
    distill: bool = False
    supernet_rate: float = 0.1
    adapt_rate: float = 0.02
    calibration_images: int = 256
    held_out_images: int = 512
    recipe: Recipe = Recipe()

    def __post_init__(self):
        _validate.one_of("Plan", "strategy", self.strategy, ("evolution", "random"))
        for name in ("supernet_rate", "adapt_rate"):
            _validate.number_in("Plan", name, getattr(self, name), 1e-8, 1e3)
        _validate.number_in("Plan", "slack", self.slack, 1, 1e6)
        memory.check("Plan", **self.where)
        for name in self.minimize:
            _validate.one_of("Plan", "minimize", name, COST_NAMES)

    @property
    def where(self) -> dict:
        """Target and core that flash and RAM are counted for, as `cost.estimate` takes them."""
        return {"target": self.target, "core": self.core or devices.core_of(self.device)}

    @property
    def limits(self) -> dict:
        """Cost name -> largest value. Those of memory are less than the device's by what the model may be wrong by, so
        that an export of what was found meets them; RAM of plain C is not modelled but planned."""
        found = devices.limits(self.device, sram=self.sram, flash=self.flash, max_energy=self.max_energy, max_ops=self.max_ops)
        for name in ("flash_bytes",) if self.target == "c" else ("flash_bytes", "ram_bytes"):
            if name in found:
                found[name] = int(found[name] * (1 - memory.TOLERANCE[self.target]))
        return found

    @property
    def slacks(self) -> dict:
        """Cost name -> factor in stage 1. RAM has none: blocks that go do not lower its peak."""
        return {name: self.slack for name in self.limits if name != "ram_bytes"}


def make_space(plan: Plan, image_shape, num_classes: int) -> SearchSpace:
    """The space of a plan: "tiny" for images of some 8 to 16 pixels, "small" for some 32 and more.

    Both keep the structure of the tiny backbones: a stem, a block without expansion ("small"), stages of inverted
    residuals, a classifier.
    """
    _validate.one_of("Plan", "space", plan.space, (None, "small", "tiny"))
    size, channels = image_shape[0], image_shape[2]
    which = plan.space or ("tiny" if size <= 16 else "small")
    options = {"channels": channels, "operators": plan.operators, "measure": functools.partial(measure, **plan.where)}
    if which == "tiny":
        stages = (
            StageSpace(8, 1, (1, 2), (3, 5), (2, 3, 4)),
            StageSpace(16, 2, (1, 2, 3), (3, 5), (2, 3, 4)),
            StageSpace(24, 2, (1, 2), (3, 5), (2, 3, 4)),
        )
        options |= {"stem": 8, "stem_strides": 1, "first": 0, "divisor": 4}
        widths, resolutions = (0.5, 1.0, 1.5, 2.0), tuple(sorted({size, size * 3 // 2, size * 2}))
    else:
        stages = (
            StageSpace(16, 2, (1, 2), (3, 5, 7), (3, 4, 6)),
            StageSpace(24, 1, (1, 2, 3), (3, 5, 7), (3, 4, 6)),
            StageSpace(40, 2, (1, 2, 3), (3, 5, 7), (3, 4, 6)),
            StageSpace(64, 2, (1, 2, 3), (3, 5, 7), (3, 4, 6)),
        )
        options |= {"stem": 16, "stem_strides": 1, "first": 8}
        widths, resolutions = (0.5, 0.75, 1.0, 1.25), (size * 3 // 4, size, size * 5 // 4, size * 3 // 2)
    return SearchSpace(
        stages, num_classes, widths=plan.widths or widths, resolutions=plan.resolutions or resolutions, **options
    )
