"""What an export reports: bytes, operations, accuracy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from dataclasses import dataclass

import numpy as np

from saaug_keras import _validate
from saaug_keras.memory import CORES
from tflm_export import reference
from tflm_export.quantize import Network

_NOT_COUNTED = ("channel_shift", "concatenate", "max_pool", "pad", "reshape", "sigmoid", "softmax")  # kinds of ops
_HALF = 1 << 30  # the Q31 multiplier of a power of two


@dataclass(frozen=True)
class Report:
    """The figures of one export. Bytes are bytes; accuracies are fractions of the evaluated images.

    Args:
        name, flavour, target, requantization: what was exported, and how.
        model_file: the .tflite; of target "c" the file of the network's constants. Relative to the output folder.
        model_sha256: of the model file, in hexadecimal; see `check_model`.
        parameters: weights and biases.
        weight_bytes: packed weights. constant_bytes: weights, biases and parameters together.
        core: which flash and RAM are counted for.
        flash_bytes, ram_bytes: everything that the network takes of them; see `saaug_keras.memory`. None where nothing is
            known of TFLite Micro on that core.
        memory: these two with their parts, a `saaug_keras.memory.Memory` as plain data.
        model_bytes: the model file for TFLite Micro, which target "c" does not have.
        activation_bytes: activations as TFLite Micro places them, the same on a device but for networks of a few KB, where
            this host needs more while it plans; None without the tflite-micro wheel.
        scratch_bytes: of our kernels, by version of them, the hungriest layer's; TFLite Micro places it beside the
            activations. None for the builtin flavour and without a C compiler.
        plan_bytes: of the static arena of target "c", scratch included, by version of the kernels; else None.
        arena_tail_host_bytes: TFLite Micro's own records on this 64-bit host.
        operations: of one inference; see `count_operations`.
        images: how many were evaluated; 0 without labelled data.
        float_accuracy, tflm_accuracy: of the Keras model and of the exported one.
        agreement: share of images on which both name the same class.
        int8_accuracy_q31: of the same network with ordinary requantization, where `requantization` is "power-of-two".
        notes: where the exported network deviates from the Keras model, in words.
        files: what was written, relative to the output folder.
    """

    name: str
    flavour: str
    target: str
    requantization: str
    model_file: str
    model_sha256: str
    parameters: int
    weight_bytes: int
    constant_bytes: int
    core: str
    flash_bytes: int | None
    ram_bytes: int | None
    memory: dict | None
    model_bytes: int
    activation_bytes: int | None
    scratch_bytes: dict[str, int] | None
    plan_bytes: dict[str, int] | None
    arena_tail_host_bytes: int | None
    operations: dict[str, int]
    images: int = 0
    float_accuracy: float | None = None
    tflm_accuracy: float | None = None
    agreement: float | None = None
    int8_accuracy_q31: float | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        return dataclasses.asdict(self) | {"notes": list(self.notes), "files": list(self.files)}

    def __str__(self):
        rows = [
            ("model", f"{self.name}, {self.flavour} operators, target {self.target}, {self.requantization}"),
            ("parameters", f"{self.parameters:,}"),
            ("weights", f"{self.weight_bytes:,} bytes"),
        ]
        if self.memory:
            title = CORES[self.core].title
            for what, size in (("flash", self.flash_bytes), ("RAM", self.ram_bytes)):
                parts = ", ".join(f"{name} {part:,}" for name, part in self.memory[what.lower()].items())
                rows.append((f"{what}, {title}", f"{size:,} bytes, {self.memory['how']}: {parts}"))
        if self.target != "c":
            rows += [
                ("model file", f"{self.model_bytes:,} bytes"),
                ("activations", "not measured" if self.activation_bytes is None else f"{self.activation_bytes:,} bytes"),
            ]
        for label, sizes in (("scratch", self.scratch_bytes), ("static arena", self.plan_bytes)):
            if sizes:
                rows.append((label, ", ".join(f"{size:,} ({version})" for version, size in sizes.items()) + " bytes"))
        rows += [(f"per inference, {key.replace('_', ' ')}", f"{count:,}") for key, count in self.operations.items()]
        if self.images:
            rows += [
                ("accuracy, float", f"{self.float_accuracy:.4f} of {self.images:,} images"),
                ("accuracy, int8", f"{self.tflm_accuracy:.4f}"),
                ("same class in both", f"{self.agreement:.4f}"),
            ]
        if self.int8_accuracy_q31 is not None:
            rows.append(("accuracy, int8, Q31 requantization", f"{self.int8_accuracy_q31:.4f}"))
        rows += [("note", note) for note in self.notes]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def check_model(path):
    """Refuses a model file that is not the one which the report beside it was written for.

    Args:
        path: the model file; without a report beside it that names it, there is nothing to check.
    Raises:
        ValueError: another model than the report's; or a report that is damaged.
    """
    path = pathlib.Path(path)
    file = path.parent / "report.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"tflm_export: {file} must be JSON. Received: {error}. Export again.") from error
    if not isinstance(found, dict) or found.get("model_file") != path.name:
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if found.get("model_sha256") != digest:
        raise ValueError(
            f"tflm_export: {path} must be the model that {file.name} beside it tells of, SHA-256 "
            f"{str(found.get('model_sha256'))[:12]}. Received: {digest[:12]}. Export again, or remove the report."
        )


def count_macs(step) -> int:
    """Taps of a step with weights: products, shifts or differences, each with its addition. Of others 0.

    Taps on padding count as taps.
    """
    if step.constants is None:
        return 0
    weights = step.constants.weights
    return int(np.prod(step.output.shape)) // len(weights) * weights.size


def count_operations(network: Network) -> dict[str, int]:
    """Operations of one inference.

    Returns:
        multiplications: of weights and activations. shifts: one per tap of a shift layer whose weight is not 0.
        additions: accumulations, of every kind of layer. differences: |x - w|, one per tap of an add layer.
        requantizations: multiplications by a Q31 scale, one per output (three in an addition of tensors). Scales whose
        ratio is a power of two need none; TFLite Micro's own kernels multiply there all the same.
        Taps on padding count as taps.
    """
    counts = dict.fromkeys(("multiplications", "shifts", "additions", "differences", "requantizations"), 0)
    for step in network.steps:
        size, kind = int(np.prod(step.output.shape)), step.op.kind
        if step.constants is not None:
            weights = step.constants.weights
            positions = size // len(weights)
            for name, count in step.constants.operator.count(weights, positions).items():
                counts[name] += count
            counts["requantizations"] += 0 if step.constants.power_of_two else size
        elif kind == "add":
            counts["additions"] += size
            counts["requantizations"] += size * sum(multiplier != _HALF for multiplier, _ in reference.add_scales(step))
        elif kind == "multiply":
            counts["multiplications"] += size
            counts["requantizations"] += size
        elif kind == "mean":
            source = step.inputs[0]
            counts["additions"] += int(np.prod(source.shape))
            positions = source.shape[0] * source.shape[1]
            multiplier, _ = reference.mean_multiplier(source.scale, step.output.scale, positions)
            counts["requantizations"] += size * (multiplier != _HALF)
        elif kind == "average_pool":
            counts["additions"] += size * step.op.kernel_size[0] * step.op.kernel_size[1]
        elif kind == "resize":
            counts["multiplications"] += 8 * size
            counts["additions"] += 3 * size
        elif kind == "leaky_relu":
            counts["requantizations"] += size
        elif kind == "hard_swish":
            counts["multiplications"] += size
            counts["requantizations"] += 2 * size
        else:
            _validate.one_of("tflm_export.report", "kind", kind, _NOT_COUNTED)
    return counts
