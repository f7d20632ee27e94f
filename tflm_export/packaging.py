"""Where the files of a plain-C project lie, so that CMake, Arduino, PlatformIO, Zephyr and ESP-IDF find them.

A layout is a row of `LAYOUTS`: folders for the project's parts, and the files that the system reads. All rows have the
same C files. What is no network's own, the kernels and the plain operators, is the runtime: its files and symbols begin
with saaug_, and every layout sees to it that several networks in one firmware have it once.
"""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass, replace

from saaug_keras import _validate
from saaug_keras._version import __version__

# Arduino is the strictest: basic letters and digits first, 63 characters. The others would take more.
_NAME = re.compile(r"[A-Za-z0-9]\w{0,62}", re.ASCII)
_FACTS = {
    "AUTHORS": "The saaug_keras authors",
    "SUMMARY": "An int8 network in plain C, without interpreter and heap.",
    "URL": "https://arxiv.org/abs/2407.02881",
    "VERSION": __version__,
}


@dataclass(frozen=True)
class Project:
    """A plain-C project before it has a place: texts of files by name.

    Args:
        word: the network's name in C.
        headers: what a program includes, but for the kernels'. sources: the rest, but for the kernels'.
        kernel_headers, kernel_sources: of the kernels; a source's name may begin with a folder.
        samples: the images that the sample program classifies.
        facts: what the texts of this module say of the network: CLASS, the C expression of an output's class; SHAPE, of
            the input; ARENAS, rows of a table.
    """

    word: str
    headers: dict[str, str]
    sources: dict[str, str]
    kernel_headers: dict[str, str]
    kernel_sources: dict[str, str]
    samples: dict[str, str]
    facts: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """How a sample program begins, prints and ends; by default as a program of a computer does.

    Args:
        purpose: the rest of its first sentence.
        before: C text in front of the function that classifies.
        signature: of that function. It returns the number of wrong outputs.
        say: what prints as printf does.
        clock, clock_header: the C expression of a clock, for who profiles where the runtime knows none; its header.
        after: C text behind it.
    """

    purpose: str = "; the exit status is the number of wrong outputs."
    before: str = ""
    signature: str = "int main(void)"
    say: str = "printf"
    clock: str = "clock()"
    clock_header: str = "time.h"
    after: str = ""


@dataclass(frozen=True)
class Layout:
    """Where a build system looks for the parts of a project.

    Args:
        headers, sources, kernel_headers, kernel_sources: folders; "" is the project's own.
        program: path of the sample program; the samples lie beside it.
        use: the part of README.md that says how to build it.
        profile: how the system is told of the macro SAAUG_PROFILE, as a part of a sentence.
        files: what the system reads, by path.
        entry: of the sample program.
    """

    headers: str
    sources: str
    kernel_headers: str
    kernel_sources: str
    program: str
    use: str
    profile: str
    files: dict[str, str]
    entry: Entry = Entry()

    def source(self, name) -> str:
        """Path of a source, relative to the project."""
        return str(pathlib.PurePosixPath(self.sources, name))


def check_packaging(owner, packaging, name, word):
    """Refuses a layout that is not known, and a network's name that a package cannot have.

    Args:
        owner: whose argument it is.
        packaging: a name of `LAYOUTS`.
        name: the network's. word: the identifier made of it.
    Raises:
        ValueError: says what it must be.
    """
    _validate.one_of(owner, "packaging", packaging, tuple(LAYOUTS))
    if packaging != "plain" and not _NAME.fullmatch(word):
        raise ValueError(
            f"{owner}: `name` must be at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', a letter or digit first, for "
            f"packaging={packaging!r}. Received: name={name!r}."
        )


