"""The plain-C project as a library of every build system: its files, what the system reads of it, and a build.

CMake builds its package itself. Of the others, whose tools are not to be had without the network, the tests follow the
published rules: which files are compiled, with which folders to look for headers in, and what is linked.
"""

import json
import re
import shutil
import subprocess

import pytest
from export_models import small_backbone

import tflm_export
from saaug_keras import _version
from tflm_export import firmware, native, packaging

NAMES = ("one", "two")
# The reference kernels alone: the others' files are compiled, too, and are nearly empty.
FLAGS = ("-DSAAUG_FORCE_REFERENCE", "-Wall", "-Werror")
EXPECTED = "output as expected"
BESIDE_THE_SOURCES = {
    "plain": {"CMakeLists.txt", "main.c", "samples.c", "samples.h", "one.h", "saaug_plain.h", "saaug_profile.h"},
    "cmake": {
        "CMakeLists.txt",
        "cmake/oneConfig.cmake",
        "example/main.c",
        "example/samples.c",
        "example/samples.h",
        "include/one.h",
        "include/saaug_plain.h",
        "include/saaug_profile.h",
    },
    "arduino": {
        "library.properties",
        "src/one.h",
        "src/saaug_plain.h",
        "src/saaug_profile.h",
        *(f"examples/Samples/{file}" for file in ("Samples.ino", "samples.c", "samples.h")),
    },
    "platformio": {
        "library.json",
        "include/one.h",
        "include/saaug_plain.h",
        "include/saaug_profile.h",
        "examples/samples/platformio.ini",
        *(f"examples/samples/src/{file}" for file in ("main.c", "samples.c", "samples.h")),
    },
    "zephyr": {
        "zephyr/module.yml",
        "zephyr/CMakeLists.txt",
        "zephyr/Kconfig",
        "include/one.h",
        "include/saaug_plain.h",
        "include/saaug_profile.h",
        "samples/classify/CMakeLists.txt",
        "samples/classify/prj.conf",
        *(f"samples/classify/src/{file}" for file in ("main.c", "samples.c", "samples.h")),
    },
    "esp-idf": {
        "CMakeLists.txt",
        "idf_component.yml",
        "include/one.h",
        "include/saaug_plain.h",
        "include/saaug_profile.h",
        "examples/samples/CMakeLists.txt",
        "examples/samples/main/CMakeLists.txt",
        *(f"examples/samples/main/{file}" for file in ("main.c", "samples.c", "samples.h")),
    },
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Two networks of different operators in every layout: {layout: {name: folder}}."""
    base = tmp_path_factory.mktemp("packages")
    made = {layout: {} for layout in packaging.LAYOUTS}
    for name, operator in zip(NAMES, ("shift", "adder"), strict=True):
        model, images = small_backbone("mobilenetv2-tiny", operator, blocks=1, shape=(11, 9, 3))
        network = tflm_export.compile_network(model, images, flavour="custom")
        samples = firmware.Samples.of(network, images[:3])
        assert len({row.tobytes() for row in samples.outputs}) == 3
        for layout in made:
            made[layout][name] = base / layout / name
            made[layout][name].mkdir(parents=True)
            firmware.write_c(network, name, samples, made[layout][name], packaging=layout)
    return made


def run(*words, cwd):
    """A command that must succeed; returns what it printed."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def cmake(source, build, *options):
    """Configures and builds."""
    if not shutil.which("cmake"):
        pytest.skip("no cmake")
    run("cmake", "-S", source, "-B", build, f"-DCMAKE_C_FLAGS={' '.join(FLAGS)}", *options, cwd=source)
    run("cmake", "--build", build, cwd=source)


def c_files(folder):
    return sorted(folder.rglob("*.c"))


@pytest.mark.parametrize("layout", packaging.LAYOUTS)
def test_every_file_is_in_its_place_and_all_layouts_have_the_same_c(layout, packages):
    folder, plain = packages[layout]["one"], packages["plain"]["one"]
    row = packaging.LAYOUTS[layout]
    expected = BESIDE_THE_SOURCES[layout] | {"README.md"}
    expected |= {row.source(file) for file in ("one.c", "one_data.c", "one_data.h", "saaug_plain.c")}
    for part, place in (("include", row.kernel_headers), ("src", row.kernel_sources)):
        files = [file for file in (native.KERNELS / part).rglob("*") if file.is_file()]
        for file in files:
            path = f"{place}/{file.relative_to(native.KERNELS / part).as_posix()}"
            assert (folder / path).read_bytes() == file.read_bytes()
            expected.add(path)
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == expected
    for file in ("one.c", "one_data.c", "one_data.h", "saaug_plain.c"):
        assert (folder / row.source(file)).read_bytes() == (plain / file).read_bytes()
    texts = [(folder / path).read_text() for path in BESIDE_THE_SOURCES[layout] | {"README.md"}]
    assert not [mark for text in texts for mark in re.findall(r"@[A-Z]+@", text)]


def test_arduino_properties_are_as_its_specification_wants_them(packages):
    folder = packages["arduino"]["one"]
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert required <= set(properties) <= required | {"includes", "dot_a_linkage", "depends", "precompiled", "ldflags"}
    assert all(properties.values()) and len(properties) == len(lines)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}", properties["name"])
    assert not properties["name"].lower().startswith("arduino")
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"]) and properties["version"] == _version.__version__
    assert properties["category"] in (
        "Display",
        "Communication",
        "Signal Input/Output",
        "Sensors",
        "Device Control",
        "Timing",
        "Data Storage",
        "Data Processing",
        "Other",
    )
    assert properties["url"].startswith("https://") and properties["dot_a_linkage"] == "true"
    assert (folder / "src" / properties["includes"]).is_file()
    for sketch in (folder / "examples").iterdir():
        assert (sketch / f"{sketch.name}.ino").is_file()


