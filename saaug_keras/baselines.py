"""What a multiplication-free network is compared with: its multiplicative twin as an ordinary INT8 model.

Two ways to INT8: post-training quantization by TensorFlow Lite's converter, and quantization-aware training by TFMOT.
TFMOT knows only Keras 2 and switches TensorFlow to it when it is imported, so it runs in a process of its own:
`python -m saaug_keras.baselines FOLDER`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from saaug_keras import _validate
from saaug_keras.backbones import NetSpec, lower

METHODS = ("ptq", "qat")
_ACTIVATIONS = {"relu": None, "relu6": 6.0}


def twin_of(spec: NetSpec) -> NetSpec:
    """The multiplicative network of the same shape as what is deployed: without the blocks of depth augmentation."""
    kept = dataclasses.replace(spec, blocks=tuple(block for block in spec.blocks if block.kept))
    return kept.with_operator("conv")


def build_twin(spec: NetSpec, K):
    """The twin in a Keras namespace, `keras` or `tf_keras`; layers are named as `backbones.build` names them.

    Raises:
        ValueError: a layer that TFMOT does not quantize (squeeze-excite, hard-swish, segmentation heads).
    """
    image = K.Input(spec.input_shape, name="image")
    tensors = {"input": image}
    for layer in lower(spec):
        if layer.kind in ("multiply", "resize") or layer.activation not in (None, *_ACTIVATIONS):
            raise ValueError(
                f"baselines.build_twin: `spec` must consist of what TFMOT quantizes: convolutions, additions, pooling, "
                f"ReLU and ReLU6. Received: layer {layer.name!r} ({layer.kind}, activation {layer.activation})."
            )
        inputs = [tensors[name] for name in layer.inputs]
        window = {"strides": layer.strides, "padding": "same", "use_bias": layer.use_bias, "name": layer.name}
        window |= {"kernel_size": layer.kernel_size, "dilation_rate": layer.dilation}
        if layer.kind == "conv":
            out = K.layers.Conv2D(layer.output_shape[2], **window)(*inputs)
        elif layer.kind == "depthwise":
            out = K.layers.DepthwiseConv2D(**window)(*inputs)
        elif layer.kind == "dense":
            flat = K.layers.Flatten(name="flatten")(*inputs)
            out = K.layers.Dense(layer.output_shape[2], use_bias=layer.use_bias, name=layer.name)(flat)
        elif layer.kind == "pool":
            out = K.layers.GlobalAveragePooling2D(keepdims=True, name=layer.name)(*inputs)
        else:
            _validate.one_of("baselines.build_twin", "kind", layer.kind, ("add", "conv", "dense", "depthwise", "pool"))
            out = K.layers.Add(name=layer.name)(inputs)
        if layer.batch_norm:
            out = K.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=layer.name + "_bn")(out)
        if layer.activation:
            out = K.layers.ReLU(max_value=_ACTIVATIONS[layer.activation], name=layer.name + "_act")(out)
        tensors[layer.name] = out
    return K.Model(image, out)


def quantize_after_training(model, images) -> bytes:
    """A float model as a TensorFlow Lite model in int8, inputs and outputs too.

    Args:
        model: keras.Model.
        images: float32 (N, H, W, C), some hundred, to choose the ranges of the activations.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.representative_dataset = lambda: ([image[None]] for image in np.asarray(images, "float32"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with contextlib.redirect_stdout(io.StringIO()):  # the converter lists every variable
        return _convert(converter)


def _convert(converter) -> bytes:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def quantize_aware(
    spec: NetSpec, model, images, labels, *, epochs=3, batch_size=128, learning_rate=0.01, seed=0, timeout=None
) -> bytes:
    """The twin, trained on with TFMOT's fake quantization, as a TensorFlow Lite model in int8.

    Args:
        spec: the twin, see `twin_of`.
        model: the trained keras.Model of it; its weights are the start.
        images, labels: uint8 (N, H, W, C) of the twin's input size, and classes (N,).
        epochs, batch_size, learning_rate: of the training; the rate falls to 0 by half a cosine.
        seed: of the order.
        timeout: seconds for the process, None for no limit.
    Raises:
        ImportError: TFMOT is missing.
        RuntimeError: the process failed; its last words are in the message.
    """
    owner = "baselines.quantize_aware"
    _validate.int_in(owner, "epochs", epochs, 1, 10_000, " epochs")
    if images.dtype != np.uint8 or images.shape[1:] != tuple(spec.input_shape):
        raise ValueError(
            f"{owner}: `images` must be uint8 (N, {', '.join(map(str, spec.input_shape))}). "
            f"Received: images={images.dtype} {images.shape}."
        )
    weights = {f"{layer.name}/{index}": value for layer in model.layers for index, value in enumerate(layer.get_weights())}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        np.savez(folder / "data.npz", images=images, labels=labels)
        np.savez(folder / "weights.npz", **weights)
        options = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        (folder / "job.json").write_text(json.dumps({"spec": spec.as_dict(), **options}))
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow"}
        root = str(pathlib.Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", "saaug_keras.baselines", str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            words = done.stderr.strip().splitlines()[-1:] or ["no message"]
            if "ModuleNotFoundError" in words[0]:
                raise ImportError(f"{owner}: {words[0]}. Install tensorflow-model-optimization and tf-keras.")
            raise RuntimeError(f"{owner}: the process ended with code {done.returncode}: {words[0]}")
        return (folder / "model.tflite").read_bytes()


def run_job(folder):
    """The process of `quantize_aware`: reads job.json, data.npz and weights.npz, writes model.tflite."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    folder = pathlib.Path(folder)
    job = json.loads((folder / "job.json").read_text())
    tf_keras.utils.set_random_seed(job["seed"])
    model = build_twin(NetSpec.from_dict(job["spec"]), tf_keras)
    with np.load(folder / "weights.npz") as arrays:
        for layer in model.layers:
            layer.set_weights([arrays[f"{layer.name}/{index}"] for index in range(len(layer.get_weights()))])
    with np.load(folder / "data.npz") as arrays:
        images, labels = arrays["images"].astype("float32") / 255, arrays["labels"]
    model = tfmot.quantization.keras.quantize_model(model)
    steps = job["epochs"] * -(-len(images) // job["batch_size"])
    schedule = tf_keras.optimizers.schedules.CosineDecay(job["learning_rate"], steps)
    model.compile(
        tf_keras.optimizers.SGD(schedule, momentum=0.9), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(images, labels, epochs=job["epochs"], batch_size=job["batch_size"], verbose=0)
    (folder / "model.tflite").write_bytes(_convert(tf.lite.TFLiteConverter.from_keras_model(model)))


def classify(model: bytes, images, *, batch_size=256) -> np.ndarray:
    """Classes that an int8 TensorFlow Lite model names for float32 images in [0, 1]."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=model)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = source["quantization"]
    found = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size], "float32")
        interpreter.resize_tensor_input(source["index"], batch.shape)
        interpreter.allocate_tensors()
        stored = np.clip(np.round(batch / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], stored)
        interpreter.invoke()
        found.append(interpreter.get_tensor(target["index"]).argmax(-1))
    return np.concatenate(found)


def measure(
    spec: NetSpec,
    data,
    out,
    *,
    methods=METHODS,
    epochs=30,
    qat_epochs=3,
    batch_size=128,
    learning_rate=0.1,
    validation_fraction=0.1,
    augment_data=True,
    seed=0,
    measure_arena=None,
    callbacks=(),
) -> dict:
    """Trains the twin of a network directly and measures it as INT8.

    Args:
        spec: the network, of any operators.
        data: `datasets.Dataset`.
        out: folder; it gets the training of the twin (see `recipes.train`), twin-ptq.tflite and twin-qat.tflite.
        methods: of `METHODS`.
        epochs, batch_size, learning_rate, validation_fraction, augment_data, seed: of the training; give those of the
            network that it is compared with.
        qat_epochs: further epochs with fake quantization.
        measure_arena: function (model as bytes) -> bytes of arena, for example on the TFLite Micro wheel; None: not
            measured.
        callbacks: Keras callbacks of the training.
    Returns:
        {"float_accuracy", "parameters", "ptq": {"accuracy", "model_bytes", "activation_bytes"}, "qat": ...}; accuracies on
        the test images.
    """
    import keras

    from saaug_keras import datasets, recipes
    from saaug_keras._files import write_atomic

    for method in methods:
        _validate.one_of("baselines.measure", "methods", method, METHODS)
    out, twin = pathlib.Path(out), twin_of(spec)
    recipe = recipes.Recipe(
        backbone=twin.name,
        operator="conv",
        network=twin.as_dict(),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        aug_loss_weight=0.0,
        remap=False,
        validation_fraction=validation_fraction,
        augment_data=augment_data,
        evaluate_every=epochs,
        seed=seed,
    )
    trained = recipes.train(recipe, data, out, test=True, callbacks=callbacks)
    model = keras.models.load_model(out / "target.keras")
    (x, y), _ = data.split(validation_fraction)

    def resized(images):
        batches = datasets.pipeline(images, batch_size=256, resolution=twin.input_shape[:2])
        return np.concatenate([batch.numpy() for batch in batches])

    test = resized(data.x_test)
    result = {"float_accuracy": trained["test_accuracy"], "parameters": trained["parameters"]}
    for method in methods:
        path = out / f"twin-{method}.tflite"
        if not path.exists():
            if method == "ptq":
                quantized = quantize_after_training(model, resized(x[:256]))
            else:
                images = np.round(resized(x) * 255).astype(np.uint8)
                quantized = quantize_aware(
                    twin,
                    model,
                    images,
                    y,
                    epochs=qat_epochs,
                    batch_size=batch_size,
                    learning_rate=learning_rate / 10,
                    seed=seed,
                )
            write_atomic(path, quantized)
        quantized = path.read_bytes()
        result[method] = {
            "accuracy": float((classify(quantized, test) == data.y_test).mean()),
            "model_bytes": len(quantized),
            "activation_bytes": None if measure_arena is None else measure_arena(quantized),
        }
    return result


if __name__ == "__main__":
    run_job(sys.argv[1])
