"""What every layer of the project keeps to."""

import keras
import numpy as np


def array(tensor):
    """A tensor or variable as a NumPy array of its own."""
    return np.array(keras.ops.convert_to_numpy(tensor))


def random_inputs(shape, seed=5):
    return np.random.default_rng(seed).normal(0.3, 1.0, shape).astype("float32")


def assert_layer_contract(cls, kwargs, input_shape, tmp_path, *, call=None, has_weights=True):
    """Symbolic and eager shapes agree; config, .keras and .weights.h5 give back outputs and weights; every trainable
    weight moves; mixed_float16 computes nearly the same."""
    call = call or {}
    inputs = random_inputs(input_shape)
    layer = cls(**kwargs)
    eager = layer(inputs, training=True, **call)
    eager = layer(inputs, **call)

    # Shapes, with the batch unknown.
    symbolic_in = keras.Input(input_shape[1:])
    model = keras.Model(symbolic_in, layer(symbolic_in, **call))
    assert model.output.shape == (None, *eager.shape[1:])
    assert keras.backend.standardize_dtype(model.output.dtype) == keras.backend.standardize_dtype(eager.dtype)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), array(eager), rtol=1e-4, atol=1e-4)

    # Round trips: of the configuration, of all weights, of the whole model.
    twin = cls.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    twin.build(input_shape)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(array(twin(inputs, **call)), array(eager))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    _assert_same(model, loaded, inputs)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh_in = keras.Input(input_shape[1:])
    fresh = keras.Model(fresh_in, cls.from_config(layer.get_config())(fresh_in, **call))
    fresh.load_weights(tmp_path / "model.weights.h5")
    _assert_same(model, fresh, inputs)

    # Training moves all that is trainable.
    before = [array(weight) for weight in layer.trainable_weights]
    assert bool(before) == has_weights
    if has_weights:
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        model.fit(inputs, random_inputs(eager.shape, 6), batch_size=len(inputs), verbose=0)
    for old, weight in zip(before, layer.trainable_weights, strict=True):
        assert np.abs(old - array(weight)).max() > 0, weight.path

    # Mixed precision: weights in float32, outputs in float16.
    mixed = cls.from_config({**layer.get_config(), "dtype": "mixed_float16"})
    mixed.build(input_shape)
    mixed.set_weights(layer.get_weights())
    out = mixed(inputs, **call)
    assert keras.backend.standardize_dtype(out.dtype) == "float16"
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in mixed.weights} <= {"float32", "int32"}
    full = array(layer(inputs, **call))
    # A value near a step of the grid may fall on its other side: most outputs, not all, agree closely.
    assert np.median(np.abs(array(out).astype("float32") - full)) < 0.02 * (np.abs(full).max() + 1e-3)


def _assert_same(first, second, inputs):
    assert [weight.path.split("/")[-1] for weight in first.weights] == [weight.path.split("/")[-1] for weight in second.weights]
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.predict(inputs, verbose=0), second.predict(inputs, verbose=0))


def gradients(function, *values):
    """(output, gradients of sum(output * upstream) to each value, upstream) on the backend at hand.

    `function` takes tensors or, for layers, reads Keras variables among `values`.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        watched = [value.value if hasattr(value, "assign") else tf.constant(value) for value in values]
        with tf.GradientTape() as tape:
            tape.watch([value for value in watched if not isinstance(value, tf.Variable)])
            output = function(*watched)
            upstream = random_inputs(output.shape, 7)
            total = tf.reduce_sum(tf.cast(output, "float32") * upstream)
        found = tape.gradient(total, watched)
        return array(output), [array(g) for g in found], upstream

    import jax

    variables = [value for value in values if hasattr(value, "assign")]

    def run(*args):
        assigned = [(v, a) for v, a in zip(values, args, strict=True) if hasattr(v, "assign")]
        if not variables:
            return function(*args)
        with keras.StatelessScope(assigned):
            return function(*args)

    arrays = [value.value if hasattr(value, "assign") else jax.numpy.asarray(value) for value in values]
    output, pull = jax.vjp(run, *arrays)
    upstream = random_inputs(output.shape, 7)
    found = pull(jax.numpy.asarray(upstream).astype(output.dtype))
    return array(output), [array(g) for g in found], upstream
