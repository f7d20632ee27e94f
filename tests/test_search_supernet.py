"""The SuperNet: shared weights by slices, no retrace, training, and the evaluation of candidates."""

import os
import threading
import time
import types

import keras
import keras_tuner
import numpy as np
import pytest

from saaug_keras import datasets
from saaug_keras.callbacks import StopAtNonFinite
from saaug_keras.recipes import Recipe
from saaug_keras.search import SearchSpace, StageSpace, SuperNet, SuperNetEvaluator, TwoStageOracle, TwoStageTuner
from saaug_keras.search import evaluator as evaluator_module
from saaug_keras.search.plan import Plan
from saaug_keras.search.space import OPERATORS

RECIPE = Recipe(batch_size=64, augment_data=False)


def make_space(stages=2, **options):
    options = {
        "channels": 1,
        "resolutions": (8, 12),
        "widths": (0.5, 1.0),
        "stem": 8,
        "stem_strides": 1,
        "first": 8,
        "divisor": 4,
        "operators": ("shift", "adder"),
    } | options
    shapes = [StageSpace(filters, strides, (1, 2), (3, 5), (2, 3)) for filters, strides in ((12, 2), (16, 1))]
    return SearchSpace(shapes[:stages], 10, **options)


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits")
    (x, y), held_out = data.split(0.3)
    return x, y, held_out


@pytest.fixture(scope="module")
def net(digits):
    """A SuperNet with a little training behind it, so that statistics and weights are lopsided."""
    net = SuperNet(make_space(), random_candidates=1)
    net.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    x, y, _ = digits
    first = net.fit(x.astype("float32") / 255, y, batch_size=64, epochs=1, verbose=0).history["loss"][0]
    last = net.fit(x.astype("float32") / 255, y, batch_size=64, epochs=3, verbose=0).history["loss"][-1]
    assert last < 0.6 * first
    return net


def resized(images, size):
    import tensorflow as tf

    return tf.image.resize(images, (size, size), antialias=True).numpy()


def test_a_candidate_cut_out_computes_what_it_computed_inside(net, digits):
    images = digits[0][:128].astype("float32") / 255
    rng = np.random.default_rng(0)
    for values in [net.space.largest(), net.space.smallest()[0]] + [net.space.sample(rng) for _ in range(3)]:
        net.recalibrate(values, images, batch_size=64)
        inside = net.logits(images[:40])
        model = net.build_model(values)
        assert model.count_params() < 1.2 * net.count_params()
        outside = model.predict(resized(images[:40], values["resolution"]), verbose=0)
        np.testing.assert_allclose(outside, inside, rtol=1e-3, atol=1e-3)
        assert np.ptp(inside) > 0.1


def test_recalibration_takes_the_mean_over_batches(net, digits):
    images = digits[0][:128].astype("float32") / 255
    means = []
    for part in (images[:64], images[64:], images):
        net.recalibrate(net.space.largest(), part, batch_size=64)
        means.append(keras.ops.convert_to_numpy(net._statistics["stem_mean"]))
    np.testing.assert_allclose((means[0] + means[1]) / 2, means[2], rtol=1e-4, atol=1e-6)
    assert np.abs(means[0] - means[1]).max() > 1e-4


def test_no_candidate_costs_a_retrace_and_memory_stays(net, digits):
    images = digits[0][:128].astype("float32") / 255
    rng = np.random.default_rng(1)

    def evaluate(count):
        for _ in range(count):
            net.recalibrate(net.space.sample(rng), images, batch_size=64)
            net.logits(images, batch_size=64)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    evaluate(30)
    traces, before = net.traces, resident()
    evaluate(120)
    assert net.traces == traces
    assert resident() - before < 20  # MiB; a leak of one candidate's activations would be some hundred


def test_a_call_computes_the_selected_candidate(net, digits):
    images = digits[0][:64].astype("float32") / 255
    values = net.space.smallest()[0]
    net.recalibrate(values, images, batch_size=64)
    inside = net.logits(images)
    np.testing.assert_allclose(net(images), inside, rtol=1e-4, atol=1e-4)
    net.select(net.space.largest())
    assert np.abs(np.array(net(images)) - inside).max() > 0.01


