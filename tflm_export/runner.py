"""Runs a .tflite model on the real TFLite Micro: the interpreter of the tflite-micro wheel, with our operators."""

from __future__ import annotations

import ctypes
import functools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass

import numpy as np

from tflm_export import checking, ends, native

_ACCESSORS = (  # mangled with the types in the global namespace, and in tflite::micro
    (
        "_ZN6tflite5micro12GetEvalInputEPK13TfLiteContextPK10TfLiteNodei",
        "_ZN6tflite5micro12GetEvalInputEPKNS0_13TfLiteContextEPKNS0_10TfLiteNodeEi",
    ),
    (
        "_ZN6tflite5micro13GetEvalOutputEPK13TfLiteContextPK10TfLiteNodei",
        "_ZN6tflite5micro13GetEvalOutputEPKNS0_13TfLiteContextEPKNS0_10TfLiteNodeEi",
    ),
)
_REGISTERER = "saaug_wheel_register"


def require_wheel():
    """The wheel's runtime module.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        raise ImportError(
            "tflm_export.runner: running a model needs the tflite-micro wheel: pip install 'saaug-keras[run]'."
        ) from error
    return runtime


def _load_glue(library):
    """Gives our operators the wheel's accessors, and the wheel our operators; both stay loaded."""
    from tflite_micro.python.tflite_micro import _runtime

    wheel = ctypes.CDLL(_runtime.__file__)
    glue = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    addresses = []
    for spellings in _ACCESSORS:
        found = [name for name in spellings if hasattr(wheel, name)]
        if not found:
            raise ImportError(
                "tflm_export.runner: this tflite-micro wheel does not export GetEvalInput and GetEvalOutput; install "
                "the one that saaug-keras[run] names."
            )
        addresses.append(ctypes.cast(getattr(wheel, found[0]), ctypes.c_void_p))
    glue.saaug_wheel_set_accessors(*addresses)
    return glue


@functools.cache
def _glue():
    return _load_glue(native.build((native.WHEEL_GLUE,)))


def read_schema(model: bytes):
    """The model as objects of the schema that comes with the wheel.

    Raises:
        ValueError: not a TFLite flatbuffer.
    """
    require_wheel()
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    if len(model) < 8 or model[4:8] != b"TFL3":
        raise ValueError("tflm_export.runner: `model` must be a .tflite flatbuffer (bytes 4..8 are TFL3).")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))


@dataclass(frozen=True)
class Arena:
    """Bytes that TFLite Micro allocates. `head`: activations and scratch, the same on a device. `tail`: its own records
    on this 64-bit host; on a 32-bit device they are smaller."""

    head: int
    tail: int


