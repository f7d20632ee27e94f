"""The Gaussian-to-Laplace remap against float64, its gradients, and the FC's pretraining."""

import keras
import numpy as np
import pytest
from contract import array, assert_layer_contract, gradients
from scipy import special

from saaug_keras import HybridConv2D, HybridDense, remap

Z = np.concatenate([np.linspace(-8, 8, 4001), np.logspace(-6, 0.9, 200), -np.logspace(-6, 0.9, 200), [0.0]])


def exact(z, scale):
    """ppf_Laplace(cdf_Normal(z)) in float64, and its slope."""
    size = np.abs(np.asarray(z, "float64"))
    # near 0, ln 2 + log_ndtr(-size) loses digits in float64 too
    value = np.where(size < 1e-3, -np.log1p(-special.erf(size / np.sqrt(2))), -(np.log(2) + special.log_ndtr(-size)))
    slope = np.exp(-(size**2) / 2 - 0.5 * np.log(2 * np.pi) - special.log_ndtr(-size))
    return scale * np.where(np.asarray(z) < 0, -value, value), scale * slope


def test_float32_is_within_1e_4_of_float64_up_to_8_sigma():
    mean, std, scale = 0.0, 1.0, 0.3
    weights = Z.astype("float32")
    got = array(remap.gaussian_to_laplace(weights, mean=mean, std=std, scale=scale))
    want, _ = exact(weights, scale)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=0)
    shifted = array(remap.gaussian_to_laplace(weights * 2 + 5, mean=5.0, std=2.0, location=-1.0, scale=scale))
    np.testing.assert_allclose(shifted, want - 1, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_and_those_of_float64():
    weights = Z.astype("float32")
    _, (found,), upstream = gradients(lambda w: remap.gaussian_to_laplace(w, mean=0.0, std=1.0, scale=0.3), weights)
    _, slope = exact(weights, 0.3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, upstream * slope, rtol=1e-4)
    assert found[-1] == pytest.approx(upstream[-1] * 0.3 * 2 / np.sqrt(2 * np.pi), rel=1e-5)  # z = 0


def test_far_beyond_8_sigma_and_without_any_spread_it_stays_finite():
    for std in (1.0, 0.0):
        weights = np.float32([-30, -11, 0, 11, 30])
        options = {"mean": 0.0, "std": std, "scale": 1.0}
        output, (found,), _ = gradients(lambda w, o=options: remap.gaussian_to_laplace(w, **o), weights)
        assert np.isfinite(output).all() and (np.diff(output) >= 0).all()
        if std:
            assert np.isfinite(found).all()


def test_gaussian_weights_become_laplacian():
    weights = np.random.default_rng(3).normal(0.4, 0.2, 200_000).astype("float32")
    got = array(remap.gaussian_to_laplace(weights, mean=0.4, std=0.2, scale=0.7))
    probability = np.linspace(0.02, 0.98, 25)
    want = np.where(probability < 0.5, 0.7 * np.log(2 * probability), -0.7 * np.log(2 - 2 * probability))
    np.testing.assert_allclose(np.quantile(got, probability), want, atol=0.02)


@pytest.mark.parametrize("operator", ["shift", "adder"])
def test_a_layer_sees_the_equations_of_the_method(operator):
    layer = HybridConv2D(6, (3, 2), target_filters=4, target_channels=3, operator=operator, laplace_scale=0.4)
    layer.build((None, 5, 5, 5))
    generator = np.random.default_rng(4)
    fc, bias = generator.normal(size=(6, 6)).astype("float32"), generator.normal(size=6).astype("float32") * 0.1
    np.testing.assert_array_equal(array(layer.fc_kernel), np.eye(6))
    assert not layer.fc_kernel.trainable and not layer.fc_bias.trainable and not array(layer.fc_bias).any()
    layer.fc_kernel.assign(fc)
    layer.fc_bias.assign(bias)
    latent = array(layer.kernel).astype("float64")
    mu, sigma = latent.mean(), latent.std()

    output, (found,), upstream = gradients(lambda _: layer.remapped_kernel(), layer.kernel)
    through = np.einsum("ab,bio->aio", fc, latent[:, :, :3, :4].reshape(6, 3, 4)) + bias[:, None, None]
    value, slope = exact((through - mu) / sigma, 1.0)
    if operator == "adder":
        want, slope = 0.4 * value, 0.4 * slope / sigma
    else:
        want, slope = through + 0.1 * sigma * value, 1 + 0.1 * slope
    np.testing.assert_allclose(output, want.reshape(3, 2, 3, 4), rtol=1e-3, atol=1e-5)
    # No gradient goes through mu and sigma, none to the latent weights around the target's.
    want_gradient = np.zeros_like(latent)
    pulled = np.einsum("ab,aio->bio", fc, upstream.reshape(6, 3, 4) * slope)
    want_gradient[:, :, :3, :4] = pulled.reshape(3, 2, 3, 4)
    np.testing.assert_allclose(found, want_gradient, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("distance", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_fc_matches_the_quantiles_of_a_twin(distance, kernel_size):
    generator = np.random.default_rng(6)
    trained = generator.normal(0.05, 0.3, (kernel_size, kernel_size, 24, 16))
    twin = generator.laplace(-0.2, 0.8, (kernel_size, kernel_size, 20, 12))
    twin[kernel_size // 2, kernel_size // 2] *= 2  # the centre tap is heavier, as in trained kernels
    fc_kernel, fc_bias = remap.fit_fc(trained, twin, distance=distance, laplace_scale=0.5)
    assert fc_kernel.shape == (kernel_size**2,) * 2 and fc_bias.shape == (kernel_size**2,)

    def gap(fc_kernel, fc_bias):
        """Mean distance of quantiles, relative to the twin's standard deviation."""
        kernel = keras.ops.convert_to_tensor(trained.astype("float32"))
        seen = array(
            remap.remap_kernel(
                kernel,
                keras.ops.convert_to_tensor(fc_kernel),
                keras.ops.convert_to_tensor(fc_bias),
                moments=(keras.ops.mean(kernel), keras.ops.std(kernel)),
                distance=distance,
                laplace_scale=0.5,
            )
        )
        probability = np.linspace(0.01, 0.99, 99)
        gaps = [
            np.abs(np.quantile(s, probability) - np.quantile(t, probability)).mean()
            for s, t in zip(seen.reshape(kernel_size**2, -1), twin.reshape(kernel_size**2, -1), strict=True)
        ]
        return np.mean(gaps) / twin.std()

    before = gap(np.eye(kernel_size**2, dtype="float32"), np.zeros(kernel_size**2, "float32"))
    after = gap(fc_kernel, fc_bias)
    assert after < 0.15 and after < 0.4 * before, (before, after)


def test_a_layer_keeps_its_fitted_fc(tmp_path):
    layer = HybridDense(6, target_channels=4)
    inputs = keras.Input((7,))
    model = keras.Model(inputs, layer(inputs, augmented=True))
    generator = np.random.default_rng(8)
    layer.fit_fc(generator.normal(0, 0.3, (9, 6)), generator.laplace(0.1, 0.5, (9, 6)))
    assert array(layer.fc_bias) != 0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert array(loaded.layers[-1].fc_kernel) == array(layer.fc_kernel)
    assert layer.fc_kernel.path not in [variable.path for variable in model.trainable_variables]


def test_a_learned_map_is_linear_between_its_nodes():
    z = np.float32([-9, -4, -0.31, 0.0, 1.7, 4.0, 5.0])
    np.testing.assert_allclose(array(remap.learned_map(z, remap.learned_values())), np.clip(z, -4, 4), atol=1e-5)
    values = np.random.default_rng(2).normal(size=100).astype("float32")
    output, (dz, dv), upstream = gradients(remap.learned_map, z, values)
    nodes = np.linspace(-4, 4, 100)
    np.testing.assert_allclose(output, np.interp(z, nodes, values), rtol=1e-4, atol=1e-4)
    left = np.searchsorted(nodes, -0.31) - 1
    slope = (values[left + 1] - values[left]) / (nodes[1] - nodes[0])
    assert dz[2] == pytest.approx(upstream[2] * slope, rel=1e-3) and dz[0] == 0
    assert dv.sum() == pytest.approx(upstream.sum(), rel=1e-4)  # shares of one each


def test_divergence_is_small_for_laplacian_weights_alone():
    generator = np.random.default_rng(3)
    laplacian = float(remap.laplace_divergence(generator.laplace(size=20_000).astype("float32")))
    gaussian = float(remap.laplace_divergence(generator.normal(size=20_000).astype("float32")))
    # KL(N(0, 1) || Laplace) = ln 2 + sqrt(2 / pi) - ln(2 pi e) / 2
    assert gaussian == pytest.approx(np.log(2) + np.sqrt(2 / np.pi) - 0.5 * np.log(2 * np.pi * np.e), rel=0.1)
    assert 0 <= laplacian < 0.1 * gaussian


@pytest.mark.parametrize("operator", ["shift", "adder"])
def test_training_a_learned_remap_draws_the_weights_to_laplacian_ones(operator):
    options = {"target_filters": 20, "target_channels": 20, "remap": "learned", "kl_weight": 1.0}
    layer = HybridConv2D(24, 1, operator=operator, **options)
    layer.build((None, 2, 2, 24))
    layer.kernel.trainable = False
    inputs = keras.Input((2, 2, 20))
    model = keras.Model(inputs, layer(inputs))
    images = np.random.default_rng(1).normal(size=(8, 2, 2, 20)).astype("float32")
    model.compile(keras.optimizers.Adam(0.02), loss=lambda y, out: 0.0 * keras.ops.sum(out))
    history = model.fit(images, np.zeros(8), epochs=40, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0] < 1
    assert np.abs(array(layer.remap_values) - remap.learned_values()).max() > 0.1
    layer(images, training=False)
    assert not layer.losses


def test_learned_contract(tmp_path):
    options = {"target_filters": 4, "target_channels": 3, "remap": "learned"}
    assert_layer_contract(
        HybridConv2D,
        {"filters": 7, "kernel_size": 3, **options},
        (2, 9, 8, 5),
        tmp_path,
        call={"augmented": True, "filters": 6},
    )


GOOD = np.random.default_rng(9).normal(size=(3, 3, 2, 2))


@pytest.mark.parametrize(
    "trained, twin, options, message",
    [
        (GOOD, GOOD[:1], {}, r"^fit_fc: `twin_kernel` must have the kernel size of `trained_kernel`. Received: shapes"),
        (GOOD * 0, GOOD, {}, "^fit_fc: `trained_kernel` must be finite and not constant"),
        (GOOD, GOOD * np.nan, {}, "^fit_fc: `twin_kernel` must be finite"),
        (GOOD[0], GOOD, {}, "^fit_fc: `trained_kernel` must have 2 or 4 axes"),
        (GOOD, GOOD, {"distance": "conv"}, "^fit_fc: `distance` must be"),
        (GOOD, GOOD, {"iterations": 0}, "^fit_fc: `iterations` must be an int in"),
    ],
)
def test_bad_arguments_are_named(trained, twin, options, message):
    with pytest.raises(ValueError, match=message):
        remap.fit_fc(trained, twin, **{"distance": False, **options})
