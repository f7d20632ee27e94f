"""What tests/test_device_training.py judges: runs on the JAX backend without TensorFlow, in a process of its own.

python device_program.py FOLDER
"""

import json
import pathlib
import sys

sys.modules["tensorflow"] = None

import keras  # noqa: E402
import numpy as np  # noqa: E402

from saaug_keras import augment, backbones, datasets, device_training, recipes  # noqa: E402

SPEC = backbones.NetSpec(
    "small", (8, 8, 1), 10, backbones.StemSpec(8, strides=2), (backbones.BlockSpec(8, 16, residual=True),)
).with_operator("shift")  # fmt: skip
SIZE = {"batch_size": 64, "epochs": 1}
RECIPE = recipes.Recipe(
    "mobilenetv2-tiny", network=SPEC.as_dict(), epochs=2, batch_size=64, width=(1.0, 1.5), expand=(1.0, 1.5),
    recalibrate_batches=2, learning_rate=0.1, label_smoothing=0.1, ema=0.5, weight_decay=0.5,
)  # fmt: skip


def digits():
    whole = datasets.load("digits")
    return datasets.Dataset(
        "digits", whole.x_train[:320], whole.y_train[:320], whole.x_test[:100], whole.y_test[:100], whole.class_names,
        mirror=False,
    )  # fmt: skip


def model_of(dtype="float32"):
    keras.utils.set_random_seed(4)
    model = augment(SPEC, width=(1.0, 1.5), expand=(1.0, 1.5), seed=3, dtype=dtype)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


def one_epoch(model, data):
    """The logs of an epoch in the order of `epoch_order(5, 0, 320)`, without augmentation of the images."""
    device_training.fit(
        [model], data.x_train, data.y_train, seeds=[5], initial_epochs=[0], callbacks=[[]],
        validation_data=(data.x_test, data.y_test), validation_epochs=[1], **SIZE,
    )  # fmt: skip
    return {name: values[0] for name, values in model.history.history.items()}


class Interrupted(keras.callbacks.Callback):
    """Stops before the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def main(out):
    data, found = digits(), {}
    model = model_of()
    model.save_weights(out / "before.weights.h5")
    found["float32"] = one_epoch(model, data)
    model.save_weights(out / "after.weights.h5")
    half = model_of("mixed_bfloat16")
    found["bfloat16"] = one_epoch(half, data)
    found["dtypes"] = sorted({str(variable.dtype) for variable in (*half.variables, *half.optimizer.variables)})
    images = keras.ops.cast(data.x_test[:2], "bfloat16")
    found["activations"] = str(half.network.weighted["stem"](images, filters=8).dtype)

    runs = [RECIPE.replace(seed=7, learning_rate=1000.0), RECIPE, RECIPE.replace(seed=1, learning_rate=0.05)]
    outs = [out / f"run{index}" for index in range(3)]
    try:
        recipes.train_side_by_side(runs, data, outs, callbacks=[[], [Interrupted()], []])
    except KeyboardInterrupt:
        found["interrupted"] = [path.name for path in sorted(outs[2].iterdir())]
    (outs[1] / "checkpoint-1.weights.h5").unlink()  # as if the kill had come before this one was written
    results = recipes.train_side_by_side(runs, data, outs, test=True)
    found["results"] = [str(each) if isinstance(each, ValueError) else each for each in results]
    found["alone"] = recipes.train(runs[2], data, out / "alone", test=True, device_resident=True)
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