def write_project(project: Project, packaging, folder):
    """Writes a project into a folder that exists, as the layout of that name has it."""
    layout = LAYOUTS[packaging]
    entry = layout.entry
    facts = {**_FACTS, **project.facts, "NAME": project.word, "UPPER": project.word.upper(), "PROGRAM": layout.program}
    facts |= {"PURPOSE": entry.purpose, "BEFORE": entry.before, "SIGNATURE": entry.signature, "SAY": entry.say}
    facts |= {"CLOCK": entry.clock, "HEADER": entry.clock_header, "AFTER": entry.after, "PROFILE": layout.profile}
    facts |= {"USE": _fill(layout.use, facts)}
    texts = {layout.program: _PROGRAM, "README.md": _README, **layout.files}
    parts = (
        (layout.headers, project.headers),
        (layout.sources, project.sources),
        (layout.kernel_headers, project.kernel_headers),
        (layout.kernel_sources, project.kernel_sources),
        (pathlib.PurePosixPath(layout.program).parent, project.samples),
        ("", {_fill(path, facts): _fill(text, facts) for path, text in texts.items()}),
    )
    for place, files in parts:
        for name, text in files.items():
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _fill(text, facts):
    """The text with every @WORD@ replaced, once: what comes in is not looked at again."""
    return re.sub(r"@([A-Z]+)@", lambda match: facts[match[1]], text)


# ---------------------------------------------------------------------------------------------------------------------
# Texts of every layout

_PROGRAM = """/* Classifies the sample images@PURPOSE@ */
#include <stdio.h>
#include <string.h>

#include "@NAME@.h"
#include "samples.h"
#include "saaug_nn.h"
#include "saaug_plain.h"

static int8_t output[sizeof sample_outputs[0]];
@BEFORE@
#ifdef SAAUG_PROFILE
#include "saaug_profile.h"

/* Behind every layer; what it takes is not counted. */
void saaug_profile(const saaug_profile_layer *layer, uint32_t ticks)
{
    @SAY@("%-26s %-26s %10lu MACs %10lu ticks\\n", layer->name, layer->operation, (unsigned long)layer->macs,
          (unsigned long)ticks);
}

#ifdef SAAUG_CLOCK_OF_PROGRAM
#include <@HEADER@>

uint32_t saaug_clock(void) { return (uint32_t)@CLOCK@; }
#endif
#endif

@SIGNATURE@
{
    int wrong = 0, i;
    @SAY@("kernels: %s, arena: %lu bytes\\n", saaug_version(), (unsigned long)@NAME@_arena_bytes());
    i = @NAME@_check();
    if (i != 0) {
        @SAY@("step %d is damaged, or of another version of the kernels: export again\\n", i);
        return 100;
    }
    for (i = 0; i < SAMPLE_COUNT; ++i) {
        const int status = @NAME@_run(sample_images[i], output);
        const int same = status == 0 && memcmp(output, sample_outputs[i], sizeof output) == 0;
        const long best = @CLASS@; /* of the first pixel, if there are many */
        @SAY@("sample %d: class %ld, status %d, %s as expected\\n", i, best, status, same ? "output" : "output NOT");
        wrong += !same;
    }
    return wrong;
}
@AFTER@"""

_README = """# @NAME@: an int8 network in plain C

No interpreter, no heap. `@NAME@_run(image, output)` in `@NAME@.h` runs it; `@PROGRAM@` classifies the sample images and
compares every output byte with what the exporter computed.

@USE@
What each layer takes: @PROFILE@ and the program prints it. `saaug_profile.h` says what the ticks are and how a program of
your own gets them. Without the macro nothing of this is compiled.

Static memory for activations and scratch, by version of the kernels (little-endian targets):

| version | bytes |
|---|---|
@ARENAS@

Input: int8, @SHAPE@: pixel - 128 of an image of pixels from 0 to 255.
"""

# ---------------------------------------------------------------------------------------------------------------------
# Nobody's: a folder with a program

_PLAIN_USE = """```
cc -std=c99 -O3 -I. -Ikernels/include -Ikernels/src *.c kernels/src/*.c kernels/src/*/*.c -o @NAME@ && ./@NAME@
```

For a microcontroller: the same command with its compiler and flags, for example
`arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -std=c99 -O3 -ffunction-sections -fdata-sections -Wl,--gc-sections ...`. The
kernels choose their version from the compiler's target. `main.c` uses printf; leave it out where there is none.
"""

