"""Flash and RAM: what is linked, and the model of it."""

import json

import numpy as np
import pytest
from export_models import small_backbone
from random_networks import random_network, settled_model

import tflm_export
from saaug_keras import backbones, cost, memory, recipes, zoo
from tflm_export import firmware, footprint, linking

CORES = ("m4", "m0", "rv32")  # of the three compilers' worth of kernels: DSP, portable of four words, of eight


def needs_compiler(core):
    if not linking.can_link(core):
        pytest.skip(f"{memory.CORES[core].compiler} not found")


@pytest.fixture(scope="module")
def compiled():
    """(spec, network, its C files) by name: of the zoo, and random ones of shift, product and add layers."""
    found = {}
    for name in ("digits-shift", "searched-shift-cifar100"):
        entry = zoo.Entry.read(name)
        blank = np.zeros((1, *entry.spec().input_shape), np.uint8)
        options = {"flavour": "custom", "observation": entry.observation()}
        found[name] = entry.spec(), tflm_export.compile_network(zoo.load(name), blank, **options)
    for number in (3, 10):
        spec = random_network(number)
        found[f"random {number}"] = spec, tflm_export.compile_network(*settled_model(spec), flavour="custom")
    return {name: (*pair, firmware.c_files(pair[1], "net")[1]) for name, pair in found.items()}


@pytest.mark.parametrize("core", CORES)
def test_the_model_is_within_its_tolerance_of_what_is_linked(core, compiled):
    """Of networks and of specs: 1 % of flash is promised, RAM exactly."""
    needs_compiler(core)
    for name, (spec, network, files) in compiled.items():
        linked = footprint.measure_c(network, files, "net", core)
        assert linked.how == "linked"
        for modelled in (footprint.model_c(network, core), cost.estimate(spec, core=core).memory):
            assert modelled.how == "modelled" and modelled.ram == linked.ram, name
            off = abs(modelled.flash_bytes / linked.flash_bytes - 1)
            assert off < memory.TOLERANCE["c"], (name, modelled, linked)
            assert modelled.flash["constants"] == linked.flash["constants"]


def test_os_is_smaller_and_modelled_as_well(compiled):
    needs_compiler("m4")
    _, network, files = compiled["digits-shift"]
    fast, small = (footprint.measure_c(network, files, "net", "m4", optimize) for optimize in memory.OPTIMIZATIONS)
    assert small.flash_bytes < 0.8 * fast.flash_bytes and small.ram == fast.ram
    assert footprint.model_c(network, "m4", "-Os").flash_bytes == pytest.approx(small.flash_bytes, rel=0.01)


def test_the_functions_of_the_model_are_those_that_the_code_calls(compiled):
    """What is priced is what is called; nothing of the C library counts."""
    for _, network, files in compiled.values():
        for function in {each.function for each in footprint.operations_of(network)}:
            assert f"{function}(" in files["net.c"], function


def test_where_there_is_no_compiler_the_model_answers(compiled, monkeypatch):
    _, network, files = compiled["digits-shift"]
    monkeypatch.setattr(linking.shutil, "which", lambda name: None)
    found = footprint.measure_c(network, files, "net", "m55")
    assert found.how == "modelled" and found == footprint.model_c(network, "m55")
    with pytest.raises(linking.CannotLink, match="arm-none-eabi-gcc must be installed to link for core 'm55'"):
        linking.sizes(files, "net", "m55", "-O3", (("run",),))


def test_the_parts_add_up_and_say_what_they_are():
    found = memory.Memory.of("c", "m4", "-O3", "linked", flash={"constants": 8, "code": 5}, ram={"arena": 16})
    assert (found.flash_bytes, found.ram_bytes) == (13, 16)
    assert str(found) == ("target c, Cortex-M4, -O3, linked: flash 13 bytes (constants 8, code 5), RAM 16 bytes (arena 16)")
    assert memory.Memory(**json.loads(json.dumps(found.as_dict()))) == found


# A network that a search found when it counted activations and the model file alone: (filters, expanded, kernel, stride).
FOUND = ((8, 16, 3, 1), (16, 24, 7, 2), (24, 48, 3, 1), (32, 96, 7, 2), (32, 96, 7, 1), (48, 128, 5, 2), (48, 144, 5, 1))
# Model files of that network, and of MCUNet-in0 with strides that halve the image early.
MODELS = {
    ("found", None): 55_776,
    ("found", 8): 91_968,
    ("mcunet-shift", None): 383_888,
    ("mcunet-shift", 8): 689_664,
    ("mcunet-adder", None): 660_144,
}
# As TFLite Micro's arena_used_bytes() on an emulated Cortex-M4 gave it, by entry, or a network above, and flavour.
ARENAS = {
    ("digits-shift", None): 13_428,
    ("mcunet-shift", None): 33_732,
    ("mcunet-shift", 8): 85_556,
    ("mcunet-adder", None): 32_468,
    ("found", None): 42_404,
    ("found", 8): 48_148,
    ("mobilenetv2-tiny-shift-camvid", None): 304_708,
    ("tiny32-93k-adder-cifar100", None): 72_452,
}


