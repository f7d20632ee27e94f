"""Shows damaged .tflite files to `tflm_export.Interpreter`: each must run, or be refused by a ValueError.

    python tests/fuzz_tflite.py --mutants 20000

exports small models with every operator in both flavours, damages them where their structure is (fields, tables of
fields, lengths, offsets, elements, option records) and as files (flipped, cut, grown), and runs each in a process that
may die. Prints how many mutants met which end; status 0 if every end was a good one.
"""

import argparse
import collections
import ctypes
import functools
import json
import pathlib
import select
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # the checkout's package, installed or not

from tflm_export import checking, native, runner  # noqa: E402

SECONDS = 30  # a mutant that takes longer hangs
GOOD = ("ran", "refused by the check", "refused by TFLite Micro")


# ---------------------------------------------------------------------------------------------------------------------
# The sound models


def write_models(folder):
    """Files of small models: together every operator that export writes."""
    import keras
    from export_models import images_like, settle

    import tflm_export
    from saaug_keras import layers as ours
    from tflm_export import flatbuffer

    layers = keras.layers
    keras.utils.set_random_seed(5)

    def save(name, model, flavour, images, **options):
        network = tflm_export.compile_network(model, images, flavour=flavour, **options)
        (folder / f"{name}.tflite").write_bytes(flatbuffer.write(network))

    image = keras.Input((7, 6, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu6")(layers.ZeroPadding2D(((1, 0), (2, 1)))(image))
    y = layers.DepthwiseConv2D((3, 2), padding="same", activation="relu")(x)
    x = layers.Add()([x, layers.Activation("hard_swish")(y)])
    gate = layers.Conv2D(4, 1, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, gate])
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.AveragePooling2D(2)(layers.MaxPooling2D(3, strides=1, padding="same")(x))
    x = layers.Concatenate()([layers.LeakyReLU(0.2)(x), layers.Conv2D(4, 1, activation="silu")(x), x])
    x = layers.Reshape((2, -1, 4))(x)
    x = layers.Softmax()(layers.Dense(3)(layers.Flatten()(x)))
    model, images = keras.Model(image, x), images_like((7, 6, 3), 4)
    settle(model, images)
    save("products", model, "builtin", images)

    image = keras.Input((6, 5, 3))
    x = ours.ShiftConv2D(5, 3, strides=2, padding="same", activation="relu6")(image)
    x = ours.ShiftDepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = ours.ChannelShift2D((3, 2))(x)
    model = keras.Model(image, ours.ShiftDense(3)(layers.GlobalAveragePooling2D()(x)))
    images = images_like((6, 5, 3), 4)
    settle(model, images)
    save("shift-builtin", model, "builtin", images)
    save("shift", model, "custom", images)
    save("shift-power-of-two", model, "custom", images, requantization="power-of-two")

    x = layers.BatchNormalization()(ours.AdderConv2D(4, (3, 2), padding="same")(image))
    x = layers.BatchNormalization()(ours.AdderDepthwiseConv2D(3, strides=2, padding="same")(x))
    x = ours.ShiftConv2D(3, 1, weight_bits=5)(x)
    model = keras.Model(image, ours.ShiftDense(4)(layers.Flatten()(x)))
    settle(model, images)
    save("adder", model, "custom", images)


def read_models(folder):
    """The models of a folder, in the order of their names."""
    return [path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*.tflite"))]


# ---------------------------------------------------------------------------------------------------------------------
# Damages


class _Places(checking._File):
    """Walks a sound file and notes where its numbers are: what -> [(place, struct letter)]."""

    def __init__(self, data):
        super().__init__(data)
        self.found = collections.defaultdict(list)
        self.root()
        self.found = {what: places for what, places in self.found.items() if places}

    def number(self, letter, place, what):
        self.found[what, letter].append((place, letter))
        return super().number(letter, place, what)

    def field(self, schema, place, what):
        value = super().field(schema, place, what)
        if isinstance(schema, list) and value is not None:
            start = self.vector(place, value.dtype.itemsize, what)[0]
            for index in range(min(len(value), 64)):
                self.found[f"elements of {what}", schema[0]].append((start + index * value.dtype.itemsize, schema[0]))
        return value

    def table(self, kind, place):
        values = super().table(kind, place)
        fields = place - int.from_bytes(self.data[place : place + 4], "little", signed=True)
        length = int.from_bytes(self.data[fields : fields + 2], "little")
        self.found[f"fields of {kind}", "H"].extend((fields + entry, "H") for entry in range(4, length, 2))
        return values


_WIDTHS = {"b": 1, "B": 1, "?": 1, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8}
_WHOLE = (0, 1, 2, 3, 4, 7, 8, 9, 16, 32, 100, 127, 128, 255, 256, 4095, 32767, 65535, 65536, 2**31 - 1, -1, -2, -128, -(2**31))
_REAL = (0.0, -0.0, 1.0, -1.0, np.nan, np.inf, 1e-45, 1e-38, 1e-20, 1e-8, 1e-4, 100.0, 1e8, 1e20, 3e38)


class Mutator:
    """Mutant number n of some sound models: `make(n)` is the same bytes every time."""

    def __init__(self, models, seed):
        self.models, self.seed = models, seed
        self.places = [_Places(model).found for model in models]

    def make(self, number):
        rng = np.random.default_rng([self.seed, number])
        which = number % len(self.models)
        data = bytearray(self.models[which])
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            self.damage(rng, data, self.places[which])
        return bytes(data)

    def damage(self, rng, data, places):
        kind = rng.random()
        if kind < 0.62:
            self.write(rng, data, *self.pick(rng, places))
        elif kind < 0.74:  # one number over another of its kind, or the two exchanged
            what = sorted(places)[rng.integers(len(places))]
            (one, letter), (other, _) = (places[what][i] for i in rng.integers(len(places[what]), size=2))
            width = _WIDTHS[letter]
            values = bytes(data[one : one + width]), bytes(data[other : other + width])
            if rng.random() < 0.5:
                data[one : one + width] = values[1]
            data[other : other + width] = values[0]
        elif kind < 0.80:  # a size everywhere, or in many places: shapes that fit each other
            shapes = next(found for (what, _), found in places.items() if what == "elements of field 0 of a table (tensor)")
            old = data[(place := shapes[rng.integers(len(shapes))][0]) : place + 4]
            new = int(rng.choice([0, 1, 2, 3, 5, 64, 255, 70000])).to_bytes(4, "little")
            share = rng.choice([0.5, 1.0])
            for place, _ in shapes:
                if data[place : place + 4] == old and rng.random() < share:
                    data[place : place + 4] = new
        elif kind < 0.90 and data:
            at = rng.integers(len(data))
            data[at] ^= 1 << int(rng.integers(8))
        elif kind < 0.94:
            del data[rng.integers(len(data) + 1) :]
        else:  # bytes inserted, taken away, or added behind
            at, count = int(rng.integers(len(data) + 1)), int(rng.choice([1, 2, 4, 8, 16]))
            if kind < 0.96:
                data[at:at] = rng.bytes(count)
            elif kind < 0.98:
                del data[at : at + count]
            else:
                data.extend(rng.bytes(count))

    def pick(self, rng, places):
        what = sorted(places)[rng.integers(len(places))]  # every kind of place alike, however many there are
        return places[what][rng.integers(len(places[what]))]

    def write(self, rng, data, place, letter):
        width = _WIDTHS[letter]
        old = bytes(data[place : place + width])
        way = rng.random()
        if letter == "f" and way < 0.8:
            new = np.float32(_REAL[rng.integers(len(_REAL))]).tobytes()
        elif way < 0.4:
            new = (_WHOLE[rng.integers(len(_WHOLE))] % 256**width).to_bytes(width, "little")
        elif way < 0.8:
            new = ((int.from_bytes(old, "little") + int(rng.integers(-4, 5))) % 256**width).to_bytes(width, "little")
        else:
            new = rng.bytes(width)
        data[place : place + width] = new


# ---------------------------------------------------------------------------------------------------------------------
# Running them


def meet(data, keep_tensors):
    """The end of one mutant, in words."""
    try:
        checked = checking.read_model(data)
    except ValueError:
        checked = None
    try:
        interpreter = runner.Interpreter(data, keep_tensors=keep_tensors)
        image = np.random.default_rng(1).integers(-128, 128, interpreter.input_shape).astype("int8")
        output = interpreter.run(image[np.newaxis])
        assert output.shape == (1, *interpreter.output_shape)
        if keep_tensors:
            interpreter.tensors(image)
        return "ran"
    except ValueError as error:
        if "tflm_export" not in str(error):
            return f"foreign ValueError: {error}"
        return "refused by TFLite Micro" if checked else "refused by the check"
    except Exception as error:  # what must not happen, counted
        return f"foreign {type(error).__name__}: {error}"


@functools.cache
def c_check():
    """saaug_check_model of the firmware as a function of bytes, or None without a compiler."""
    try:
        library = ctypes.CDLL(str(native.build((native.KERNELS / "tflm" / "saaug_model.c",))))
    except FileNotFoundError:
        return None
    library.saaug_check_model.restype = ctypes.c_char_p
    return lambda data: library.saaug_check_model(data, ctypes.c_size_t(len(data)), None)


def work(folder, seed, first, last):
    """In a process of its own: a line when a mutant begins, a line when it has ended."""
    mutator, check = Mutator(read_models(folder), seed), c_check()
    for number in range(first, last):
        data = mutator.make(number)
        accepted = check is not None and check(data) is None
        print(json.dumps([number, accepted]), flush=True)
        print(json.dumps(meet(data, keep_tensors=number // len(mutator.models) % 2 == 1)), flush=True)


def fuzz(folder, mutants, seed, report=lambda done, ends: None):
    """Ends of mutants: (Counter of ends, Counter of (end, whether the C check accepts), {number: a bad end})."""
    ends, checks, bad, number = collections.Counter(), collections.Counter(), {}, 0
    while number < mutants:
        last = min(number + 1000, mutants)
        command = [sys.executable, str(HERE / "fuzz_tflite.py"), "--work", str(folder), str(seed), str(number), str(last)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        for number in range(number, last):  # noqa: B020
            begun, end = _line(process), None
            if begun is not None:
                end = _line(process)
            if end is None:
                died = process.poll()
                process.kill()
                end = "hang" if died is None and process.wait() == -9 and _line.late else f"died: status {process.wait()}"
            ends[end.split(":")[0] if end.startswith("foreign") else end] += 1
            checks[end, begun is not None and begun[1]] += 1
            if end not in GOOD:
                bad[number] = end
            if end not in GOOD and not end.startswith("foreign"):
                break
        number += 1
        process.kill()
        process.wait()
        process.stdout.close()
        report(number, ends)
    return ends, checks, bad


def _line(process):
    """The next line of a worker, or None where it died or hangs (`_line.late`)."""
    _line.late, text, end = False, b"", time.monotonic() + SECONDS
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
        if not ready:
            _line.late = True
            return None
        more = process.stdout.readline()
        if not more:
            return None
        text += more
    return json.loads(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000, help="damaged files to show (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the damages (default: %(default)s)")
    parser.add_argument("--models", metavar="DIR", help="sound models to damage (default: made anew)")
    parser.add_argument("--keep", metavar="DIR", help="where mutants of a bad end are written")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        folder, *numbers = arguments.work
        work(folder, *map(int, numbers))
        return 0

    def report(done, ends):
        print(f"{done} of {arguments.mutants}: {dict(ends)}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(arguments.models or directory)
        if not arguments.models:
            write_models(folder)
        _, checks, bad = fuzz(folder, arguments.mutants, arguments.seed, report)
        mutator = Mutator(read_models(folder), arguments.seed)
        for number, end in bad.items():
            print(f"mutant {number}: {end}")
            if arguments.keep:
                (pathlib.Path(arguments.keep) / f"{number}.tflite").write_bytes(mutator.make(number))
    for (end, accepted), count in sorted(checks.items()):
        print(f"{count:6} {end}{', the C check accepts it' if accepted else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
