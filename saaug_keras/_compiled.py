"""Small islands that XLA compiles inside eager, graph and compiled code on the TensorFlow backend."""

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

            compiled[key] = tf.function(function, jit_compile=True, autograph=False)
        return compiled[key](*args)

    return call


def barrier(tensor):
    """`tensor`, through which XLA does not fuse."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.optimization_barrier(tensor)
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # not among tf.raw_ops

    return gen_xla_ops.xla_optimization_barrier(input=[tensor])[0]
