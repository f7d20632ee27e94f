"""Training speed: direct and augmented steps for each operator, as ratios to the multiplicative twin in the same run.

    python benchmarks/training.py [--backbone mobilenetv2-tiny mcunet-in0] [--steps 20] [--json]
    python benchmarks/training.py --jax         the JAX backend alone, on its accelerator where there is one

Absolute figures are this machine's; the ratios are what to compare. A second table sets the add convolution beside
matrix multiplication, the obvious broadcast form and, where torch is installed, torch.cdist(p=1); a third sets the
activation and quantizer between two layers, fused, beside the separate operations and the memory's bound; a fourth gives the
peak memory of one training step of an add layer beside a convolution, each measured in a process of its own. With
--jax a table sets training on the device, `saaug_keras.device_training`, beside `Model.fit` fed with NumPy batches; on an
accelerator for several networks, alone and side by side. It needs no TensorFlow.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

OPERATORS = ("conv", "shift", "adder")
SHAPES = ((16384, 24, 96), (16384, 96, 24), (4096, 192, 48))  # positions, channels in, channels out


def network_rows(names, steps, batch_size):
    """Images per second of direct and augmented (width 2) training, each the median of `steps` steps."""
    import keras
    import numpy as np

    from saaug_keras import augment, backbones

    rows = []
    generator = np.random.default_rng(0)
    for name in names:
        resolution = 48 if name == "mcunet-in0" else 32
        strides = None if name == "mcunet-in0" else (1, 1, 2, 2, 2)
        images = generator.random((batch_size, resolution, resolution, 3), "float32")
        labels = generator.integers(0, 100, batch_size)
        for operator in OPERATORS:
            spec = backbones.spec(
                name, input_shape=(resolution, resolution, 3), num_classes=100, operator=operator, strides=strides
            )
            row = {"backbone": name, "resolution": resolution, "operator": operator}
            for arm, options in (
                ("direct", {"width": 1.0, "expand": 1.0, "aug_loss_weight": 0.0, "remap": False}),
                ("augmented", {"width": 2.0, "expand": 1.0}),
            ):
                keras.utils.clear_session()
                model = augment(spec, **options)
                model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
                for _ in range(3):
                    model.train_on_batch(images, labels)
                seconds = []
                for _ in range(steps):
                    started = time.perf_counter()
                    model.train_on_batch(images, labels)
                    seconds.append(time.perf_counter() - started)
                row[arm] = batch_size / statistics.median(seconds)
            rows.append(row)
    for row in rows:
        twin = next(r for r in rows if r["backbone"] == row["backbone"] and r["operator"] == "conv")
        row["step_time_to_conv"] = twin["direct"] / row["direct"]
        row["augmented_to_direct"] = row["direct"] / row["augmented"]
    return rows


def _rate(function, shape, repeats=5):
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return shape[0] * shape[1] * shape[2] / statistics.median(seconds) / 1e9


def layer_rows():
    """Billions of |x - f| (or MACs) per second, forward and backward together counted as three passes."""
    import numpy as np
    import tensorflow as tf

    from saaug_keras import ops

    rows = []
    for shape in SHAPES:
        positions, inputs, outputs = shape
        x = tf.constant(np.random.default_rng(1).standard_normal((1, positions, 1, inputs)), tf.float32)
        kernel = tf.constant(np.random.default_rng(2).standard_normal((1, 1, inputs, outputs)), tf.float32)

        def step(layer, x=x, kernel=kernel):
            @tf.function
            def gradients():
                with tf.GradientTape() as tape:
                    tape.watch((x, kernel))
                    total = tf.reduce_sum(layer(x, kernel) ** 2)
                return tape.gradient(total, (x, kernel))

            return lambda: [g.numpy() for g in gradients()]

        def broadcast(x, kernel):
            return -tf.reduce_sum(tf.abs(tf.squeeze(x, (0, 2))[:, :, None] - kernel[0, 0][None]), 1)

        row = {
            "shape": shape,
            "matmul": 3 * _rate(step(lambda x, k: tf.nn.conv2d(x, k, 1, "VALID")), shape),
            "adder": 3 * _rate(step(lambda x, k: ops.adder_conv2d(x, k, padding="valid")), shape),
            "broadcast": 3 * _rate(step(broadcast), shape, repeats=2),
        }
        row["adder_to_broadcast"] = row["adder"] / row["broadcast"]
        try:
            import torch
        except ImportError:
            torch = None
        if torch is not None:
            tx = torch.tensor(np.asarray(x).reshape(positions, inputs), requires_grad=True)
            tk = torch.tensor(np.asarray(kernel)[0, 0].T.copy(), requires_grad=True)

            def cdist(torch=torch, tx=tx, tk=tk):
                (torch.cdist(tx, tk, p=1) ** 2).sum().backward()

            row["torch_cdist"] = 3 * _rate(cdist, shape, repeats=2)
        rows.append(row)
    return rows


def fused_rows(repeats=30):
    """Milliseconds, forward and backward, of what stands between two layers: ReLU6 and the next one's quantizer as one
    loop and as two operations, alternating, beside the bound: as many passes over memory that only copy."""
    import numpy as np
    import tensorflow as tf

    from saaug_keras import ops

    rows, low, high = [], tf.constant(0.0), tf.constant(3.0)
    for shape in ((128, 16, 16, 48), (128, 16, 16, 96), (128, 8, 8, 240)):
        x = tf.constant(np.random.default_rng(3).standard_normal(shape), tf.float32)

        def gradients(function, x=x):
            @tf.function
            def step():
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    out = function(x)
                return out, tape.gradient(out, x, output_gradients=x)

            return step

        arms = {
            "fused": gradients(lambda x: ops.activate_and_quantize(x, low, high, 8, activation="relu6", fused=True)),
            "separate": gradients(lambda x: ops.fake_quantize(tf.nn.relu6(x), low, high)),
            # Forward reads and writes once; backward reads twice and writes once.
            "bound": tf.function(lambda x=x: (x + 1.0, x * x)),
        }
        seconds = {name: [] for name in arms}
        for repeat in range(repeats + 3):
            for name, function in arms.items():
                started = time.perf_counter()
                [part.numpy() for part in tf.nest.flatten(function())]
                if repeat >= 3:
                    seconds[name].append(time.perf_counter() - started)
        rows.append({"shape": shape, **{name: 1e3 * statistics.median(values) for name, values in seconds.items()}})
    return rows


def peak_memory(layer):
    """Bytes that a training step of one layer adds to the process's peak."""
    import keras
    import numpy as np

    import saaug_keras

    classes = {"conv": keras.layers.Conv2D, "adder": saaug_keras.AdderConv2D}
    model = keras.Sequential([keras.Input((64, 64, 32)), classes[layer](64, 3, padding="same")])
    model.compile("sgd", "mse")
    model.train_on_batch(np.zeros((1, 64, 64, 32), "float32"), np.zeros((1, 64, 64, 64), "float32"))
    before = _peak()
    model.train_on_batch(np.zeros((64, 64, 64, 32), "float32"), np.zeros((64, 64, 64, 64), "float32"))
    return _peak() - before


