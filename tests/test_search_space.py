"""The space of networks: candidates as specs, the second stage, and the choice of width and resolution."""

import numpy as np
import pytest

from saaug_keras import backbones, operators
from saaug_keras.search import SearchSpace, StageSpace, rank_subspaces
from saaug_keras.search.pipeline import Search
from saaug_keras.search.plan import Plan, make_space


def make(**options):
    options = {"resolutions": (24, 32), "widths": (0.5, 1.0), "stem": 16, "first": 8} | options
    stages = (StageSpace(16, 2, (1, 2)), StageSpace(24, 2, (1, 3)))
    return SearchSpace(stages, 10, **options)


def test_a_candidate_is_the_network_that_its_genes_say():
    spec = make().spec(
        {
            "width": 1.0,
            "resolution": 32,
            "stage0_depth": 1,
            "stage0_block0_kernel": 5,
            "stage0_block0_expand": 4,
            "stage1_depth": 3,
            "stage1_block0_kernel": 7,
            "stage1_block0_expand": 3,
            "stage1_block1_kernel": 3,
            "stage1_block1_expand": 6,
            "stage1_block2_kernel": 3,
            "stage1_block2_expand": 3,
        }
    )
    assert spec.input_shape == (32, 32, 3) and spec.stem.filters == 16
    shapes = [(b.filters, b.expanded, b.kernel_size, b.strides, b.residual) for b in spec.blocks]
    assert shapes == [
        (8, 16, 3, 1, False),
        (16, 8 * 4, 5, 2, False),
        (24, 16 * 3, 7, 2, False),
        (24, 24 * 6, 3, 1, True),
        (24, 24 * 3, 3, 1, True),
    ]


def test_width_scales_every_channel_count_but_the_images_and_the_classes():
    half = make(divisor=4, head=64).spec({"width": 0.5, "resolution": 24})
    assert (half.stem.filters, half.blocks[0].filters, half.blocks[1].filters, half.head[0].filters) == (8, 4, 8, 32)
    assert half.input_shape == (24, 24, 3) and half.num_classes == 10


def test_every_candidate_fits_into_the_blocks_it_occupies():
    space, rng = make(), np.random.default_rng(3)
    largest = space.spec(space.largest())
    room = list(zip(largest.blocks, (largest.stem.filters, *(block.filters for block in largest.blocks)), strict=False))
    for _ in range(50):
        values = space.sample(rng)
        spec, places = space.spec(values), space.occupied(values)
        assert len(places) == len(spec.blocks) == len(set(places))
        inputs = spec.stem.filters
        for block, (most, most_inputs) in zip(spec.blocks, (room[p] for p in places), strict=True):
            assert inputs <= most_inputs and block.filters <= most.filters
            assert block.expanded <= most.expanded and block.kernel_size <= most.kernel_size
            assert (block.strides, block.residual) == (most.strides, most.residual)
            inputs = block.filters
        assert all(most.residual for p, (most, _) in enumerate(room) if p not in places)


def test_the_second_stage_drops_residual_blocks_only_and_chooses_operators():
    space = make(operators=("shift", "adder"))
    subnet = space.largest()
    targets = space.second_stage(subnet)
    # Blocks 2, 4 and 5 are residual: 1 + 2 ways each (gone, or one of two operators); the others have 2.
    assert targets.size() == 3**3 * 2**3
    values = {**dict.fromkeys(targets.genes, "adder"), "block2_keep": 0, "block4_keep": 1, "block5_keep": 1}
    values["block0_operator"] = "shift"
    spec = targets.spec(values)
    assert [block.kept for block in spec.blocks] == [True, True, False, True, True, True]
    assert [str(block.operator) for block in spec.blocks if block.kept] == ["shift"] + 4 * ["adder"]
    assert len(backbones.lower(spec)) == len(backbones.lower(space.spec(subnet))) - 4
    assert space.candidate_spec({"stage": 2, **subnet, **values}) == spec
    costs = [targets.costs(values)["flash_bytes"] for values in targets.smallest()]
    assert min(costs) < targets.costs({**values, "block2_keep": 1})["flash_bytes"]


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param({"widths": (1.0, 0.5)}, "`widths` must be ascending", id="order"),
        pytest.param({"operators": ("shiftadd",)}, "`operators` must be one of 'adder', 'binary', 'conv'", id="operator"),
        pytest.param({"resolutions": (2,)}, "`resolutions` must be a number in", id="resolution"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match="SearchSpace: " + message):
        make(**options)


def test_spaces_that_differ_have_different_identities():
    assert make().identity == make().identity
    assert len({make().identity, make(head=64).identity, make(widths=(0.5,)).identity}) == 3


def test_tinynas_takes_the_pair_whose_feasible_candidates_do_most():
    space = make(widths=(0.5, 1.0, 2.0), resolutions=(24, 32, 48))
    limits = {"ram_bytes": 18_000, "flash_bytes": 66_000}
    choices = rank_subspaces(space, limits, samples=20, attempts=60)
    assert len(choices) == 9
    means = [c.mean_macs for c in choices if c.feasible_share >= 0.01]
    assert means == sorted(means, reverse=True) and len(means) < 9
    best = choices[0]
    part = space.narrowed(width=best.width, resolution=best.resolution)
    rng = np.random.default_rng(0)
    costs = [part.costs(part.sample(rng)) for _ in range(50)]
    assert any(c["ram_bytes"] <= 18_000 and c["flash_bytes"] <= 66_000 for c in costs)
    with pytest.raises(ValueError, match="rank_subspaces: `limits` must be met"):
        rank_subspaces(space, {"ram_bytes": 100}, samples=5, attempts=10)


def test_limits_that_nothing_meets_name_the_limit_and_the_smallest_networks_need(tmp_path):
    from saaug_keras import datasets

    plan = Plan(device="ch32v003", sram=600)
    needs = r"RAM, bytes: the limit is 600, .* needs 2,474; flash, bytes: the limit is 16,220, .* needs 24,477"
    with pytest.raises(ValueError, match=needs):
        Search(plan, datasets.load("digits"), tmp_path)


def test_a_plans_space_follows_the_images():
    assert make_space(Plan(), (8, 8, 1), 10).options["divisor"] == 4
    space = make_space(Plan(operators=("adder",)), (32, 32, 3), 100)
    assert space.resolutions == (24, 32, 40, 48) and space.spec(space.largest()).blocks[1].operator == operators.Adder()
