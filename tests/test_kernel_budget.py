"""No kernel gets more than 2% slower than benchmarks/kernels/budget.json; `benchmarks/kernels.py --store` renews it."""

import importlib.util
import json
import pathlib
import sys

import pytest

from tflm_export import emulator

ROOT = pathlib.Path(__file__).resolve().parents[1]
SLACK = 1.02


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_kernels", ROOT / "benchmarks" / "kernels.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
