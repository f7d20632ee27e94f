"""What every layer takes: the hook in projects of plain C, its clocks, and `saaug profile` in the emulator."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as xml

import keras
import numpy as np
import pytest
from export_models import images_like, settle, small_backbone
from kernel_cases import HERE

import tflm_export
from saaug_keras import backbones, cli, cost, zoo
from saaug_keras import layers as ours
from tflm_export import emulator, firmware, flatbuffer, native, packaging, profile_page, profiling, report

STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-pedantic", "-Werror")
PER_LAYER = 16  # instructions, at most, that a hook and a whole tick put into a layer or leave out


def run(*words, cwd):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def network_of(name):
    """(model, images, observation, network) of an entry of the zoo."""
    entry = zoo.Entry.read(name)
    model, images = zoo.load(name), zoo.samples(name).x_test[:1]
    network = tflm_export.compile_network(model, images, flavour="custom", observation=entry.observation())
    return model, images, entry.observation(), network


@pytest.fixture(scope="module")
def digits():
    return network_of("digits-shift")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """(folder, network) of a project of plain C, with a layer whose name is no easy C string."""
    image = x = keras.Input((9, 7, 3))
    x = keras.layers.ReLU()(ours.ShiftConv2D(6, 3, strides=2, name='odd "name" \\ ??(')(x))
    x = keras.layers.Add()([x, ours.AdderConv2D(6, 1, use_bias=False)(x)])
    model = keras.Model(image, ours.ShiftDense(5)(keras.layers.Flatten()(x)))
    images = images_like((9, 7, 3), 4)
    settle(model, images)
    network = tflm_export.compile_network(model, images, flavour="custom")
    folder = tmp_path_factory.mktemp("project")
    firmware.write_c(network, "net", firmware.Samples.of(network, images), folder)
    return folder, network


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Object files of the kernels for this machine: they are the same in every project."""
    folder = tmp_path_factory.mktemp("kernels")
    include = [f"-I{native.KERNELS / part}" for part in ("include", "src")]
    run("gcc", "-std=c99", "-DSAAUG_FORCE_REFERENCE", *include, "-c", *native.kernel_sources(), cwd=folder)
    return sorted(folder.glob("*.o"))


@pytest.mark.parametrize("core", ["m4", "m0", "rv32"])
def test_layers_are_those_of_the_network_and_their_sum_is_the_inference(core, digits):
    if reason := emulator.missing(emulator.CORES[core]):
        pytest.skip(reason)
    model, images, observation, network = digits
    (found,) = tflm_export.profile(model, images, cores=(core,), observation=observation)
    assert [layer.name for layer in found.layers] == [step.op.name for step in network.steps]
    assert [layer.operator for layer in found.layers][-4:] == ["ADD", "SHIFT_CONV_2D", "MEAN", "SHIFT_FULLY_CONNECTED"]
    assert {layer.operator for layer in found.layers} == set(flatbuffer.operator_names(network))
    assert abs(found.between) <= PER_LAYER * len(found.layers)
    assert found.instructions == found.total == sum(layer.instructions for layer in found.layers) + found.between
    assert min(layer.instructions for layer in found.layers) > 1000 and found.core == core
    assert found.kernels == {"m4": "dsp"}.get(core, "portable")
    head = found.layers[-3]  # 1x1 on 2x2 positions, 64 to 112 channels
    assert head.macs == 2 * 2 * 64 * 112 and head.per_mac == head.instructions / head.macs
    spec = zoo.Entry.read("digits-shift").spec()
    assert sum(layer.macs for layer in found.layers) == cost.estimate(spec).macs