_PLAIN_CMAKE = """# Any C99 compiler: cmake -B build && cmake --build build; for a microcontroller, with its toolchain file.
cmake_minimum_required(VERSION 3.13)
project(@NAME@ C)
file(GLOB KERNELS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/src/*.c ${CMAKE_CURRENT_SOURCE_DIR}/kernels/src/*/*.c)
add_executable(@NAME@ main.c samples.c @NAME@.c @NAME@_data.c saaug_plain.c ${KERNELS})
target_include_directories(@NAME@ PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} kernels/include kernels/src)
set_target_properties(@NAME@ PROPERTIES C_STANDARD 99)
target_compile_options(@NAME@ PRIVATE -O3 -ffunction-sections -fdata-sections)
target_link_options(@NAME@ PRIVATE -Wl,--gc-sections)
"""

# ---------------------------------------------------------------------------------------------------------------------
# CMake. The runtime is a target and a package of its own, which the second network finds made.

_CMAKE_USE = """A CMake project takes this folder as it is,

```
add_subdirectory(@NAME@)
target_link_libraries(app PRIVATE @NAME@::@NAME@)
```

or installed, with `find_package(@NAME@ REQUIRED)` in place of the first line and the prefix in CMAKE_PREFIX_PATH:

```
cmake -B build -D@NAME@_EXAMPLE=ON && cmake --build build && build/@NAME@_example
cmake --install build --prefix PREFIX
```

For a microcontroller, give its toolchain file. Several networks of one version of the exporter share `saaug::runtime`.
"""

_CMAKE = """# A library @NAME@::@NAME@, for add_subdirectory, or for find_package once it is installed.
cmake_minimum_required(VERSION 3.13)
project(@NAME@ VERSION @VERSION@ LANGUAGES C)
option(@NAME@_EXAMPLE "Build the program that classifies the sample images" OFF)
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(OPTIMIZE -O3 -ffunction-sections -fdata-sections)

# The kernels and the plain operators: networks in one build share the first one's.
if(NOT TARGET saaug::runtime)
  file(GLOB RUNTIME ${CMAKE_CURRENT_SOURCE_DIR}/src/saaug_*.c ${CMAKE_CURRENT_SOURCE_DIR}/src/*/saaug_*.c)
  add_library(saaug_runtime STATIC ${RUNTIME})
  add_library(saaug::runtime ALIAS saaug_runtime)
  set_target_properties(saaug_runtime PROPERTIES C_STANDARD 99 EXPORT_NAME runtime)
  target_compile_options(saaug_runtime PRIVATE ${OPTIMIZE})
  target_include_directories(saaug_runtime PUBLIC
    $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/saaug_runtime>)
endif()

add_library(@NAME@ STATIC src/@NAME@.c src/@NAME@_data.c)
add_library(@NAME@::@NAME@ ALIAS @NAME@)
set_target_properties(@NAME@ PROPERTIES C_STANDARD 99)
target_compile_options(@NAME@ PRIVATE ${OPTIMIZE})
target_include_directories(@NAME@ PRIVATE src PUBLIC
  $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/@NAME@>)
target_link_libraries(@NAME@ PUBLIC saaug::runtime)

if(@NAME@_EXAMPLE)
  add_executable(@NAME@_example example/main.c example/samples.c)
  set_target_properties(@NAME@_example PROPERTIES C_STANDARD 99)
  target_link_libraries(@NAME@_example PRIVATE @NAME@::@NAME@)
  target_link_options(@NAME@_example PRIVATE -Wl,--gc-sections)
endif()

# Of a project that is built for itself; inside another one, that one says what is installed.
if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  set(PACKAGES ${CMAKE_INSTALL_LIBDIR}/cmake)
  file(GLOB RUNTIME_HEADERS include/saaug_*.h)
  install(FILES ${RUNTIME_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/saaug_runtime)
  install(TARGETS saaug_runtime EXPORT saaug_runtime ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT saaug_runtime NAMESPACE saaug:: FILE saaug_runtimeConfig.cmake DESTINATION ${PACKAGES}/saaug_runtime)
  install(FILES include/@NAME@.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/@NAME@)
  install(TARGETS @NAME@ EXPORT @NAME@ ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT @NAME@ NAMESPACE @NAME@:: FILE @NAME@Targets.cmake DESTINATION ${PACKAGES}/@NAME@)
  write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/@NAME@ConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES cmake/@NAME@Config.cmake ${CMAKE_CURRENT_BINARY_DIR}/@NAME@ConfigVersion.cmake
    DESTINATION ${PACKAGES}/@NAME@)
endif()
"""