class Interpreter:
    """A loaded model: one that `export` wrote, or another of the same operators. Threads may share it.

    Args:
        model: bytes, or the path of a .tflite file.
        keep_tensors: no memory is shared between tensors, so that `tensors` can read them all.
    Raises:
        ImportError: no tflite-micro wheel. ValueError: a model that it cannot run. FileNotFoundError: no such file, or
        a custom model and no C compiler.
    """

    def __init__(self, model, *, keep_tensors=False):
        runtime = require_wheel()
        self.model = model if isinstance(model, bytes) else pathlib.Path(model).read_bytes()
        self._checked = checking.read_model(self.model)
        self.custom = self._checked.custom
        if self.custom:
            _glue()
        config = runtime.InterpreterConfig
        try:
            self._interpreter = runtime.Interpreter.from_bytes(
                self.model,
                custom_op_registerers=[_REGISTERER] if self.custom else [],
                arena_size=_arena_bound([t.bytes for t in self._checked.tensors], len(self._checked.operators)),
                intrepreter_config=config.kPreserveAllTensors if keep_tensors else config.kAllocationRecording,
            )
        except RuntimeError as error:
            raise ValueError(f"tflm_export.runner: TFLite Micro refused the model: {error}") from error
        self.keep_tensors = keep_tensors
        self._lock = threading.Lock()  # TFLite Micro has one set of tensors, and lets go of Python while it runs
        source, output = self._checked.input, self._checked.output
        self.input_shape, self.output_shape = source.shape[1:], output.shape[1:]
        self.input_scale, self.input_zero_point = source.scale, source.zero_point
        self.output_scale, self.output_zero_point = output.scale, output.zero_point

    def quantize(self, images):
        """int8 of images: integers are pixels, whose 0 to 255 span the model's input range; floats are in the units of
        training; int8 is stored already."""
        images = np.asarray(images)
        if images.ndim != len(self.input_shape) + 1 or images.shape[1:] != self.input_shape:
            raise ValueError(
                f"tflm_export.runner: `images` must have shape (N, {', '.join(map(str, self.input_shape))}). Received: "
                f"{images.shape}."
            )
        return ends.to_stored(images, self.input_scale, self.input_zero_point, owner="tflm_export.runner", name="images")

    def run(self, images):
        """int8 outputs (N, ...) of images (N, H, W, C)."""
        rows = [self._one(image) for image in self.quantize(images)]
        return np.array(rows, "int8").reshape(-1, *self.output_shape)

    def _one(self, image):
        with self._lock:
            self._invoke(image)
            return np.array(self._interpreter.get_output(0)).reshape(self.output_shape)

    def _invoke(self, image):
        try:
            self._interpreter.set_input(image[None], 0)
            self._interpreter.invoke()
        except RuntimeError as error:
            raise ValueError(f"tflm_export.runner: TFLite Micro could not run the model: {error}") from error

    def classify(self, images):
        """The class of every image (N,), or of every pixel (N, H, W). A single output is a logit, class 1 above 0, or a
        probability, class 1 above one half."""
        return ends.classes_of(self.run(images), self.output_scale, self.output_zero_point)

    def tensors(self, image) -> dict[str, np.ndarray]:
        """Every activation of one image (H, W, C): tensor name -> int8, without the batch."""
        assert self.keep_tensors, "made without keep_tensors"
        stored = self.quantize(np.asarray(image)[None])[0]
        values = {}
        with self._lock:
            self._invoke(stored)
            for tensor in self._checked.tensors:
                if tensor.data is None:
                    data = self._interpreter.GetTensor(tensor.index, 0)["tensor_data"]
                    values[tensor.name] = np.array(data).reshape(tensor.shape[1:])
        return values


def _arena_bound(tensor_bytes, operators):
    """More bytes than any plan of the arena takes."""
    total = sum(tensor_bytes) + 64 * len(tensor_bytes)
    return 2 * total + 4096 * (len(tensor_bytes) + operators) + (1 << 20)


_PROBE = """
import json, sys
from tflite_micro.python.tflite_micro import runtime
model, registerers, arena = open(sys.argv[1], "rb").read(), json.loads(sys.argv[2]), int(sys.argv[3])
if registerers:
    sys.path.insert(0, sys.argv[4])
    from tflm_export import runner
    runner._load_glue(sys.argv[5])
import numpy
interpreter = runtime.Interpreter.from_bytes(model, custom_op_registerers=registerers, arena_size=arena)
shape = interpreter.get_input_details(0)["shape"]
interpreter.set_input(numpy.zeros(shape, "int8"), 0)
interpreter.invoke()
interpreter.print_allocations()
"""


def measure_arena(model: bytes) -> Arena:
    """The arena as TFLite Micro allocates it, in a process of its own: the wheel prints it on file descriptor 2.

    Raises:
        RuntimeError: the process failed; the message holds its output.
    """
    schema = read_schema(model)
    subgraph = schema.subgraphs[0]
    sizes = [int(np.prod(tensor.shape)) * (4 if tensor.type == 2 else 1) for tensor in subgraph.tensors]
    custom = any(code.customCode for code in schema.operatorCodes)
    library = native.build((native.WHEEL_GLUE,)) if custom else ""
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(model)
        file.flush()
        arguments = [
            file.name,
            json.dumps([_REGISTERER] if custom else []),
            str(_arena_bound(sizes, len(subgraph.operators))),
            str(pathlib.Path(__file__).resolve().parents[1]),
            str(library),
        ]
        done = subprocess.run([sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=False)
    found = {key: int(size) for key, size in re.findall(r"Arena allocation (head|tail) (\d+) bytes", done.stderr)}
    if done.returncode != 0 or set(found) != {"head", "tail"}:
        said = done.stderr.strip()[-2000:] or f"its process ended with status {done.returncode}, without a word"
        try:
            checking.read_model(model)
        except ValueError as error:  # why, where TFLite Micro ends the process in silence
            said = f"{said}\n{error}"
        raise RuntimeError(f"tflm_export.runner: TFLite Micro could not run the model:\n{said}")
    return Arena(found["head"], found["tail"])