def test_every_weight_of_the_largest_learns_and_the_smallest_reads_leading_slices(digits):
    import tensorflow as tf

    net = SuperNet(make_space())
    net.compile()
    x, y = digits[0][:32].astype("float32") / 255, digits[1][:32]
    variables = {v.name: i for i, v in enumerate(net.trainable_variables)}
    _, _, largest = net._step(x, y, None, tf.constant(net.encode(net.space.largest())), None)
    assert all(np.abs(g).max() > 0 for g in largest)
    _, _, smallest = net._step(x, y, None, tf.constant(net.encode(net.space.smallest()[0])), None)
    kernel = np.array(smallest[variables["block1_depthwise_kernel"]])
    # Smallest: kernel 3 of 5, and 4 * 2 of the 8 * 3 channels.
    assert np.abs(kernel[1:4, 1:4, :8]).max() > 0
    kernel[1:4, 1:4, :8] = 0
    assert not kernel.any()
    assert not np.array(smallest[variables["block2_project_kernel"]]).any()


def test_in_place_distillation_takes_the_largest_as_teacher(digits):
    x, y = digits[0][:64].astype("float32") / 255, digits[1][:64]
    losses = []
    for distill in (False, True):
        net = SuperNet(make_space(1), random_candidates=0, distill=distill, seed=3)
        net.compile(keras.optimizers.SGD(0.0))
        losses.append(net.train_on_batch(x, y, return_dict=True)["loss"])
    assert losses[0] != losses[1]


def test_the_second_stages_shift_and_kept_blocks_are_those_of_the_model_cut_out(digits):
    net = SuperNet(make_space(), seed=1)
    space = net.space
    subnet = space.canonical({"width": 1.0, "stage0_depth": 2, "stage1_depth": 2})
    net.adapt_to(subnet)
    images = digits[0][:64].astype("float32") / 255
    targets = space.second_stage(subnet)
    for change in ({}, {"block2_keep": 0}, {"block1_operator": "adder"}):
        everything = {name: 1 if name.endswith("keep") else "shift" for name in targets.genes}
        values = {"stage": 2, **subnet, **targets.canonical({**everything, **change})}
        net.recalibrate(values, images, batch_size=64)
        inside = net.logits(images, batch_size=64)
        model = net.build_model(values)
        for layer in model.layers:
            if hasattr(layer, "activation_bits"):
                layer.activation_bits = None  # the SuperNet does not quantize activations
        np.testing.assert_allclose(model(images), inside, rtol=1e-3, atol=2e-3, err_msg=str(change))
    traces = net.traces
    net.recalibrate({**values, "block1_operator": "shift"}, images, batch_size=64)
    assert net.traces == traces
    rounded = np.array(model.get_layer("block0_project").quantized_kernel())
    exponents = np.log2(np.abs(rounded[rounded != 0]))
    np.testing.assert_allclose(exponents, np.round(exponents), atol=1e-6)


def test_a_candidate_of_every_operator_cut_out_computes_what_it_computed_inside(digits):
    """Eagerly: that the graph computes the same is shown elsewhere."""
    import tensorflow as tf

    with pytest.raises(ValueError, match="`operators` must be one of .*Received: operators='shiftadd'"):
        make_space(1, operators=("shiftadd",))
    with pytest.raises(ValueError, match="the operator of the expanding layer must be one that conv layers can have"):
        make_space(1, operators=("channelshift",))
    assert make_space(1, operators=("shift/shift/shift",)).operators == ("shift",)
    known = (*OPERATORS, "adder/shift/adder", "shift/channelshift/shift", "shift5/channelshift/adder")
    space = make_space(1, operators=known, resolutions=(8,), widths=(1.0,), head=8)
    net = SuperNet(space, seed=1)
    subnet = space.canonical({"stage0_depth": 2, "resolution": 8, "width": 1.0})
    net.adapt_to(subnet)
    rng = np.random.default_rng(0)
    for name, variable in net._parameters.items():
        if not name.endswith("kernel"):
            variable.assign(rng.normal(name.endswith("gamma"), 0.5, variable.shape))
    images = digits[0][:16].astype("float32") / 255
    targets = space.second_stage(subnet)
    for operator in known:
        genes = {name: 1 if name.endswith("keep") else operator for name in targets.genes}
        values = {"stage": 2, **subnet, **targets.canonical(genes)}
        choice = net._choice(tf.constant(net.encode(values)))
        net._forward(images, choice, "record", tf.constant(1.0))
        inside = net._forward(images, choice, "stored").numpy()
        model = net.build_model(values)
        for layer in model.layers:
            if hasattr(layer, "activation_bits"):
                layer.activation_bits = None  # the SuperNet does not quantize activations
        np.testing.assert_allclose(model(images), inside, rtol=1e-3, atol=1e-3, err_msg=operator)
        assert np.ptp(inside) > 0.1