_CMAKE_CONFIG = """# Read by find_package(@NAME@).
include(CMakeFindDependencyMacro)
find_dependency(saaug_runtime PATHS ${CMAKE_CURRENT_LIST_DIR}/../saaug_runtime NO_DEFAULT_PATH)
include(${CMAKE_CURRENT_LIST_DIR}/@NAME@Targets.cmake)
"""

# ---------------------------------------------------------------------------------------------------------------------
# Arduino. Everything below src is compiled, with src alone to look for headers in. The linker takes of an archive what
# is not there yet, so the runtime of the first library serves the second one.

_ARDUINO_USE = """Put this folder, named `@NAME@`, into the `libraries` folder of your sketchbook. The sketch
is in File > Examples, or, with the board's name:

```
arduino-cli compile --fqbn BOARD --library . examples/Samples
```

It is for boards of 32 bits. Arduino optimizes for size; nothing in a library changes that, `-O3` in the board's
`platform.local.txt` does: `compiler.c.extra_flags=-O3`. Several networks of one version of the exporter share the
kernels.
"""

_ARDUINO_PROPERTIES = """name=@NAME@
version=@VERSION@
author=@AUTHORS@
maintainer=@AUTHORS@
sentence=@SUMMARY@
paragraph=@NAME@_run() in @NAME@.h takes an image and gives the output; the example compares outputs with the expected ones.
category=Data Processing
url=@URL@
architectures=*
includes=@NAME@.h
dot_a_linkage=true
"""

_ARDUINO_SAY = """
#include <stdarg.h>

/* Not every board's Serial has a printf. */
static void say(const char *format, ...)
{
    char line[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    Serial.print(line);
}
"""

_ARDUINO_SETUP = """
void setup()
{
    Serial.begin(115200);
    while (!Serial && millis() < 5000) { /* a board with USB of its own waits for the computer */
    }
    say("outputs that are wrong: %d\\n", classify_samples());
}

void loop()
{
}
"""

# ---------------------------------------------------------------------------------------------------------------------
# PlatformIO. A library is an archive, as of Arduino.

_PLATFORMIO_USE = """In the platformio.ini of your project:

```
lib_deps = symlink://path/to/this/folder
```

On this computer, without a board: `pio run -d examples/samples -t exec`. The library is compiled with `-O3`. Several
networks of one version of the exporter share the kernels.
"""

_PLATFORMIO_JSON = """{
  "name": "@NAME@",
  "version": "@VERSION@",
  "description": "@SUMMARY@",
  "keywords": ["neural network", "int8", "tinyml"],
  "authors": [{"name": "@AUTHORS@", "maintainer": true}],
  "homepage": "@URL@",
  "frameworks": "*",
  "platforms": "*",
  "headers": "@NAME@.h",
  "examples": [
    {
      "name": "samples",
      "base": "examples/samples",
      "files": ["platformio.ini", "src/main.c", "src/samples.c", "src/samples.h"]
    }
  ],
  "build": {"includeDir": "include", "srcDir": "src", "libArchive": true, "flags": ["-O3"]}
}
"""

_PLATFORMIO_INI = """; pio run -t exec
[env:native]
platform = native
lib_deps = symlink://../..
"""

# ---------------------------------------------------------------------------------------------------------------------
# Zephyr. All libraries are linked whole, so the runtime is one of its own, which the second network finds made.

_ZEPHYR_USE = """This folder is a Zephyr module. List it in your west manifest, or name it where you build:

```
west build -b BOARD samples/classify
west build -b BOARD path/to/your/application -- -DEXTRA_ZEPHYR_MODULES=$PWD
```

`CONFIG_SAAUG_@UPPER@=y` in prj.conf turns the network on. It is compiled with `-O3`. Several networks of one version of
the exporter share the library saaug_runtime.
"""

