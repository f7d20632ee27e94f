"""What tests/test_device_training.py judges: runs on the JAX backend without TensorFlow, in a process of its own.

python device_program.py FOLDER
"""

import json
import pathlib
import sys

import jax
import keras
import numpy as np

from saaug_keras import backbones, datasets, device_training, recipes

SPEC = backbones.NetSpec(
    "small", (8, 8, 1), 10, backbones.StemSpec(8, strides=2), (backbones.BlockSpec(8, 16, residual=True),)
).with_operator("shift")
RECIPE = recipes.Recipe(
    "mobilenetv2-tiny",
    network=SPEC.as_dict(),
    epochs=2,
    batch_size=64,
    width=(1.0, 1.5),
    expand=(1.0, 1.5),
    width_until=0.5,
    expand_until=0.5,
    recalibrate_batches=2,
    learning_rate=0.1,
    warmup_epochs=0.5,
    label_smoothing=0.1,
    ema=0.5,
    weight_decay=1.0,
    augment_data=False,
    remap=False,
)
RUNS = [RECIPE.replace(seed=7, learning_rate=1000.0), RECIPE, RECIPE.replace(seed=1, learning_rate=0.05)]


def digits():
    whole = datasets.load("digits")
    return datasets.Dataset(
        "digits",
        whole.x_train[:320],
        whole.y_train[:320],
        whole.x_test[:30],
        whole.y_test[:30],
        whole.class_names,
        mirror=False,
    )


class Interrupted(keras.callbacks.Callback):
    """Stops before the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


class Kept(keras.callbacks.Callback):
    """Keeps the weights before training and after the first epoch."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.model.save_weights(self.out / "before.weights.h5")

    def on_train_batch_end(self, batch, logs=None):
        if not (self.out / "after.weights.h5").exists():
            self.model.save_weights(self.out / "after.weights.h5")


def side_by_side(out, data):
    """Three runs of which one diverges, stopped after an epoch and gone on with; and one of them alone."""
    outs = [out / f"run{index}" for index in range(3)]
    try:
        recipes.train_side_by_side(RUNS, data, outs, callbacks=[[], [Interrupted()], []])
    except KeyboardInterrupt:
        stopped = [path.name for path in sorted(outs[2].iterdir())]
    for written in ("checkpoint-1.weights.h5", "history.json", "manifest.json"):  # as if it had been killed before
        (outs[1] / written).unlink()
    results = recipes.train_side_by_side(RUNS, data, outs, test=True)
    alone = recipes.train(RUNS[2], data, out / "alone", test=True, device_resident=True, callbacks=[Kept(out)])
    results = [str(each) if isinstance(each, ValueError) else each for each in results]
    return {"stopped": stopped, "results": results, "alone": alone}


def bfloat16(data):
    """A direct run with activations in bfloat16, with shifted images."""
    recipe = RECIPE.replace(dtype="mixed_bfloat16", aug_loss_weight=0.0, label_smoothing=0.0)
    model = recipes.make_model(recipe, SPEC)
    model.compile(recipes.make_optimizer(recipe, 5))
    model.optimizer.build(model.trainable_variables)
    device_training.fit(
        [model],
        data.x_train,
        data.y_train,
        batch_size=64,
        epochs=2,
        seeds=[0],
        initial_epochs=[0],
        callbacks=[[]],
        augment=True,
        flip=False,
    )
    exact = recipes.make_model(recipe.replace(dtype="float32"), SPEC)
    for ours, theirs in zip(exact.variables, model.variables, strict=True):
        ours.assign(theirs)
    images = keras.ops.convert_to_tensor(data.x_test.astype("float32") / 255)
    logits = [np.asarray(jax.jit(lambda x, each=each: each.network(x))(images)) for each in (model, exact)]
    return {
        "loss": model.history.history["loss"],
        "variables": sorted({str(variable.dtype) for variable in (*model.variables, *model.optimizer.variables)}),
        "activations": str(model.network.weighted["stem"](keras.ops.cast(images, "bfloat16")).dtype),
        "logits": str(logits[0].dtype),
        "error": float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()),
    }


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    found = {"bfloat16": bfloat16(digits()), **side_by_side(folder, digits())}
    (folder / "found.json").write_text(json.dumps(found))