def test_add_blocks_learn_their_own_kernels_and_leave_the_shared_ones(digits):
    import tensorflow as tf

    net = SuperNet(make_space(), seed=1)
    net.compile()
    subnet = net.space.canonical({"width": 1.0, "stage0_depth": 2, "stage1_depth": 2})
    assert not any(v.name.endswith("_adder_kernel") for v in net.trainable_variables)  # of the first stage
    net.adapt_to(subnet)
    targets = net.space.second_stage(subnet)
    genes = {name: 1 if name.endswith("keep") else "shift" for name in targets.genes}
    x, y = digits[0][:32].astype("float32") / 255, digits[1][:32]
    norms = {}
    for operator in ("shift", "adder"):
        values = {"stage": 2, **subnet, **targets.canonical({**genes, "block1_operator": operator})}
        _, _, gradients = net._step(x, y, None, tf.constant(net.encode(values)), None)
        norms[operator] = {v.name: float(np.linalg.norm(g)) for v, g in zip(net.trainable_variables, gradients, strict=True)}
    before, block = net.space.candidate_spec(values).blocks[:2]
    sizes = {
        "expand": before.filters * block.expanded,
        "depthwise": block.kernel_size**2 * block.expanded,
        "project": block.expanded * block.filters,
    }
    place = f"block{net.space.occupied(values)[1]}"
    for part, size in sizes.items():
        shared, own = f"{place}_{part}_kernel", f"{place}_{part}_adder_kernel"
        assert norms["shift"][shared] > 0 and norms["shift"][own] == 0
        assert norms["adder"][shared] == 0
        np.testing.assert_allclose(norms["adder"][own], 0.2 * size**0.5, rtol=1e-3)  # AdderNet's rate


def prepare(evaluator, digits, **options):
    x, y, held_out = digits
    options = {"epochs": 2, "adapt_epochs": 1, "learning_rate": 0.05, "recipe": RECIPE} | options
    evaluator.prepare(x, y, validation_data=held_out, flip=False, **options)


def test_a_search_on_inherited_weights_from_both_stages(digits, tmp_path):
    space = make_space(1, operators=("shift",), resolutions=(8,))
    evaluator = SuperNetEvaluator(SuperNet(space, random_candidates=1), tmp_path, calibration_images=128)
    limits = {"limits": {"flash_bytes": 29_500}, "slack": {"flash_bytes": 1.5}}
    oracle = TwoStageOracle(space, (8, 4), population_size=4, top=2, **limits)
    tuner = TwoStageTuner(oracle, evaluator, directory=str(tmp_path), project_name="trials")
    x, y, held_out = digits
    tuner.search(
        x, y, validation_data=held_out, epochs=4, adapt_epochs=1, learning_rate=0.05, recipe=RECIPE, flip=False, verbose=0
    )
    best = oracle.get_best_trials()[0]
    assert best.hyperparameters.values["stage"] == 2 and best.score > 0.5
    assert oracle.candidate(best.trial_id)["costs"]["flash_bytes"] <= 29_500
    again = evaluator(dict(best.hyperparameters.values))
    assert again == best.score  # the same candidate, the same number
    model = tuner.get_best_models()[0]
    predicted = model.predict(held_out[0].astype("float32") / 255, verbose=0).argmax(-1)
    assert abs((predicted == held_out[1]).mean() - best.score) < 0.08
    assert sorted(p.name for p in tmp_path.glob("*.npz"))[-1] == "supernet.npz"
    assert not list(tmp_path.glob("*.training")) and not list(tmp_path.glob("*.claim"))