@pytest.mark.parametrize("name, bits", ARENAS)
def test_tflite_micros_arena_is_what_it_used_on_a_cortex_m4(name, bits):
    if name == "found":
        blocks = tuple(backbones.BlockSpec(*each, residual=each in (FOUND[4], FOUND[6])) for each in FOUND)
        spec = backbones.NetSpec("found", (32, 32, 3), 100, backbones.StemSpec(16, strides=1), blocks, ())
        spec, model = spec.with_operator("shift"), MODELS[name, bits]
    elif name.startswith("mcunet"):
        recipe = recipes.Recipe("mcunet-in0", operator=name.partition("-")[2], strides=(2, 2, 2, 1, 1))
        spec, model = recipe.spec((32, 32, 3), 100), MODELS[name, bits]
    else:
        entry = zoo.Entry.read(name)
        spec, model = entry.spec(), entry.measured[f"{'builtin' if bits else 'custom'}_model_bytes"]
    found = cost.estimate(spec, bits=bits, target="tflm", core="m4").memory
    arena = found.ram["activations and scratch"] + found.ram["records"]
    assert arena == pytest.approx(ARENAS[name, bits], rel=0.01)
    assert found.ram_bytes - arena < 1000  # the interpreter's own objects
    assert abs(found.flash["model"] - model) < memory.TOLERANCE["tflm"] * found.flash_bytes


def test_tflite_micro_is_known_on_the_cores_where_it_was_measured():
    spec = backbones.spec("mcunet-in0", num_classes=10, operator="shift")
    shift = cost.estimate(spec, target="tflm").memory
    assert shift.flash["interpreter"] > 15_000 and shift.how == "modelled"
    plain = cost.estimate(spec, core="m4").memory
    assert shift.flash["kernels"] > plain.flash["code"] and "tflite" in memory.tflm_source().lower().replace(" ", "")
    with pytest.raises(ValueError, match="cost.estimate: `core` must be one of .*'m4'.*, where TFLite Micro .*'rv32e'"):
        cost.estimate(spec, target="tflm", core="rv32e")
    with pytest.raises(ValueError, match="cost.estimate: `target` must be one of 'c', 'tflm'"):
        cost.estimate(spec, target="arduino")


@pytest.fixture(scope="module")
def small():
    return small_backbone("mobilenetv2-tiny", "shift", blocks=2, shape=(11, 9, 3))


def test_an_export_reports_and_enforces_what_is_linked(small, tmp_path):
    needs_compiler("m4")
    model, images = small
    report = tflm_export.export(model, images, tmp_path / "net", target="c", core="m4")
    assert report.memory["how"] == "linked" and report.core == "m4"
    assert report.flash_bytes == sum(report.memory["flash"].values()) > report.model_bytes
    assert report.ram_bytes == report.plan_bytes["dsp"] + 11 * 9 * 3 + 7
    exactly = {"flash_bytes": report.flash_bytes, "sram_bytes": report.ram_bytes}
    tflm_export.export(model, images, tmp_path / "again", target="c", core="m4", **exactly)
    for key, what in (("flash_bytes", "flash"), ("sram_bytes", "RAM")):
        with pytest.raises(ValueError, match=f"on core 'm4' it takes {exactly[key]:,} bytes of {what} .*linked"):
            tflm_export.export(model, images, tmp_path / key, target="c", **{key: exactly[key] - 1})
        assert not (tmp_path / key).exists()
    lines = str(report).splitlines()
    assert any(line.startswith("flash, Cortex-M4") and "linked" in line for line in lines)


def test_an_export_for_a_core_without_figures_says_so(small, tmp_path):
    model, images = small
    report = tflm_export.export(model, images, tmp_path / "net", core="rv32e")
    assert report.flash_bytes is report.ram_bytes is report.memory is None and report.model_bytes > 0
    with pytest.raises(ValueError, match="export: `core` must be one of .*, where TFLite Micro was measured"):
        tflm_export.export(model, images, tmp_path / "limited", core="rv32e", flash_bytes=1 << 20)
    with pytest.raises(ValueError, match="export: `core` must be one of 'm0'"):
        tflm_export.export(model, images, tmp_path / "other", core="z80", target="c")


def test_every_core_has_its_kernels_sizes():
    spec = backbones.spec("mcunet-in0", num_classes=10, operator="shift")
    sizes = {core: cost.estimate(spec, core=core).flash_bytes for core in memory.CORES}
    assert len(set(sizes.values())) == len(memory.CORES) == 8