_ZEPHYR_MODULE = """name: @NAME@
build:
  cmake: zephyr
  kconfig: zephyr/Kconfig
"""

_ZEPHYR_KCONFIG = """config SAAUG_@UPPER@
    bool "Network @NAME@"
    help
      @SUMMARY@
"""

_ZEPHYR_CMAKE = """if(CONFIG_SAAUG_@UPPER@)
  set(PROJECT ${CMAKE_CURRENT_LIST_DIR}/..)
  zephyr_include_directories(${PROJECT}/include)

  # The kernels and the plain operators: networks in one firmware share the first one's.
  if(NOT TARGET saaug_runtime)
    file(GLOB RUNTIME ${PROJECT}/src/saaug_*.c ${PROJECT}/src/*/saaug_*.c)
    zephyr_library_named(saaug_runtime)
    zephyr_library_sources(${RUNTIME})
    zephyr_library_compile_options(-O3)
  endif()

  zephyr_library_named(@NAME@_network)
  zephyr_library_sources(${PROJECT}/src/@NAME@.c ${PROJECT}/src/@NAME@_data.c)
  zephyr_library_compile_options(-O3)
endif()
"""

_ZEPHYR_SAMPLE_CMAKE = """cmake_minimum_required(VERSION 3.20)
list(APPEND EXTRA_ZEPHYR_MODULES ${CMAKE_CURRENT_SOURCE_DIR}/../..)
find_package(Zephyr REQUIRED HINTS $ENV{ZEPHYR_BASE})
project(@NAME@_samples C)
target_sources(app PRIVATE src/main.c src/samples.c)
"""

_ZEPHYR_SAMPLE_CONF = """CONFIG_SAAUG_@UPPER@=y
CONFIG_MAIN_STACK_SIZE=4096
"""

_ZEPHYR_MAIN = """
int main(void)
{
    printf("outputs that are wrong: %d\\n", classify_samples());
    return 0;
}
"""

# ---------------------------------------------------------------------------------------------------------------------
# ESP-IDF. A component is a target; the runtime is one more beside the first network's.

_ESP_IDF_USE = """Put this folder into the `components` folder of your project, named `@NAME@`, as which other components
require it. Or build the samples:

```
cd examples/samples && idf.py set-target esp32c3 && idf.py build flash monitor
```

It is compiled with `-O3`. Several networks of one version of the exporter share the target saaug_runtime.
"""

_ESP_IDF_CMAKE = """idf_component_register(SRCS src/@NAME@.c src/@NAME@_data.c INCLUDE_DIRS include)
target_compile_options(${COMPONENT_LIB} PRIVATE -O3)

# The kernels and the plain operators: networks in one firmware share the first one's.
if(NOT TARGET saaug_runtime)
  file(GLOB RUNTIME ${CMAKE_CURRENT_LIST_DIR}/src/saaug_*.c ${CMAKE_CURRENT_LIST_DIR}/src/*/saaug_*.c)
  add_library(saaug_runtime STATIC ${RUNTIME})
  target_include_directories(saaug_runtime PUBLIC include)
  target_compile_options(saaug_runtime PRIVATE -O3)
endif()
target_link_libraries(${COMPONENT_LIB} PUBLIC saaug_runtime)
"""

_ESP_IDF_MANIFEST = """version: "@VERSION@"
description: "@SUMMARY@"
url: "@URL@"
dependencies:
  idf: ">=5.0"
"""

_ESP_IDF_SAMPLE_CMAKE = """cmake_minimum_required(VERSION 3.16)
set(EXTRA_COMPONENT_DIRS ${CMAKE_CURRENT_LIST_DIR}/../..)
include($ENV{IDF_PATH}/tools/cmake/project.cmake)
project(@NAME@_samples)
"""

_ESP_IDF_MAIN_CMAKE = """idf_component_register(SRCS main.c samples.c)
"""