def test_platformio_manifest_is_as_its_schema_wants_it(packages):
    folder = packages["platformio"]["one"]
    manifest = json.loads((folder / "library.json").read_text())
    kinds = {
        "name": str,
        "version": str,
        "description": str,
        "keywords": list,
        "authors": list,
        "homepage": str,
        "frameworks": str,
        "platforms": str,
        "headers": str,
        "examples": list,
        "build": dict,
    }
    assert {key: type(value) for key, value in manifest.items()} == kinds
    assert re.fullmatch(r"[^:;/,@<>]{1,100}", manifest["name"]) and re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"])
    assert all(re.fullmatch(r"[a-z\d\-+. ]{1,50}", keyword) for keyword in manifest["keywords"])
    assert all(1 <= len(author["name"]) <= 50 for author in manifest["authors"])
    assert set(manifest["build"]) <= {"flags", "srcDir", "includeDir", "libArchive", "srcFilter", "extraScript"}
    for example in manifest["examples"]:
        assert re.fullmatch(r"[a-zA-Z\d\-_/]{1,100}", example["name"])
        assert all((folder / example["base"] / file).is_file() for file in example["files"])
    assert (folder / "include" / manifest["headers"]).is_file()


def test_zephyr_module_and_kconfig_are_as_zephyr_reads_them(packages):
    yaml = pytest.importorskip("yaml")
    folder = packages["zephyr"]["one"]
    module = yaml.safe_load((folder / "zephyr/module.yml").read_text())
    assert module == {"name": "one", "build": {"cmake": "zephyr", "kconfig": "zephyr/Kconfig"}}
    assert (folder / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    kconfig = (folder / module["build"]["kconfig"]).read_text()
    assert re.match(r'config SAAUG_ONE\n +bool "Network one"\n +help\n +\S', kconfig)
    assert "CONFIG_SAAUG_ONE=y\n" in (folder / "samples/classify/prj.conf").read_text()
    assert "if(CONFIG_SAAUG_ONE)" in (folder / "zephyr/CMakeLists.txt").read_text()


def test_esp_idf_manifest_is_as_its_component_manager_reads_it(packages):
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((packages["esp-idf"]["one"] / "idf_component.yml").read_text())
    assert set(manifest) == {"version", "description", "url", "dependencies"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"]) and manifest["url"].startswith("https://")
    assert manifest["dependencies"] == {"idf": ">=5.0"}


def test_cmake_packages_are_installed_found_and_run_together(packages, tmp_path):
    for name, folder in packages["cmake"].items():
        build = tmp_path / name
        cmake(folder, build, f"-D{name}_EXAMPLE=ON")
        assert run(build / f"{name}_example", cwd=tmp_path).count(EXPECTED) == 3
        commands = (build / "CMakeFiles" / "saaug_runtime.dir" / "flags.make").read_text()
        assert commands.index(FLAGS[0]) < commands.index("-O3")
        run("cmake", "--install", build, "--prefix", tmp_path / "prefix", cwd=tmp_path)
    consume(tmp_path, packages["cmake"], "find_package(one 0.1 REQUIRED)\nfind_package(two 0.1 REQUIRED)\n")


def test_cmake_packages_are_folders_of_one_project(packages, tmp_path):
    folders = packages["cmake"]
    consume(tmp_path, folders, "".join(f"add_subdirectory({folder} {name})\n" for name, folder in folders.items()))


def consume(tmp_path, folders, takes):
    """A project that links both networks and runs the samples of both."""
    source = tmp_path / "consumer"
    source.mkdir()
    text = f"cmake_minimum_required(VERSION 3.13)\nproject(consumer C)\n{takes}"
    for name, folder in folders.items():
        text += (
            f"add_executable(runs_{name} {folder}/example/main.c {folder}/example/samples.c)\n"
            f"target_link_libraries(runs_{name} PRIVATE one::one two::two)\n"
        )
    (source / "CMakeLists.txt").write_text(text)
    build = tmp_path / "consumed"
    cmake(source, build, f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    for name in folders:
        assert run(build / f"runs_{name}", cwd=tmp_path).count(EXPECTED) == 3


def archive(folder, objects, *options):
    """The library that becomes of a folder's C files, all of them."""
    objects.mkdir()
    run("gcc", *FLAGS, *options, "-c", *c_files(folder), cwd=objects)
    files = sorted(objects.glob("*.o"))
    assert len(files) == len(c_files(folder))  # no two have one name
    run("ar", "rcs", "library.a", *files, cwd=objects)
    return objects / "library.a"


ARDUINO = """#include <cstdio>
struct Port {
    void begin(long) {}
    operator bool() { return true; }
    void print(const char *text) { std::fputs(text, stdout); }
};
static Port Serial;
static inline unsigned long millis() { return 0; }
"""


def test_arduino_libraries_are_compiled_by_its_rules_and_run_in_one_sketch(packages, tmp_path):
    folders = packages["arduino"]
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    (tmp_path / "core.cpp").write_text("void setup_one(); void setup_two();\nint main() { setup_one(); setup_two(); }\n")
    # archives are linked once, in their order: what the first has of the runtime is not taken of the second
    linked = [archive(folder / "src", tmp_path / name, f"-I{folder}/src") for name, folder in folders.items()]
    includes = [f"-I{tmp_path}", *(f"-I{folder}/src" for folder in folders.values())]
    for name, folder in folders.items():
        sketch = folder / "examples/Samples"
        (tmp_path / f"{name}.ino.cpp").write_text(f"#include <Arduino.h>\n{(sketch / 'Samples.ino').read_text()}")
        renamed = [f"-D{word}={word}_{name}" for word in ("setup", "loop", "sample_images", "sample_outputs")]
        options = [*FLAGS, *renamed, f"-I{sketch}", *includes]
        run("g++", "-std=c++11", *options, "-c", tmp_path / f"{name}.ino.cpp", cwd=tmp_path)
        run("gcc", *options, "-c", sketch / "samples.c", "-o", f"{name}-samples.o", cwd=tmp_path)
    run("g++", "core.cpp", *sorted(tmp_path.glob("*.o")), *linked, "-o", "sketch", cwd=tmp_path)
    text = run(tmp_path / "sketch", cwd=tmp_path)
    assert text.count(EXPECTED) == 6 and text.count("outputs that are wrong: 0") == 2


def test_platformio_library_is_compiled_by_its_manifest(packages, tmp_path):
    folder = packages["platformio"]["one"]
    build = json.loads((folder / "library.json").read_text())["build"]
    assert build["libArchive"] is True and "-O3" in build["flags"]
    includes = [f"-I{folder / build[place]}" for place in ("includeDir", "srcDir")]
    library = archive(folder / build["srcDir"], tmp_path / "objects", *build["flags"], *includes)
    run("gcc", *FLAGS, *includes, *c_files(folder / "examples/samples/src"), library, "-o", "program", cwd=tmp_path)
    assert run(tmp_path / "program", cwd=tmp_path).count(EXPECTED) == 3


# What find_package(Zephyr) brings, as far as a module sees it; all libraries are linked whole.
ZEPHYR = """project(Zephyr-Kernel C)
add_library(zephyr_interface INTERFACE)
add_executable(app)
target_link_libraries(app PRIVATE zephyr_interface)
macro(zephyr_library_named name)
  set(ZEPHYR_CURRENT_LIBRARY ${name})
  add_library(${name} STATIC "")
  target_link_libraries(${name} PUBLIC zephyr_interface)
  target_link_libraries(app PRIVATE -Wl,--whole-archive ${name} -Wl,--no-whole-archive)
endmacro()
function(zephyr_library_sources)
  target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_library_compile_options)
  target_compile_options(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_include_directories)
  target_include_directories(zephyr_interface INTERFACE ${ARGN})
endfunction()
file(STRINGS ${CMAKE_SOURCE_DIR}/prj.conf SETTINGS REGEX "=y$")
foreach(SETTING ${SETTINGS})
  string(REPLACE "=y" "" SETTING ${SETTING})
  set(${SETTING} y)
endforeach()
foreach(MODULE ${EXTRA_ZEPHYR_MODULES})
  get_filename_component(MODULE ${MODULE} ABSOLUTE)
  get_filename_component(NAME ${MODULE} NAME)
  add_subdirectory(${MODULE}/zephyr modules/${NAME})
endforeach()
"""


def test_zephyr_modules_are_built_in_one_application(packages, tmp_path):
    (tmp_path / "ZephyrConfig.cmake").write_text(ZEPHYR)
    folders = packages["zephyr"]
    options = [f"-DZephyr_DIR={tmp_path}", f"-DEXTRA_ZEPHYR_MODULES={folders['two']}", "-DCONFIG_SAAUG_TWO=y"]
    cmake(folders["one"] / "samples/classify", tmp_path / "build", *options)
    assert (tmp_path / "build/modules/two/libtwo_network.a").is_file()
    text = run(tmp_path / "build/app", cwd=tmp_path)
    assert text.count(EXPECTED) == 3 and "outputs that are wrong: 0" in text


# What ESP-IDF's project.cmake brings, as far as a component sees it.
ESP_IDF = """function(idf_component_register)
  cmake_parse_arguments(THIS "" "" "SRCS;INCLUDE_DIRS" ${ARGN})
  get_filename_component(NAME ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  add_library(${NAME} STATIC ${THIS_SRCS})
  target_include_directories(${NAME} PUBLIC ${THIS_INCLUDE_DIRS})
  set(COMPONENT_LIB ${NAME} PARENT_SCOPE)
endfunction()
macro(project name)
  _project(${name} C)
  file(WRITE ${CMAKE_BINARY_DIR}/start.c "void app_main(void);\\nint main(void) { app_main(); return 0; }\\n")
  add_executable(app ${CMAKE_BINARY_DIR}/start.c)
  foreach(COMPONENT ${EXTRA_COMPONENT_DIRS} ${COMPONENTS_OF_TEST} ${CMAKE_CURRENT_SOURCE_DIR}/main)
    get_filename_component(COMPONENT ${COMPONENT} ABSOLUTE)
    get_filename_component(NAME ${COMPONENT} NAME)
    add_subdirectory(${COMPONENT} components/${NAME})
    if(NAME STREQUAL main)
      target_link_libraries(main PRIVATE ${NAMES})
    endif()
    list(APPEND NAMES ${NAME})
  endforeach()
  target_link_libraries(app PRIVATE main)
endmacro()
"""


def test_esp_idf_components_are_built_in_one_project(packages, tmp_path, monkeypatch):
    tools = tmp_path / "tools/cmake"
    tools.mkdir(parents=True)
    (tools / "project.cmake").write_text(ESP_IDF)
    monkeypatch.setenv("IDF_PATH", str(tmp_path))
    folders = packages["esp-idf"]
    cmake(folders["one"] / "examples/samples", tmp_path / "build", f"-DCOMPONENTS_OF_TEST={folders['two']}")
    assert (tmp_path / "build/components/two/libtwo.a").is_file()
    text = run(tmp_path / "build/app", cwd=tmp_path)
    assert text.count(EXPECTED) == 3 and "outputs that are wrong: 0" in text
    # before the project, ESP-IDF reads every component as a script that ends where the component is registered
    script = f"macro(idf_component_register)\n  return()\nendmacro()\ninclude({folders['one']}/CMakeLists.txt)\n"
    (tmp_path / "early.cmake").write_text(script)
    run("cmake", "-P", tmp_path / "early.cmake", cwd=tmp_path)


def test_arduino_library_compiles_for_a_cortex_m0(packages, tmp_path):
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("no arm-none-eabi-gcc")
    source = packages["arduino"]["one"] / "src"
    options = ["-mcpu=cortex-m0", "-mthumb", "-O1", "-Wall", "-Werror", f"-I{source}"]
    run("arm-none-eabi-gcc", *options, "-c", *c_files(source), cwd=tmp_path)
    assert len(list(tmp_path.glob("*.o"))) == len(c_files(source))


def test_export_writes_a_package_whole_and_reports_where_the_constants_are(tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=1, shape=(11, 9, 3))
    options = {"target": "c", "name": "my-net"}
    report = tflm_export.export(model, images, tmp_path / "made", packaging="arduino", **options)
    folder = tmp_path / "made"
    assert report.model_file == "src/saaug/my_net_data.c" and (folder / report.model_file).is_file()
    assert set(report.files) == {path.name for path in folder.iterdir()}
    assert report.files == ("README.md", "examples", "library.properties", "report.json", "src")
    assert json.loads((folder / "report.json").read_text())["files"] == list(report.files)


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param(
            {"packaging": "mbed"},
            "`packaging` must be one of 'arduino', 'cmake', 'esp-idf', .*Received: packaging='mbed'",
            id="unknown",
        ),
        pytest.param(
            {"packaging": "cmake", "target": "tflm"},
            "`packaging` must come with target 'c'. Received: packaging='cmake', target='tflm'",
            id="another-target",
        ),
        pytest.param({"packaging": "zephyr", "name": "n" * 64}, "`name` must be at most 63 of", id="long-name"),
        pytest.param(
            {"packaging": "cmake", "name": "_net"},
            "`name` must be .*, a letter or digit first, for packaging='cmake'. Received: name='_net'",
            id="begins-with-an-underscore",
        ),
    ],
)
def test_export_refuses_what_no_package_can_be(options, message, tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=1, shape=(11, 9, 3))
    with pytest.raises(ValueError, match=f"tflm_export.export: {message}"):
        tflm_export.export(model, images, tmp_path / "made", **{"target": "c", **options})
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_knows_every_layout(capsys):
    from saaug_keras import cli

    with pytest.raises(SystemExit):
        cli.make_parser().parse_args(["export", "x.keras", "--packaging", "mbed"])
    (listed,) = re.findall(r"choose from (.*)\)", capsys.readouterr().err)
    assert listed.replace("'", "").split(", ") == list(packaging.LAYOUTS)