@pytest.mark.parametrize(
    "operator, kinds", [("shift", {"conv", "depthwise", "dense"}), ("adder/channelshift/conv", {"conv", "dense"})]
)
def test_macs_are_the_taps_of_layers_with_weights(operator, kinds):
    model, images = small_backbone("mcunet-in0", operator, blocks=2, shape=(9, 11, 3))
    network = tflm_export.compile_network(model, images, flavour="custom")
    weighted = [step for step in network.steps if report.count_macs(step)]
    assert {step.op.kind for step in weighted} == kinds
    for step in network.steps:
        (h, w, c), taps = (1, 1, *step.output.shape)[-3:], np.prod(step.op.kernel_size or (1, 1))
        depth = {"conv": step.inputs[0].shape[-1], "depthwise": 1, "dense": np.prod(step.inputs[0].shape)}
        assert report.count_macs(step) == (h * w * c * taps * depth[step.op.kind] if step in weighted else 0)


def test_without_the_macro_a_network_is_what_it_was(project, tmp_path):
    """The text behind the preprocessor is that of a source without a word about profiles."""
    folder, network = project
    text = (folder / "net.c").read_text()
    bare = re.sub(r"#ifdef SAAUG_PROFILE\n.*?#endif\n\n", "", text, flags=re.DOTALL)
    bare = re.sub(r" *PROFILE_\w+(\(\d+\))?\n", "", bare)
    assert text.count("PROFILE_LAYER(") == len(network.steps) + 2 and "PROFILE" not in bare
    (tmp_path / "net.c").write_text(bare)
    include = [f"-I{path}" for path in (folder, folder / "kernels/include", folder / "kernels/src")]
    seen = [run("gcc", "-E", "-P", *include, file, cwd=tmp_path) for file in (folder / "net.c", tmp_path / "net.c")]
    assert seen[0].split() == seen[1].split() and "begun" not in seen[0]
    assert "begun" in run("gcc", "-E", "-P", "-DSAAUG_PROFILE", *include, folder / "net.c", cwd=tmp_path)


