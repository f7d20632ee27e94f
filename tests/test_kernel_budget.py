"""No kernel gets more than 2% slower than benchmarks/kernels/budget.json; `benchmarks/kernels.py --store` renews it.

`benchmarks/networks.py --store` renews what the kernels' README says of whole networks.
"""

import importlib.util
import json
import pathlib
import sys

import pytest

from saaug_keras import backbones, zoo
from tflm_export import emulator

ROOT = pathlib.Path(__file__).resolve().parents[1]
SLACK = 1.02


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return load("kernels")


@pytest.fixture(scope="module")
def networks(benchmark):
    return load("networks")


def exceeded(counted, budget):
    """{layer: (counted, allowed)} of the layers that take more than 2% above their budget."""
    return {layer: (counted[layer], budget[layer]) for layer in budget if counted[layer] > SLACK * budget[layer]}


@pytest.mark.parametrize("name", emulator.CORES)
def test_no_kernel_is_slower_than_its_budget(benchmark, name, tmp_path):
    core = emulator.CORES[name]
    if reason := emulator.missing(core):
        pytest.skip(reason)
    budget = json.loads(benchmark.BUDGET.read_text())[name]
    counted = benchmark.budget_of(core, benchmark.count_ours(core, tmp_path))
    if counted["compiler"] != budget["compiler"]:
        pytest.skip(f"the budget is for {budget['compiler']}, and {counted['compiler']} makes other code")
    assert counted["instructions"].keys() == budget["instructions"].keys()
    assert exceeded(counted["instructions"], budget["instructions"]) == {}


def test_a_kernel_two_percent_slower_is_found():
    assert exceeded({"a": 1020, "b": 2041}, {"a": 1000, "b": 2000}) == {"b": (2041, 2000)}


def test_the_products_beside_our_kernels_are_computed_for_every_layer(benchmark, tmp_path):
    core = emulator.CORES["m3"]
    if reason := emulator.missing(core):
        pytest.skip(reason)
    counts = benchmark.count_baselines(core, tmp_path)
    assert {shape for _, shape in counts["multiplying_baseline"]} == set(benchmark.SHAPES)


def test_the_kernels_readme_has_what_whole_networks_take(networks):
    assert networks.table() in (ROOT / "tflm_export" / "kernels" / "README.md").read_text()


def test_what_is_stored_of_whole_networks_is_of_the_zoos_and_of_their_twins_shapes(networks):
    stored = json.loads(networks.STORED.read_text())
    pairs = networks.pairs_of(zoo.multiplicative()["instructions"])
    assert {name for _, name in pairs} == stored["macs"].keys() == stored["instructions"].keys()
    for twin, name in pairs:
        macs, products = (backbones.count_macs(zoo.Entry.read(entry).spec()) for entry in (name, twin))
        assert macs == products, f"{name} has other layers than its twin"
        if networks.operator_of(name) == "shift":
            assert sum(stored["macs"][name].values()) == macs, f"{name} was counted with other strides"


def test_whole_networks_take_what_is_stored_of_them(networks, benchmark, tmp_path):
    core, stored = emulator.CORES["m3"], json.loads(networks.STORED.read_text())
    if reason := emulator.missing(core):
        pytest.skip(reason)
    if stored["compilers"]["m3"] != f"{core.compiler} {benchmark.compiler_version(core)}":
        pytest.skip(f"what is stored is of {stored['compilers']['m3']}")
    for name in ("tiny32-44k-adder-cifar100", "tiny32-44k-shift-cifar100"):
        layers = networks.layers_of(name)
        assert networks.by_kind(layers, [layer.macs for layer in layers]) == stored["macs"][name]
        counted = networks.count(core, layers, tmp_path)
        assert exceeded(counted, stored["instructions"][name]["m3"]) == {} and counted.keys() == stored["macs"][name].keys()
