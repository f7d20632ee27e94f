"""On the TensorFlow backend: functions that are traced once for all layers, and islands that XLA compiles."""

import functools

import keras


def island(function):
    """`function` of tensors, compiled by XLA on the TensorFlow backend; on JAX the caller's jit compiles it.

    One compiled function per tuple of argument shapes, so that layers share them and none is traced again.
    """
    compiled = {}

    @functools.wraps(function)
    def call(*args):
        if keras.backend.backend() != "tensorflow":
            return function(*args)
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

    @functools.wraps(function)
    def call(*args, **options):
        if keras.backend.backend() != "tensorflow":
            return function(*args, **options)
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


def barrier(tensor):
    """`tensor`, through which XLA does not fuse."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.optimization_barrier(tensor)
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # not among tf.raw_ops

    return gen_xla_ops.xla_optimization_barrier(input=[tensor])[0]