def _peak():
    """The process's largest resident memory so far. `getrusage` would count the parent's from before the exec, too."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_rows():
    """Peak memory of a step on 64 images of 64x64x32 -> 64, kernel 3x3."""
    rows = []
    for layer in ("conv", "adder"):
        done = subprocess.run([sys.executable, __file__, "--peak-memory-of", layer], capture_output=True, text=True, check=True)
        rows.append({"layer": layer, "peak_bytes": int(done.stdout.split()[-1])})
    return rows


# (backbone, operator, augmented, dtype, models side by side); mobilenetv2-tiny has 14.2 million MACs at these strides.
ON_A_CPU = [("tiny32-44k", "shift", False, "float32", 1)]
ON_AN_ACCELERATOR = [
    ("mobilenetv2-tiny", "shift", False, "float32", 1),
    ("mobilenetv2-tiny", "shift", False, "mixed_bfloat16", 1),
    ("mobilenetv2-tiny", "shift", False, "mixed_bfloat16", 8),
    ("tiny32-44k", "shift", False, "float32", 1),
    ("tiny32-44k", "shift", False, "float32", 8),
    ("tiny32-44k", "shift", True, "float32", 8),
    ("tiny32-44k", "adder", False, "float32", 8),
]


def jax_rows(steps, batch_size, epochs=5):
    """Images per second on the JAX backend: of all models together, the median of epochs of `steps` steps, that of
    compilation left out. `Model.fit` shifts and mirrors nothing."""
    import jax
    import keras
    import numpy as np

    from saaug_keras import augment, backbones, device_training

    generator = np.random.default_rng(0)
    count = steps * batch_size
    images = generator.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    labels = generator.integers(0, 100, count).astype("int32")

    class Clock(keras.callbacks.Callback):
        """Images per second of each epoch, its first step left out where steps are told one by one."""

        def __init__(self):
            super().__init__()
            self.rates = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begun, self.images = time.perf_counter(), count

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                self.begun, self.images = time.perf_counter(), count - batch_size

        def on_train_batch_end(self, batch, logs=None):
            if batch == steps - 1:
                assert np.isfinite(float(logs["loss"]))  # waits for the device
                self.rates.append(self.images / (time.perf_counter() - self.begun))

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            rows = slice(index * batch_size, (index + 1) * batch_size)
            return images[rows].astype("float32") / np.float32(255), labels[rows]

    def make(name, operator, augmented, dtype, seed):
        keras.utils.set_random_seed(seed)
        strides = (1, 1, 2, 2, 2) if name == "mobilenetv2-tiny" else None
        spec = backbones.spec(name, input_shape=(32, 32, 3), num_classes=100, operator=operator, strides=strides)
        options = {"width": 2.0} if augmented else {"width": 1.0, "aug_loss_weight": 0.0, "remap": False}
        model = augment(spec, expand=1.0, dtype=dtype, seed=seed, **options)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
        model.optimizer.build(model.trainable_variables)
        return model

    rows = []
    on_a_cpu = jax.default_backend() == "cpu"
    for name, operator, augmented, dtype, side_by_side in ON_A_CPU if on_a_cpu else ON_AN_ACCELERATOR:
        models = [make(name, operator, augmented, dtype, seed) for seed in range(side_by_side)]
        clocks, fed = [Clock() for _ in models], Clock()
        row = {"backbone": name, "operator": operator, "augmented": augmented, "dtype": dtype, "models": side_by_side}
        device_training.fit(
            models,
            images,
            labels,
            batch_size=batch_size,
            epochs=1 + epochs,
            seeds=range(side_by_side),
            initial_epochs=[0] * side_by_side,
            callbacks=[[clock] for clock in clocks],
            augment=True,
        )
        row["on_device"] = side_by_side * statistics.median(clocks[0].rates[1:])
        if side_by_side == 1:
            models[0].fit(Batches(), epochs=1 + epochs, shuffle=False, verbose=0, callbacks=[fed])
            row["fit"] = statistics.median(fed.rates[1:])
        row["device"] = jax.devices()[0].device_kind
        rows.append(row)
    return rows


def print_jax(rows):
    print("| JAX on | network | operator | dtype | models side by side | on the device, img/s | Model.fit, img/s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        operator = row["operator"] + (" augmented" if row["augmented"] else "")
        fed = f"{row['fit']:.0f}" if "fit" in row else "-"
        print(
            f"| {row['device']} | {row['backbone']} | {operator} | {row['dtype']} | {row['models']} | "
            f"{row['on_device']:.0f} | {fed} |"
        )
    if rows[0]["device"] == "cpu":
        print("\nOn a GPU: not measured yet; there was none.")


def print_fused(rows):
    print("| activation and quantizer of | fused, ms | separate, ms | bound by memory, ms | separate to fused |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {'x'.join(map(str, row['shape']))} | {row['fused']:.2f} | {row['separate']:.2f} | {row['bound']:.2f} | "
            f"{row['separate'] / row['fused']:.2f}x |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["mobilenetv2-tiny", "mcunet-in0"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jax", action="store_true", help="only training on the JAX backend")
    parser.add_argument("--fused", action="store_true", help="only the fused activation and quantizer")
    parser.add_argument("--peak-memory-of", choices=("conv", "adder"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.peak_memory_of:
        print(peak_memory(args.peak_memory_of))
        return
    if args.jax:
        os.environ["KERAS_BACKEND"] = "jax"
        rows = jax_rows(args.steps, args.batch_size)
        print(json.dumps({"jax": rows}, indent=1)) if args.json else print_jax(rows)
        return
    if args.fused:
        print_fused(fused_rows())
        return
    networks, layers, memory = network_rows(args.backbone, args.steps, args.batch_size), layer_rows(), memory_rows()
    fused = fused_rows()
    if args.json:
        print(json.dumps({"networks": networks, "layers": layers, "fused": fused, "memory": memory}, indent=1))
        return
    print("| network | operator | direct img/s | augmented img/s | step to conv's | augmented step to direct |")
    print("|---|---|---|---|---|---|")
    for row in networks:
        print(
            f"| {row['backbone']} {row['resolution']}x{row['resolution']} | {row['operator']} | {row['direct']:.0f} | "
            f"{row['augmented']:.0f} | {row['step_time_to_conv']:.2f}x | {row['augmented_to_direct']:.2f}x |"
        )
    print("\n| positions, in, out | matmul G/s | add G/s | broadcast G/s | add to broadcast | torch.cdist G/s |")
    print("|---|---|---|---|---|---|")
    for row in layers:
        cdist = f"{row['torch_cdist']:.1f}" if "torch_cdist" in row else "not installed"
        print(
            f"| {row['shape']} | {row['matmul']:.1f} | {row['adder']:.1f} | {row['broadcast']:.2f} | "
            f"{row['adder_to_broadcast']:.1f}x | {cdist} |"
        )
    print()
    print_fused(fused)
    conv, adder = (row["peak_bytes"] for row in memory)
    print(f"\nPeak memory of a training step: conv {conv / 2**20:.0f} MiB, add {adder / 2**20:.0f} MiB, {adder / conv:.2f}x.")


if __name__ == "__main__":
    main()
