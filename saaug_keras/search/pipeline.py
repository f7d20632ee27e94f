"""The search from start to end: SuperNet, SubNet, TargetNet, augmented training, and the page that tells of it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time

import numpy as np

from saaug_keras import _files, backbones, cost, datasets, operators, recipes
from saaug_keras._version import __version__
from saaug_keras.search import page
from saaug_keras.search.evaluator import SuperNetEvaluator
from saaug_keras.search.oracle import TwoStageOracle
from saaug_keras.search.plan import Plan, make_space
from saaug_keras.search.space import COST_NAMES, rank_subspaces
from saaug_keras.search.supernet import SuperNet
from saaug_keras.search.tuner import TwoStageTuner

WAIT_SECONDS = 600.0  # that a worker waits for its chief to begin


class Search:
    """One search in a folder. Every step leaves its result there, so that a killed search goes on where it was.

    The folder gets: plan.json; subspaces.json (tinyNAS); supernet/ (weights); trials/ (the KerasTuner project);
    target.json (the chosen network); training/ (see `recipes.train`); report.json and report.html.

    Args:
        plan: `Plan`.
        data: `datasets.Dataset`, of classes per image.
        out: folder.
        say: function that prints a line of progress.
    Raises:
        ValueError: limits that no candidate meets; a folder of another plan.
    """

    def __init__(self, plan: Plan, data, out, *, say=print):
        if data.y_train.ndim != 1:
            raise ValueError(f"Search: `data` must have one class per image. Received: data={data.name!r}.")
        self.plan, self.data, self.say = plan, data, say
        self.out = pathlib.Path(out)
        self.space = make_space(plan, data.image_shape, data.num_classes)
        _check_limits(self.space, plan)
        self.fit_part, self.held_out = data.split(plan.recipe.validation_fraction)

    def claim(self, resume: bool):
        """Makes the folder this plan's.

        Raises:
            ValueError: it holds a search and `resume` is False, or one of another plan or version.
        """
        path = self.out / "plan.json"
        mine = {"version": __version__, "data": self.data.name, "plan": dataclasses.asdict(self.plan)}
        mine = json.loads(json.dumps(mine))  # tuples become lists
        if not path.exists():
            _files.write_atomic(path, json.dumps(mine, indent=1))
            return
        if not resume:
            raise ValueError(
                f"Search: `out` must be a new folder; pass --resume to go on with a search. Received: out={self.out}."
            )
        try:
            theirs = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"Search: {path} is damaged. Delete it and start again with the same options.") from error
        # Fields of a recipe that the search's version did not know are at their default there.
        if isinstance(theirs, dict) and isinstance(recipe := theirs.get("plan", {}).get("recipe"), dict):
            theirs["plan"]["recipe"] = {**json.loads(json.dumps(recipes.Recipe().as_dict())), **recipe}
        if theirs != mine:
            there, here = ({**plan.pop("recipe", {}), **plan} for plan in (theirs.get("plan", {}), mine["plan"]))
            parts = [f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in here.items() if there.get(k) != v]
            others = [key for key in ("version", "data") if theirs.get(key) != mine[key]]
            parts += [f"{key}: {theirs.get(key)!r} there, {mine[key]!r} here" for key in others]
            raise ValueError(f"Search: {self.out} holds another search ({'; '.join(parts)}). Choose another folder.")

    # Steps

    def choose_subspace(self):
        """tinyNAS, once; sets `subspace` and returns what was compared, best first."""
        path = self.out / "subspaces.json"
        if not path.exists():
            started = time.perf_counter()
            limits = {name: limit * self.plan.slacks.get(name, 1) for name, limit in self.plan.limits.items()}
            choices = rank_subspaces(self.space, limits, seed=self.plan.recipe.seed)
            rows = [{**dataclasses.asdict(c), "feasible_share": c.feasible_share, "mean_macs": c.mean_macs} for c in choices]
            rows[0]["chosen"] = True
            _files.write_atomic(path, json.dumps(rows))
            self._spent("choice of width and resolution", time.perf_counter() - started)
        rows = json.loads(path.read_text())
        self.subspace = self.space.narrowed(width=rows[0]["width"], resolution=rows[0]["resolution"])
        return rows

    def make_tuner(self) -> TwoStageTuner:
        """The tuner on the chosen subspace; reloads the state that the folder holds."""
        plan = self.plan
        oracle = TwoStageOracle(
            self.subspace,
            (plan.subnet_trials, plan.target_trials),
            limits=plan.limits,
            slack=plan.slacks,
            minimize=plan.minimize,
            strategy=plan.strategy,
            seed=plan.recipe.seed,
            top=min(plan.top, plan.population_size),
            population_size=plan.population_size,
        )
        net = SuperNet(self.subspace, random_candidates=plan.random_candidates, distill=plan.distill, seed=plan.recipe.seed)
        evaluator = SuperNetEvaluator(
            net, self.out / "supernet", calibration_images=plan.calibration_images, held_out_images=plan.held_out_images
        )
        return TwoStageTuner(oracle, evaluator, directory=str(self.out), project_name="trials")

    def search_options(self) -> dict:
        """What `tuner.search` is given besides the training images."""
        plan = self.plan
        return {
            "validation_data": self.held_out,
            "recipe": plan.recipe,
            "epochs": plan.supernet_epochs,
            "learning_rate": plan.supernet_rate,
            "adapt_epochs": plan.adapt_epochs,
            "adapt_rate": plan.adapt_rate,
            "flip": self.data.mirror,
        }

    def recipe(self, spec) -> recipes.Recipe:
        """The augmented training of a network; its dropped blocks are the depth augmentation."""
        return self.plan.recipe.replace(
            backbone=spec.name,
            network=spec.as_dict(),
            drop_blocks=tuple(i for i, block in enumerate(spec.blocks) if not block.kept),
            evaluate_every=max(1, self.plan.recipe.epochs // 10),
        )

    def run(self, *, resume=False, callbacks=(), finish=None):
        """All steps. On a worker (KerasTuner's environment variables) only the trials.

        Args:
            resume: go on with what the folder holds.
            callbacks: Keras callbacks of the trainings.
            finish: called with (search, spec, report) before the report is written: export and the like; what it
                returns becomes report["deployment"].
        Returns:
            The report, plain data; None on a worker.
        """
        role = os.environ.get("KERASTUNER_TUNER_ID", "") if "KERASTUNER_ORACLE_IP" in os.environ else ""
        is_worker = bool(role) and "chief" not in role
        if is_worker:
            _wait_for(self.out / "subspaces.json")
        else:
            self.claim(resume)
        subspaces = self.choose_subspace()
        first = subspaces[0]
        self.say(f"width {first['width']:g}, {first['resolution']} pixels, {self.subspace.size():,} networks")
        tuner = self.make_tuner()
        started = time.perf_counter()
        tuner.search(*self.fit_part, **self.search_options(), callbacks=list(callbacks))
        if is_worker:
            return None
        self._spent("SuperNet and search", time.perf_counter() - started)
        oracle = tuner.oracle
        best = next((t for t in oracle.get_best_trials(1) if oracle.candidate(t.trial_id)["feasible"]), None)
        if best is None:
            raise ValueError("Search: no trial met the limits. Allow more trials, or larger limits.")
        spec = self.subspace.candidate_spec(best.hyperparameters.values)
        _files.write_atomic(self.out / "target.json", json.dumps(spec.as_dict(), indent=1))
        self.say(f"chosen: trial {best.trial_id}, {best.score:.4f} with inherited weights; now its augmented training")
        trained = recipes.train(
            self.recipe(spec), self.data, self.out / "training", resume=True, test=True, callbacks=list(callbacks)
        )
        report = make_report(self, oracle, best, spec, trained, subspaces)
        if finish is not None:
            report["deployment"] = finish(self, spec, report)
            report["summary"] = report["deployment"].pop("tables", [])
        _files.write_atomic(self.out / "report.json", json.dumps(report))
        _files.write_atomic(self.out / "report.html", page.render(report))
        return report

    def _spent(self, what, seconds):
        """Adds to the time of a step, over all restarts; a step that was killed leaves none."""
        path = self.out / "seconds.json"
        spent = self.spent()
        _files.write_atomic(path, json.dumps({**spent, what: spent.get(what, 0) + seconds}))

    def spent(self) -> dict:
        """Seconds of each step."""
        path = self.out / "seconds.json"
        return json.loads(path.read_text()) if path.exists() else {}

    # Before the search

    def estimate(self) -> dict:
        """What the search will look at, and for how long: measured on a few steps of each kind; nothing is written."""
        import keras

        plan = self.plan
        limits = {name: limit * plan.slacks.get(name, 1) for name, limit in plan.limits.items()}
        first = rank_subspaces(self.space, limits, seed=plan.recipe.seed)[0]
        self.subspace = self.space.narrowed(width=first.width, resolution=first.resolution)
        rng = np.random.default_rng(plan.recipe.seed)
        draws = [self.subspace.costs(self.subspace.sample(rng)) for _ in range(500)]
        share = np.mean([all(c[name] <= limit for name, limit in plan.limits.items()) for c in draws])
        net = SuperNet(self.subspace, random_candidates=plan.random_candidates, distill=plan.distill, seed=plan.recipe.seed)
        net.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
        x, y = self.fit_part
        size = min(plan.recipe.batch_size, len(x))
        batch = (x[:size].astype("float32") / 255, y[:size])
        first_step, step = _seconds(lambda: net.train_on_batch(*batch))
        fraction = min(1.0, (plan.calibration_images + plan.held_out_images) / len(x))
        images = x[: int(fraction * len(x))].astype("float32") / 255
        candidate = self.subspace.smallest()[0]

        def evaluate():
            net.recalibrate(candidate, images[: plan.calibration_images])
            net.logits(images[plan.calibration_images :] if len(images) > plan.calibration_images else images)

        # Between the smallest and the largest candidate lies the usual one.
        first_trial, trial = _seconds(evaluate)
        candidate = self.subspace.largest()
        trial = (trial + _seconds(evaluate)[1]) / 2
        middle = self.subspace.sample(rng)
        spec = self.subspace.second_stage(middle).spec({})
        recipe = self.recipe(spec)
        model = recipes.make_model(recipe, spec)
        model.compile(keras.optimizers.SGD(1e-4))
        resized = next(iter(datasets.pipeline(x[:size], y[:size], batch_size=size, resolution=spec.input_shape[:2])))
        first_training_step, training_step = _seconds(lambda: model.train_on_batch(*resized))
        steps = len(x) // size
        return {
            "networks": self.space.size(),
            "networks_in_subspace": self.subspace.size(),
            "width": first.width,
            "resolution": first.resolution,
            "feasible_share": float(share),
            "supernet_seconds": first_step + plan.supernet_epochs * steps * step,
            "search_seconds": first_step
            + 2 * first_trial
            + plan.adapt_epochs * steps * step
            + (plan.subnet_trials + plan.target_trials) * trial,
            "training_seconds": first_training_step + plan.recipe.epochs * steps * training_step,
        }


def _seconds(action, repeats=3):
    """Seconds of an action the first time, when graphs are built, and of one that is warm."""
    started = time.perf_counter()
    action()
    warm = time.perf_counter()
    for _ in range(repeats):
        action()
    return warm - started, (time.perf_counter() - warm) / repeats


def _wait_for(path):
    """A worker may be up before its chief; the chief makes the folder."""
    until = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(
                f"Search: the chief has not begun for {WAIT_SECONDS:g} s: {path} is not there. Start the chief with the "
                "same `--out`, on a folder that both see."
            )
        time.sleep(0.5)


def _check_limits(space, plan):
    """The error of limits that no network meets, before anything is trained."""
    targets = space.second_stage(space.smallest()[0])
    needs = [targets.costs(values) for values in targets.smallest()]
    unmet = []
    for name, limit in plan.limits.items():
        least = min(costs[name] for costs in needs)
        if least > limit:
            needs_text = f"the smallest network needs {page.number(least)}"
            unmet.append(f"{page.name_of(name)}: the limit is {page.number(limit)}, {needs_text}")
    if unmet:
        raise ValueError(f"Search: no network of the space meets the limits. {'; '.join(unmet)}.")


def make_report(search, oracle, best, spec, trained, subspaces) -> dict:
    """Everything that the page shows, as plain data."""
    plan, chosen = search.plan, oracle.candidate(best.trial_id)
    compared = cost.compare(spec, **plan.where)
    limits = plan.limits
    where = f" for {plan.device}" if plan.device else ""
    bounds = ", ".join(f"{page.name_of(name)} <= {page.number(limit)}" for name, limit in limits.items()) or "none"
    test, validation = trained.get("test_accuracy"), trained.get("val_accuracy")
    accuracies = {"inherited_accuracy": best.score, "validation_accuracy": validation, "test_accuracy": test}
    headline = [
        (f"{best.score:.1%}", "validation, inherited weights"),
        (f"{validation:.1%}", "validation, trained"),
        (f"{test:.1%}", "test, trained"),
        (page.number(chosen["costs"]["flash_bytes"]), "flash, bytes"),
        (page.number(chosen["costs"]["ram_bytes"]), "RAM, bytes"),
        (page.number(chosen["costs"]["operations"]), "operations"),
    ]
    columns = ("", "FP32 multiply", "INT8 multiply", "this, 32 bits", "this, deployed")
    costs = {
        "title": "Costs, operator and bit width apart",
        "columns": columns,
        "rows": [
            [page.name_of(name), *("-" if (x := getattr(value, name)) is None else x for value in compared.values())]
            for name in ("multiplies", "shifts", "adds", "params", *COST_NAMES, "latency_ms")
        ],
        "note": "Energy and latency are those of an Eyeriss-like accelerator with DRAM, and predict nothing about a "
        f"microcontroller. Flash and RAM: everything that target {plan.where['target']} takes on core {plan.where['core']}.",
    }
    layers = {
        "title": "Layers",
        "columns": ("layer", "operator", "output", "MACs", "model file, bytes", "energy, mJ"),
        "rows": [
            [c.name, c.operator, "x".join(map(str, layer.output_shape)), c.macs, c.model_bytes, c.energy_mj]
            for c, layer in zip(compared["deployed"].layers, backbones.lower(spec), strict=True)
        ],
    }
    times = {**search.spent(), "augmented training": trained["train_seconds"]}
    return {
        "title": f"Search on {search.data.name}{where}",
        "subtitle": f"Limits: {bounds}. saaug_keras {__version__}, seed {plan.recipe.seed}, {plan.strategy}.",
        "headline": headline,
        **accuracies,
        "costs": chosen["costs"],
        "limits": limits,
        "chosen": best.trial_id,
        "network": spec.as_dict(),
        "subspaces": subspaces,
        "history": oracle.history(),
        "pareto_front": [t.trial_id for t in oracle.pareto_front()],
        "front_costs": list(dict.fromkeys((*limits, *plan.minimize, "operations"))),
        "rejects": oracle.evolution.rejects,
        "rejected": oracle.evolution.rejected,
        "architecture": _architecture(spec),
        "tables": [
            costs,
            layers,
            {"title": "Time", "columns": ("step", "seconds"), "rows": [[k, round(v, 1)] for k, v in times.items()]},
        ],
        "seconds": times,
    }


def _architecture(spec):
    rows = [_bar("stem", spec.stem.filters, spec.stem.operator, f"{spec.stem.kernel_size}x{spec.stem.kernel_size}")]
    for index, block in enumerate(spec.blocks):
        size = block.kernel_size
        text = f"{operators.to_text(block.operator)}, {size}x{size}, {block.expanded} inside, {block.filters} out"
        text += ", stride 2" if block.strides == 2 else ", residual" if block.residual else ""
        rows.append(_bar(f"block {index}", block.expanded, block.operator, text, block.kept))
    rows += [_bar(f"head {i}", head.filters, head.operator, "1x1") for i, head in enumerate(spec.head)]
    return [*rows, _bar("classifier", spec.num_classes, spec.classifier_operator, f"{spec.num_classes} classes")]


def _bar(name, width, operator, text, kept=True):
    operator = operators.to_text(operator)
    text = text if text.startswith(operator) else f"{operator}, {text}"
    return {"name": name, "expanded": width, "operator": operator, "text": text, "kept": kept}
