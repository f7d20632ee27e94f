"""What the search's figures were measured with.

    python benchmarks/search.py oracle              overhead per trial at 1,000 trials
    python benchmarks/search.py evolution           evolution against random search, five seeds, on a synthetic space
    python benchmarks/search.py evaluation          seconds per candidate on 512 held-out images
    python benchmarks/search.py ranking --out DIR   inherited against trained accuracy of 12 candidates on digits
    python benchmarks/search.py ranking --out DIR --search DIR --data DIR --candidates 16
                                                    the same of a search's random candidates on CIFAR-100

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the synthetic space of the tests


def run_trials(oracle, evaluate, trials):
    """What a tuner does, without its own work."""
    for _ in range(trials):
        trial = oracle.create_trial("tuner0")
        if trial.status != "RUNNING":
            return
        oracle.update_trial(trial.trial_id, {"val_accuracy": evaluate(trial.hyperparameters.values)})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)


def make_oracle(folder, trials, **options):
    from search_toys import ToySpace

    from saaug_keras.search import TwoStageOracle

    oracle = TwoStageOracle(ToySpace(second=False), (trials,), limits={"flash_bytes": 150.0, "ram_bytes": 4.0}, **options)
    oracle.verbose = 0
    oracle._set_project_dir(str(folder), "search")
    return oracle


def measure_oracle(args):
    """Milliseconds of proposing, recording and writing one trial, around the thousandth."""
    from search_toys import toy_accuracy

    with tempfile.TemporaryDirectory() as folder:
        oracle = make_oracle(folder, 2000)
        run_trials(oracle, toy_accuracy, 1000)
        times = []
        for _ in range(100):
            started = time.perf_counter()
            run_trials(oracle, toy_accuracy, 1)
            times.append((time.perf_counter() - started) * 1e3)
    return {"median_ms": statistics.median(times), "worst_ms": max(times)}


def measure_evolution(args):
    """Best feasible score of both strategies after as many evaluations."""
    from search_toys import toy_accuracy

    result = []
    for seed in range(5):
        best = {"seed": seed}
        for strategy in ("evolution", "random"):
            with tempfile.TemporaryDirectory() as folder:
                oracle = make_oracle(folder, args.trials, strategy=strategy, seed=seed)
                run_trials(oracle, toy_accuracy, args.trials)
                best[strategy] = oracle.get_best_trials()[0].score
        result.append(best)
    return {"trials": args.trials, "seeds": result, "wins": sum(r["evolution"] > r["random"] for r in result)}


def measure_evaluation(args):
    """Seconds per candidate: 256 images recalibrate, 512 are classified; 32x32 pixels, after warm-up."""
    import numpy as np

    from saaug_keras.backbones import count_macs
    from saaug_keras.search import Plan, SuperNet
    from saaug_keras.search.plan import make_space

    space = make_space(Plan(widths=(args.width,), resolutions=(args.resolution,)), (32, 32, 3), 100)
    net = SuperNet(space)
    rng = np.random.default_rng(0)
    images = rng.random((768, 32, 32, 3), "float32")
    times, macs = [], []
    for index in range(12):
        values = space.sample(rng)
        started = time.perf_counter()
        net.recalibrate(values, images[:256])
        net.logits(images[256:])
        if index >= 2:
            times.append(time.perf_counter() - started)
            macs.append(count_macs(space.spec(values)))
    return {
        "median_seconds": statistics.median(times),
        "worst_seconds": max(times),
        "median_macs": statistics.median(macs),
        "graphs_built": net.traces,
        "cores": os.cpu_count(),
    }


def measure_ranking(args):
    """Kendall's tau between accuracy on inherited weights and after training each candidate from scratch.

    Of a search on CIFAR-100, the candidates are the first that it drew at random; else some on digits.
    """
    out = pathlib.Path(args.out)
    evaluators, space, shared, data, candidates = (_ranked_search if args.search else _ranked_digits)(args, out)
    rows = []
    for index, values in enumerate(candidates):
        inherited = {name: evaluator(values) for name, evaluator in evaluators.items()}
        spec = space.spec(values).with_operator("conv")
        recipe = shared.replace(backbone=spec.name, operator="conv", network=spec.as_dict(), epochs=args.epochs)
        recipe = recipe.replace(evaluate_every=args.epochs, aug_loss_weight=0.0, remap=False)
        trained = _train(recipe, data, out / f"candidate{index}")
        rows.append({**inherited, "trained": trained, "flash_bytes": space.costs(values)["flash_bytes"]})
        print(rows[-1], file=sys.stderr, flush=True)
    trained = [row["trained"] for row in rows]
    taus = {name: kendall_tau([row[name] for row in rows], trained) for name in (*evaluators, "flash_bytes")}
    return {"kendall_tau_b": taus, "candidates": rows}


def _train(recipe, data, out):
    import keras

    from saaug_keras import recipes

    result = recipes.train(recipe, data, out)
    keras.utils.clear_session()
    return result["val_accuracy"]


def _ranked_digits(args, out):
    import numpy as np

    from saaug_keras import datasets, recipes
    from saaug_keras.search import Plan, SuperNet, SuperNetEvaluator
    from saaug_keras.search.plan import make_space

    data = datasets.load("digits")
    shared = recipes.Recipe(validation_fraction=0.35, batch_size=64, learning_rate=0.05, augment_data=False)
    space = make_space(Plan(widths=(0.5, 1.0), resolutions=(8,), recipe=shared), data.image_shape, data.num_classes)
    (x, y), held_out = data.split(shared.validation_fraction)
    evaluator = SuperNetEvaluator(SuperNet(space, random_candidates=2), out / "supernet")
    evaluator.prepare(x, y, validation_data=held_out, recipe=shared, epochs=20, learning_rate=0.05, flip=False)
    rng = np.random.default_rng(1)
    return {"inherited": evaluator}, space, shared, data, [space.sample(rng) for _ in range(args.candidates)]


def _ranked_search(args, out):
    from saaug_keras import datasets, recipes
    from saaug_keras.search import Plan, Search, SuperNetEvaluator

    data = datasets.load("cifar100", data_dir=args.data)
    folder = pathlib.Path(args.search)
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    plan = {key: tuple(value) if isinstance(value, list) else value for key, value in plan.items()}
    plan = Plan(**{**plan, "recipe": recipes.Recipe.from_dict(plan["recipe"])})
    search = Search(plan, data, folder)
    search.choose_subspace()
    evaluator = search.make_tuner().evaluate
    everyone = SuperNetEvaluator(evaluator.supernet, folder / "supernet", held_out_images=len(search.held_out[1]))
    evaluators = {f"inherited, {plan.held_out_images} images": evaluator, "inherited, all held-out images": everyone}
    for each in evaluators.values():
        each.prepare(*search.fit_part, **search.search_options())
    trials = sorted((folder / "trials").glob("trial_*/trial.json"))[: args.candidates]
    values = [json.loads(path.read_text())["hyperparameters"]["values"] for path in trials]
    return evaluators, search.subspace, plan.recipe, data, values


def kendall_tau(a, b) -> float:
    """Kendall's rank correlation, tau-b: 1 for the same order, -1 for the opposite one, ties discounted."""
    import numpy as np

    a, b = np.sign(np.subtract.outer(a, a)), np.sign(np.subtract.outer(b, b))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("oracle", "evolution", "evaluation", "ranking"))
    parser.add_argument("--out", default="search-ranking", help="folder of ranking's trainings")
    parser.add_argument("--search", help="folder of a search on CIFAR-100 whose ranking is judged")
    parser.add_argument("--data", help="folder of CIFAR-100's files")
    parser.add_argument("--trials", type=int, default=300, help="of evolution")
    parser.add_argument("--candidates", type=int, default=12, help="of ranking")
    parser.add_argument("--epochs", type=int, default=15, help="of each candidate of ranking")
    parser.add_argument("--width", type=float, default=0.5, help="of evaluation's space")
    parser.add_argument("--resolution", type=int, default=32, help="of evaluation's space")
    args = parser.parse_args()
    measure = {
        "oracle": measure_oracle,
        "evolution": measure_evolution,
        "evaluation": measure_evaluation,
        "ranking": measure_ranking,
    }
    print(json.dumps(measure[args.what](args), indent=1))


if __name__ == "__main__":
    main()
