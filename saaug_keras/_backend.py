"""What differs between Keras's backends. The one module that asks which of them it is."""

from __future__ import annotations

import functools
import sys


def name() -> str:
    """The backend's name: "tensorflow" or "jax", for what this package trains."""
    import keras

    return keras.backend.backend()


def need(owner: str, *names: str, why: str = "") -> str:
    """The backend's name, where it is one of `names`.

    Raises:
        ValueError: it is another.
    """
    must = " or ".join(map(repr, names)) + (f" ({why})" if why else "")
    if name() not in names:
        raise ValueError(
            f"{owner}: the Keras backend must be {must}. Received: {name()!r}. Set KERAS_BACKEND before Keras is imported."
        )
    return name()


def portable(function):
    """`function`, for which a backend may have a way of its own: `@function.on("tensorflow")` before the other's body.

    Both take the same arguments and give the same; the other one may call `function.anywhere`, as for shapes that it
    cannot take.
    """
    own = {}

    @functools.wraps(function)
    def call(*args, **options):
        return own.get(name(), function)(*args, **options)

    def on(backend):
        def keep(other):
            own[backend] = other
            return other

        return keep

    call.on, call.anywhere = on, function
    return call


# What a backend can


def has_sizes_at_run_time() -> bool:
    """Whether a tensor's size may depend on values. Where not, channels that are absent are present as zeros."""
    return name() == "tensorflow"


def has_live_variables() -> bool:
    """Whether variables have their values within `fit`, which on JAX keeps them apart between its steps."""
    return name() == "tensorflow"


@portable
def is_accelerated() -> bool:
    """Whether it computes on something else than the CPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


@is_accelerated.on("jax")
def _is_accelerated_by_jax():
    import jax

    return jax.default_backend() != "cpu"


@portable
def device_names() -> list[str]:
    """The accelerators, or the CPU."""
    return ["CPU"]


@device_names.on("tensorflow")
def _device_names_of_tensorflow():
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(device) for device in tf.config.list_physical_devices("GPU")]
    return [each.get("device_name", "GPU") for each in details] or ["CPU"]


@device_names.on("jax")
def _device_names_of_jax():
    import jax

    return [device.device_kind for device in jax.devices()]


def silence():
    """No warnings of TensorFlow's own logger, where it is loaded."""
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].get_logger().setLevel("ERROR")


# Compiling


def island(function):
    """`function` of tensors, compiled by XLA on the TensorFlow backend; on JAX the caller's jit compiles it.

    One compiled function per tuple of argument shapes, so that layers share them and none is traced again.
    """
    compiled = {}
    call = portable(function)

    @call.on("tensorflow")
    def compile_once(*args):
        key = tuple((tuple(arg.shape), arg.dtype) for arg in args)
        if key not in compiled:
            import tensorflow as tf

            # A partial of its own: TensorFlow warns of retracing per function that it is given.
            compiled[key] = tf.function(functools.partial(function), jit_compile=True, autograph=False)
        return compiled[key](*args)

    return call


def subgraph(function=None, *, any_shape=False):
    """`function` of tensors and hashable options, on the TensorFlow backend traced once per shapes and options.

    A layer then adds one call to the graph where there would be dozens of small operations, each slow to build.

    Args:
        any_shape: one trace for all shapes of the same ranks; sizes are unknown in it.
    """
    if function is None:
        return functools.partial(subgraph, any_shape=any_shape)
    traced = {}
    call = portable(function)

    @call.on("tensorflow")
    def trace_once(*args, **options):
        import tensorflow as tf

        args = [tf.convert_to_tensor(arg) for arg in args]
        shapes = [(None,) * arg.shape.rank if any_shape else tuple(arg.shape) for arg in args]
        key = (*zip(shapes, (arg.dtype for arg in args), strict=True), *sorted(options.items()))
        if key not in traced:
            signature = [tf.TensorSpec(shape, arg.dtype) for shape, arg in zip(shapes, args, strict=True)]
            body = functools.partial(function, **options)
            traced[key] = tf.function(body, autograph=False, input_signature=signature)
        return traced[key](*args)

    return call


@portable
def choose(condition, yes, no):
    """What the function `yes` computes where a scalar condition holds, else `no`; the other one is not computed."""
    import keras

    return keras.ops.cond(condition, yes, no)


@choose.on("tensorflow")
def _choose_with_gradients(condition, yes, no):
    import tensorflow as tf

    if tf.executing_eagerly():
        return yes() if condition else no()
    # As functions of their own: a branch with a custom gradient has none in a graph.
    return tf.cond(condition, tf.function(yes, autograph=False), tf.function(no, autograph=False))


@portable
def barrier(tensor):
    """`tensor`, through which XLA does not fuse; on TensorFlow in an `island` alone."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # not among tf.raw_ops

    return gen_xla_ops.xla_optimization_barrier(input=[tensor])[0]


@barrier.on("jax")
def _barrier_of_jax(tensor):
    import jax

    return jax.lax.optimization_barrier(tensor)