_ESP_IDF_MAIN = """
void app_main(void)
{
    printf("outputs that are wrong: %d\\n", classify_samples());
}
"""

# ---------------------------------------------------------------------------------------------------------------------

_SERVED = Entry(purpose=".", signature="static int classify_samples(void)")  # by a program's beginning that comes after
_TWO_FOLDERS = {"headers": "include", "sources": "src", "kernel_headers": "include", "kernel_sources": "src"}

LAYOUTS = {
    "plain": Layout(
        headers="",
        sources="",
        kernel_headers="kernels/include",
        kernel_sources="kernels/src",
        program="main.c",
        use=_PLAIN_USE,
        profile="compile with `-DSAAUG_PROFILE`",
        files={"CMakeLists.txt": _PLAIN_CMAKE},
    ),
    "cmake": Layout(
        **_TWO_FOLDERS,
        program="example/main.c",
        use=_CMAKE_USE,
        profile="configure with `-DCMAKE_C_FLAGS=-DSAAUG_PROFILE`",
        files={"CMakeLists.txt": _CMAKE, "cmake/@NAME@Config.cmake": _CMAKE_CONFIG},
    ),
    "arduino": Layout(
        headers="src",
        sources="src/saaug",
        kernel_headers="src",
        kernel_sources="src/saaug",
        program="examples/Samples/Samples.ino",
        use=_ARDUINO_USE,
        profile="compile with `--build-property compiler.c.extra_flags=-DSAAUG_PROFILE\n"
        "--build-property compiler.cpp.extra_flags=-DSAAUG_PROFILE`",
        files={"library.properties": _ARDUINO_PROPERTIES},
        entry=replace(
            _SERVED, before=_ARDUINO_SAY, say="say", clock="micros()", clock_header="Arduino.h", after=_ARDUINO_SETUP
        ),
    ),
    "platformio": Layout(
        **_TWO_FOLDERS,
        program="examples/samples/src/main.c",
        use=_PLATFORMIO_USE,
        profile="write `build_flags = -DSAAUG_PROFILE` into platformio.ini",
        files={"library.json": _PLATFORMIO_JSON, "examples/samples/platformio.ini": _PLATFORMIO_INI},
    ),
    "zephyr": Layout(
        **_TWO_FOLDERS,
        program="samples/classify/src/main.c",
        use=_ZEPHYR_USE,
        profile='build with `-- -DEXTRA_CFLAGS="-DSAAUG_PROFILE -DSAAUG_PROFILE_CLOCK"`',
        files={
            "zephyr/module.yml": _ZEPHYR_MODULE,
            "zephyr/CMakeLists.txt": _ZEPHYR_CMAKE,
            "zephyr/Kconfig": _ZEPHYR_KCONFIG,
            "samples/classify/CMakeLists.txt": _ZEPHYR_SAMPLE_CMAKE,
            "samples/classify/prj.conf": _ZEPHYR_SAMPLE_CONF,
        },
        entry=replace(_SERVED, clock="k_cycle_get_32()", clock_header="zephyr/kernel.h", after=_ZEPHYR_MAIN),
    ),
    "esp-idf": Layout(
        **_TWO_FOLDERS,
        program="examples/samples/main/main.c",
        use=_ESP_IDF_USE,
        profile="write `idf_build_set_property(COMPILE_DEFINITIONS SAAUG_PROFILE SAAUG_PROFILE_CLOCK APPEND)` in front of\n"
        "`project` in CMakeLists.txt",
        files={
            "CMakeLists.txt": _ESP_IDF_CMAKE,
            "idf_component.yml": _ESP_IDF_MANIFEST,
            "examples/samples/CMakeLists.txt": _ESP_IDF_SAMPLE_CMAKE,
            "examples/samples/main/CMakeLists.txt": _ESP_IDF_MAIN_CMAKE,
        },
        entry=replace(_SERVED, clock="esp_cpu_get_cycle_count()", clock_header="esp_cpu.h", after=_ESP_IDF_MAIN),
    ),
}
"""The layouts by name; "plain" is a folder with a program, for no system's library."""
