"""Training on several devices: two logical CPUs, in processes of their own."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
from test_training import BLOCKS, small_spec, some_data
from saaug_keras import augment

def fit():
    keras.utils.set_random_seed(4)
    model = augment(small_spec("adder/shift/adder", blocks=BLOCKS[:2]), width=1.5, expand=1.0, remap=False)
    model.compile(keras.optimizers.SGD(0.02))
    return model.fit(*some_data(64), batch_size=32, epochs=3, shuffle=False, verbose=0).history
"""

MIRRORED = (
    PROGRAM
    + """
import tensorflow as tf
devices = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
one = fit()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    two = fit()
print(one["target_loss"], two["target_loss"], two["loss"])
for name in ("loss", "target_loss", "augmented_loss"):
    # Batch norm sees half a batch per replica: the numbers are near, not equal. A forgotten factor is not near.
    np.testing.assert_allclose(one[name], two[name], rtol=0.25)
assert two["loss"][-1] < two["loss"][0]
print("same losses")
"""
)

DATA_PARALLEL = (
    PROGRAM
    + """
import jax
assert jax.device_count() == 2
one = fit()
keras.distribution.set_distribution(keras.distribution.DataParallel())
two = fit()
# Sums in another order round a few weights to the next power of two, which grows from step to step.
np.testing.assert_allclose(one["loss"], two["loss"], rtol=5e-2)
print("same losses")
"""
)


@pytest.mark.parametrize(
    "program, environment",
    [
        pytest.param(MIRRORED, {"KERAS_BACKEND": "tensorflow"}, id="mirrored-strategy"),
        pytest.param(
            DATA_PARALLEL,
            {
                "KERAS_BACKEND": "jax",
                "JAX_PLATFORMS": "cpu",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            },
            id="jax-data-parallel",
        ),
    ],
)
def test_two_devices_train_as_one(program, environment):
    command = [sys.executable, "-c", program, os.path.dirname(os.path.abspath(__file__))]
    path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, env={**os.environ, **path, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("same losses")