def test_training_that_was_cut_goes_on_to_the_same_weights(digits, tmp_path):
    space = make_space(1, resolutions=(8,))

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    results = []
    for name, cuts in (("whole", []), ("cut", [Cut()])):
        for callbacks in [*cuts, None] if cuts else [None]:
            evaluator = SuperNetEvaluator(SuperNet(space, random_candidates=1, seed=2), tmp_path / name)
            try:
                prepare(evaluator, digits, callbacks=[] if callbacks is None else [callbacks])
            except KeyboardInterrupt:
                assert (tmp_path / name / "supernet.training" / "checkpoint-1.weights.h5").exists()
        results.append({v.name: keras.ops.convert_to_numpy(v) for v in evaluator.supernet.trainable_variables})
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, atol=1e-6, err_msg=name)


def test_weights_that_are_damaged_or_of_another_space_are_refused(digits, tmp_path):
    prepare(SuperNetEvaluator(SuperNet(make_space(1, widths=(0.5,))), tmp_path), digits, epochs=0)
    with pytest.raises(ValueError, match="must be of the same space; 'stem_kernel' differs"):
        prepare(SuperNetEvaluator(SuperNet(make_space(1)), tmp_path), digits, epochs=0)
    path = tmp_path / "supernet.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="supernet.npz is damaged: .* Delete it"):
        prepare(SuperNetEvaluator(SuperNet(make_space(1, widths=(0.5,))), tmp_path), digits, epochs=0)


def test_what_is_not_finite_is_no_result_of_a_search(digits, tmp_path, monkeypatch):
    net = SuperNet(make_space(1, widths=(0.5,)))
    evaluator = SuperNetEvaluator(net, tmp_path)
    given = []
    monkeypatch.setattr(net, "fit", lambda *_, callbacks, **__: given.extend(callbacks))
    prepare(evaluator, digits, epochs=1)
    (guard,) = [each for each in given if isinstance(each, StopAtNonFinite)]
    assert given.index(guard) < len(given) - 1  # before the checkpoint is written
    guard.set_model(net)
    kernel = net.trainable_variables[0]
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ValueError, match=f"SuperNetEvaluator: all weights must be finite.*{kernel.name}.*smaller learning"):
        guard.on_epoch_end(0, {"loss": 1.0})
    values = {name: gene.choices[0] for name, gene in net.space.genes.items()}
    monkeypatch.setattr(net, "recalibrate", lambda *_, **__: None)
    monkeypatch.setattr(net, "logits", lambda images, **_: np.full((len(images), 10), np.nan))
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="outputs must be finite"):
        evaluator(net.space.canonical(values))
    evaluator_module._write_arrays(tmp_path / "supernet.npz", evaluator_module._named(net.weights))
    with pytest.raises(ValueError, match=f"must be finite; '{kernel.name}' is not"):
        prepare(evaluator, digits, epochs=1)
    tuner = TwoStageTuner(TwoStageOracle(net.space, (2, 1)), lambda values: float("nan"), directory=str(tmp_path))
    trial = types.SimpleNamespace(hyperparameters=types.SimpleNamespace(values={}))
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="must be finite, not nan"):
        tuner.run_trial(trial)
    with pytest.raises(ValueError, match="Plan: `supernet_rate` must be a number in"):
        Plan(supernet_rate=float("nan"))


def test_of_two_workers_one_trains_and_the_other_waits(tmp_path):
    trained, order = [], []

    def work(name):
        while not trained:
            with evaluator_module._claimed(tmp_path / "claim") as mine:
                if mine and not trained:
                    time.sleep(0.2)
                    trained.append(name)
                elif not mine:
                    time.sleep(0.02)
        order.append(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1 and len(order) == 2 and not (tmp_path / "claim").exists()


def test_the_claim_of_a_dead_process_is_anyones(tmp_path):
    import socket

    claim = tmp_path / "claim"
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    claim.write_text(f"{socket.gethostname()} {pid}")
    with evaluator_module._claimed(claim) as mine:
        assert not mine
    with evaluator_module._claimed(claim) as mine:
        assert mine