# A clock that counts its readings: every layer takes one, in whatever the program does between them.
PROGRAM = """#include <cstdio>
#include <cstring>
#include "net.h"
#include "saaug_profile.h"
#include "samples.h"

static uint32_t readings;
uint32_t saaug_clock(void) { return ++readings; }

void saaug_profile(const saaug_profile_layer* layer, uint32_t ticks) {
  readings += 1000;
  std::printf("%s|%lu|%s|%s|%lu|%lu\\n", layer->network, static_cast<unsigned long>(layer->index), layer->name,
              layer->operation, static_cast<unsigned long>(layer->macs), static_cast<unsigned long>(ticks));
}

int main() {
  static int8_t output[NET_OUTPUT_BYTES];
  return net_run(sample_images[1], output) || std::memcmp(output, sample_outputs[1], sizeof output);
}
"""


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_program_of_cxx_gets_every_layer_by_a_clock_of_its_own(compiler, project, kernels, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    folder, network = project
    flags = [*STRICT, "-DSAAUG_PROFILE", "-DSAAUG_FORCE_REFERENCE"]
    flags += [f"-I{path}" for path in (folder, folder / "kernels/include", folder / "kernels/src")]
    own = [folder / file for file in ("net.c", "net_data.c", "samples.c", "saaug_plain.c")]
    run(compiler, "-std=c99", *flags, "-c", *own, cwd=tmp_path)
    (tmp_path / "main.cc").write_text(PROGRAM)
    files = ["main.cc", *tmp_path.glob("*.o"), *kernels]
    run({"gcc": "g++", "clang": "clang++"}[compiler], "-std=c++17", *flags, *files, cwd=tmp_path)
    rows = [line.split("|") for line in run(tmp_path / "a.out", cwd=tmp_path).splitlines()]
    assert rows == [
        ["net", str(index), step.op.name, flatbuffer.operator_name(step, "custom"), str(report.count_macs(step)), "1"]
        for index, step in enumerate(network.steps)
    ]
    assert rows[0][2:5] == ['odd "name" \\ ??(', "SHIFT_CONV_2D", str(4 * 3 * 6 * 27)]


def test_the_function_of_the_guide_compiles(tmp_path):
    page = (HERE.parent / "docs" / "export-to-a-board.md").read_text()
    (text,) = re.findall(r"^```c\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "guide.c").write_text(text)
    run("gcc", "-std=c99", *STRICT, "-fsyntax-only", f"-I{native.PLAIN}", "guide.c", cwd=tmp_path)


TARGETS = {
    "m0": ("arm-none-eabi-gcc", "-mcpu=cortex-m0", "-mthumb"),
    "m4": ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb"),
    "m4-systick": ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-DSAAUG_PROFILE_SYSTICK"),
    "m23": ("arm-none-eabi-gcc", "-mcpu=cortex-m23", "-mthumb"),
    "m55": ("arm-none-eabi-gcc", "-mcpu=cortex-m55", "-mthumb"),
    "a9": ("arm-none-eabi-gcc", "-mcpu=cortex-a9"),
    "rv32": ("riscv64-unknown-elf-gcc", "-march=rv32imac", "-mabi=ilp32", "-ffreestanding"),
    "m4-clang": ("clang", "--target=thumbv7em-none-eabi", "-ffreestanding"),
    "rv32-clang": ("clang", "--target=riscv32-unknown-elf", "-march=rv32imac", "-ffreestanding"),
}
# What a clock reads: SysTick, CYCCNT, mcycle (0xB00), or the program's.
CLOCKS = {"systick": "0xE000E010u", "cyccnt": "0xE0001004u", "mcycle": "-1280", "program": "saaug_clock();"}
READS = {"m0": "systick", "m23": "systick", "m4-systick": "systick", "a9": "program", "rv32": "mcycle", "rv32-clang": "mcycle"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("standard", ["c99", "c++17"])
def test_the_clocks_compile_cleanly_for_every_target(standard, target, tmp_path):
    compiler, *flags = TARGETS[target]
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    language = "c++" if "+" in standard else "c"
    for clock in (False, True):
        text = '#include "saaug_profile.h"\nextern uint32_t begin(void), end(uint32_t begun);\n'
        text += "uint32_t begin(void) { return saaug_ticks_begin(); }\n"
        text += "uint32_t end(uint32_t begun) { return saaug_ticks_end(begun); }\n"
        (tmp_path / "clock.c").write_text(text)
        command = [compiler, *flags, f"-std={standard}", *STRICT, "-O1", f"-I{native.PLAIN}", "-x", language, "clock.c"]
        command += ["-DSAAUG_PROFILE_CLOCK"] * clock
        run(*command, "-c", cwd=tmp_path)
        text = run(*command, "-E", cwd=tmp_path)
        assert [name for name, read in CLOCKS.items() if read in text] == ["program" if clock else READS.get(target, "cyccnt")]


def test_systick_says_when_it_cannot_count(tmp_path):
    core = emulator.CORES["m4"]
    if reason := emulator.missing(core):
        pytest.skip(reason)
    image = emulator.build(core, [HERE / "emulated" / "clock.c"], tmp_path, include=[native.PLAIN])
    # 2 * 30 and 2 * 50 million instructions, of which 2**24 ticks are 84; then settings that are another's
    assert emulator.run(core, image).output == "0 1\n1 1\n"
    assert core.instructions(0xFFFFFFFF) is None and core.instructions(2**24) == 5 * 2**24


# What the systems' headers bring, as far as the programs see it.
STUBS = {
    "Arduino.h": "#pragma once\n#include <stdio.h>\nunsigned long micros(void); unsigned long millis(void);\n"
    "struct Port { void begin(long); void print(const char *); operator bool(); };\nextern Port Serial;\n",
    "zephyr/kernel.h": "#include <stdint.h>\nstatic inline uint32_t k_cycle_get_32(void) { return 1; }\n",
    "esp_cpu.h": "#include <stdint.h>\nstatic inline uint32_t esp_cpu_get_cycle_count(void) { return 1; }\n",
}


@pytest.mark.parametrize("layout", packaging.LAYOUTS)
def test_the_sample_program_of_every_layout_prints_the_layers(layout, project, kernels, tmp_path):
    folder, network = tmp_path / "project", project[1]
    folder.mkdir()
    samples = firmware.Samples.of(network, images_like((9, 7, 3), 2))
    firmware.write_c(network, "net", samples, folder, packaging=layout)
    for name, text in STUBS.items():
        (tmp_path / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stubs" / name).write_text(text)
    row = packaging.LAYOUTS[layout]
    flags = ["-DSAAUG_PROFILE", "-DSAAUG_FORCE_REFERENCE", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path / 'stubs'}"]
    flags += [f"-I{folder / place}" for place in (row.headers, row.kernel_headers, row.kernel_sources)]
    program = folder / row.program
    compiler = ["g++", "-include", "Arduino.h", "-x", "c++"] if layout == "arduino" else ["gcc", "-std=c99"]
    run(*compiler, *flags, "-c", program, "-o", "program.o", cwd=tmp_path)
    assert "-DSAAUG_PROFILE" in (folder / "README.md").read_text() or layout == "esp-idf"
    if layout in ("plain", "cmake", "platformio"):
        own = [folder / row.source(file) for file in ("net.c", "net_data.c", "saaug_plain.c")]
        own.append(program.parent / "samples.c")
        run("gcc", "-std=c99", *flags, *own, "program.o", *kernels, "-o", "program", cwd=tmp_path)
        text = run(tmp_path / "program", cwd=tmp_path)
        found = re.findall(r"^.{26} (\w+) +(\d+) MACs +\d+ ticks$", text, re.MULTILINE)
        expected = [(flatbuffer.operator_name(s, "custom"), str(report.count_macs(s))) for s in network.steps]
        assert found == 2 * expected and text.count("output as expected") == 2


def test_the_command_prints_a_table_and_draws_the_bars(tmp_path, capsys):
    if reason := emulator.missing(emulator.CORES["m4"]):
        pytest.skip(reason)
    assert cli.main(["profile", "digits-shift", "--core", "m4", "--out", str(tmp_path / "bars.svg")]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if line.strip()]
    names = [row[0] for row in rows if len(row) > 3 and row[1].isupper() and row[0] != "digits-shift"]
    assert names[:2] == ["stem", "block0_depthwise"] and len(names) == 13 and "wrote" in printed.err
    total = re.search(r"digits-shift on m4: ([\d,]+) instructions, output equal to the reference", printed.out)[1]
    picture = xml.parse(tmp_path / "bars.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg" and picture.get("width") == "900"
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) <= set(texts) and total in texts[0]
    bars = [float(bar.get("width")) for bar in picture.iter("{http://www.w3.org/2000/svg}rect") if bar.get("rx")]
    assert len(bars) == 13 + 5 and max(range(13), key=bars.__getitem__) == names.index("head0")


def test_the_command_takes_a_file_and_several_cores(tmp_path, capsys):
    cores = [emulator.CORES[name] for name in ("m4", "rv32")]
    if reason := emulator.missing(cores[0]) or emulator.missing(cores[1]):
        pytest.skip(reason)
    spec = backbones.NetSpec("small", (8, 8, 1), 10, backbones.StemSpec(4, strides=2), ()).with_operator("adder")
    backbones.build(spec).save(tmp_path / "small.keras")
    words = ["profile", str(tmp_path / "small.keras"), "--dataset", "digits", "--count", "8", "--core", "m4,rv32"]
    assert cli.main([*words, "--json", "--out", str(tmp_path / "page.html")]) == 0
    found = json.loads(capsys.readouterr().out)["cores"]
    assert list(found) == ["m4", "rv32"] and found["rv32"]["kernels"] == "portable"
    for each in found.values():
        assert [row["operator"] for row in each["layers"]][-1].endswith("FULLY_CONNECTED")
        assert each["total"] == each["between"] + sum(row["instructions"] for row in each["layers"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<table>") == 2 and page.count("<svg ") == 2 and "small.keras" in page


@pytest.mark.parametrize(
    "words, message",
    [
        (["digits-shift", "--core", "m9"], "profile: `--core` must be one of 'm0', 'm3', .* Received: --core='m9'"),
        (["digits-shift", "--core", "m4,"], "profile: `--core` must be one of .*Received: --core=''"),
        (["digits-shif"], "profile: MODEL must be a .keras file, .* Received: digits-shif"),
        (["digits-shift", "--out", "bars.png"], "profile: `--out` must be a file of suffix .svg or .html. Received: bars.png"),
        (["here.keras"], "profile: a MODEL that is no entry of the zoo must come with --dataset or --images"),
        (["here.keras", "--dataset", "digits"], "profile: MODEL must be a .keras file. Received: here.keras, which is damaged"),
        (["digits-shift", "--count", "0"], "profile: `--count` must be an int in"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, tmp_path, capsys, monkeypatch):
    if reason := emulator.missing(emulator.CORES["m4"]):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.keras").write_text("no archive")
    assert cli.main(["profile", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("saaug: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here.keras"]


@pytest.mark.parametrize("core, package", [("m4", "gcc-arm-none-eabi"), ("rv32", "picolibc-riscv64-unknown-elf")])
def test_tools_that_are_missing_are_named_with_their_packages(core, package, digits, monkeypatch):
    monkeypatch.setattr(emulator.shutil, "which", lambda tool: None)
    model, images, observation, _ = digits
    with pytest.raises(FileNotFoundError, match=rf"profile: {core}: .*-gcc and qemu-.* not found; .*{package}") as raised:
        tflm_export.profile(model, images, cores=(core,), observation=observation)
    assert ("riscv" in str(raised.value)) == (core == "rv32")


@pytest.mark.parametrize("cores", ["m4", (), ("m4", "m5")])
def test_names_of_cores_that_are_none_are_refused(cores, digits):
    with pytest.raises(ValueError, match=r"tflm_export.profile: `cores` must be .* Received: cores="):
        tflm_export.profile(*digits[:2], cores=cores, observation=digits[2])


def test_a_count_that_is_no_count_is_refused(digits, monkeypatch):
    """Another output than the reference's, a layer beyond the counter, an inference beyond it."""
    model, images, observation, network = digits
    monkeypatch.setattr(emulator, "missing", lambda core: None)
    monkeypatch.setattr(profiling, "_version", lambda core: "a compiler")
    printed = {}

    def pretend(core, sources, folder, *, name, **options):
        return name

    monkeypatch.setattr(emulator, "compile_once", lambda *of, **options: ())
    monkeypatch.setattr(emulator, "build", pretend)
    monkeypatch.setattr(emulator, "run", lambda core, image: emulator.Result(0, printed[image]))
    count = len(network.steps)
    rows = "100\n" * count
    printed.update(layers=rows + "dsp 0\n")
    with pytest.raises(RuntimeError, match="m4: the network must give the reference's output. Received: status 0"):
        tflm_export.profile(model, images, observation=observation)
    printed.update(layers="4294967295\n" + rows[4:] + "dsp 1\n")
    with pytest.raises(RuntimeError, match="m4: layer 'stem' takes more instructions than the core's counter counts"):
        tflm_export.profile(model, images, observation=observation)
    printed.update(layers=rows + "dsp 1\n", whole="4294967295\ndsp 1\n")
    (found,) = tflm_export.profile(model, images, observation=observation)
    assert (found.instructions, found.between, found.total) == (None, None, 500 * count)
    assert [row[0] for row in profile_page.rows(found)][-2:] == ["classifier", "one inference"]
