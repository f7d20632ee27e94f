"""A study as data: what is compared, how each arm is tuned, and the recipe of every single run."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import pathlib
import re
import tomllib
from dataclasses import dataclass

from saaug_keras import _validate, backbones, operators
from saaug_keras.recipes import Recipe


@dataclass(frozen=True)
class Comparison:
    """The paired difference `arm` minus `against`, seed by seed, and the question that it answers."""

    question: str
    arm: str
    against: str


# Asked of every study that has both arms; a study's own `[[comparisons]]` come after them.
QUESTIONS = (
    Comparison("Augmented minus direct, at equal epochs", "augmented", "direct"),
    Comparison("Augmented minus direct, at equal compute", "augmented", "direct-equal-compute"),
    Comparison("Remap on minus off", "augmented", "remap-off"),
    Comparison("Reorder on minus off", "augmented", "reorder-off"),
    Comparison("Multiplicative minus multiplication-free augmentation", "augmented", "augmented-mf"),
    Comparison("Remap on minus off, without augmentation", "remap-direct", "direct"),
    Comparison("With depth augmentation minus without", "depth", "augmented"),
    Comparison("With block-variant training minus without", "mutation", "augmented"),
    Comparison("Direct minus the multiplicative twin", "direct", "twin"),
    Comparison("Augmented minus the multiplicative twin", "augmented", "twin"),
    Comparison("The twin: augmented minus direct", "twin-augmented", "twin"),
)


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        name: letters, digits and "-".
        description: one sentence for the report.
        based_on: an earlier arm whose recipe, candidates and operators this one starts from.
        recipe: `Recipe` fields that differ from the study's.
        candidates: {recipe field: values to choose from}, in place of the study's of the same field.
        operators: the operators that it is run for; None for all of the study's.
        equal_compute_to: an arm whose training time is matched: epochs are multiplied by the measured ratio of its
            seconds per epoch to those of `based_on`.
        compute_ratio: that ratio, where it is to be given instead of measured.
    """

    name: str
    description: str = ""
    based_on: str | None = None
    recipe: dict = dataclasses.field(default_factory=dict)
    candidates: dict = dataclasses.field(default_factory=dict)
    operators: tuple[str, ...] | None = None
    equal_compute_to: str | None = None
    compute_ratio: float | None = None


@dataclass(frozen=True)
class Cell:
    """One line of the result table: an arm on a backbone and operator."""

    backbone: str
    operator: str
    arm: str

    def __str__(self):
        return f"{self.backbone}/{self.operator}/{self.arm}"


@dataclass(frozen=True)
class Study:
    """A grid of training runs.

    Stage 1 trains every cell once per candidate for `tuning_epochs` with `tuning_seed`; the best validation accuracy
    chooses. Stage 2 trains the choice for the recipe's epochs with every seed and evaluates the test set once.

    Args:
        name, title, notes: for the report.
        dataset: as `datasets.load`.
        backbones, operators, seeds: the axes.
        recipe: `Recipe` fields that all runs share.
        candidates: {recipe field: values}; every arm chooses from their product.
        tuning_epochs: epochs of stage 1; tuning_seed: its seed.
        arms: in the order of the report.
        comparisons: what is asked.
    """

    name: str
    title: str
    notes: str
    dataset: str
    backbones: tuple[str, ...]
    operators: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: dict
    candidates: dict
    tuning_epochs: int
    tuning_seed: int
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]

    @classmethod
    def load(cls, path) -> Study:
        """Reads a study from a TOML file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not TOML, an unknown key, or values that no run could use.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"study: there is no file {path}.")
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"study: {path} is not a TOML file: {error}.") from error
        return cls.from_dict({"name": path.stem, **data})

    @classmethod
    def from_dict(cls, data: dict) -> Study:
        """A study from plain data, laid out as the shipped files under studies/.

        Raises:
            ValueError: an unknown or missing key, an arm that refers to none, a recipe that cannot be.
        """
        known = (
            "arms",
            "backbones",
            "candidates",
            "comparisons",
            "dataset",
            "name",
            "notes",
            "operators",
            "recipe",
            "seeds",
            "title",
            "tuning",
        )
        _known_keys("study", data, known)
        for key in ("arms", "backbones", "dataset", "operators"):
            if not data.get(key):
                raise ValueError(f"study: `{key}` must be given. Received: {key}={data.get(key)!r}.")
        seeds = _values("study", "seeds", data.get("seeds", [0]))
        for seed in seeds:
            _validate.int_in("study", "seeds", seed, 0, 2**31 - 1)
        tuning = _table("study", "tuning", data.get("tuning", {}))
        _known_keys("study [tuning]", tuning, ("epochs", "seed"))
        recipe = _table("study", "recipe", data.get("recipe", {}))
        for key in ("backbone", "operator", "seed"):
            if key in recipe:
                raise ValueError(
                    f"study [recipe]: `{key}` must not be here; the grid's `{key}s` sets it. Received: {key}={recipe[key]!r}."
                )
        whole = Recipe.from_dict({"backbone": backbones.NAMES[0], **recipe})
        if whole.validation_fraction == 0:
            raise ValueError(
                "study [recipe]: `validation_fraction` must be greater than 0: candidates are chosen on validation "
                "images. Received: validation_fraction=0."
            )
        study = cls(
            name=str(data["name"]) if "name" in data else "study",
            title=data.get("title", data.get("name", "Study")),
            notes=data.get("notes", "").strip(),
            dataset=data["dataset"],
            backbones=_values("study", "backbones", data["backbones"]),
            operators=_values("study", "operators", data["operators"]),
            seeds=seeds,
            recipe=recipe,
            candidates=_candidates("study", data.get("candidates", {})),
            tuning_epochs=_validate.int_in("study [tuning]", "epochs", tuning.get("epochs", whole.epochs), 1, 100_000),
            tuning_seed=_validate.int_in("study [tuning]", "seed", tuning.get("seed", seeds[0]), 0, 2**31 - 1),
            arms=_arms(_table("study", "arms", data["arms"])),
            comparisons=_comparisons(data.get("comparisons", []), data["arms"]),
        )
        study._check()
        return study

    def _check(self):
        for backbone in self.backbones:
            _validate.one_of("study", "backbones", backbone, backbones.NAMES)
        for operator in self.operators:
            operators.parse_block(operator, "study, `operators`")
        for arm in self.arms:
            for operator in arm.operators or ():
                _validate.one_of(f"study [arms.{arm.name}]", "operators", operator, self.operators)
        for cell in self.cells():
            for candidate in self.candidates_of(cell):
                for tuning, seed in ((True, self.tuning_seed), (False, self.seeds[0])):
                    try:
                        self.make_recipe(cell, candidate, seed=seed, tuning=tuning)
                    except (ValueError, TypeError) as error:
                        where = f"{'tuning' if tuning else 'final'} run on {cell.backbone}"
                        raise type(error)(f"study [arms.{cell.arm}], {where}: {error}") from error

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def cells(self, only: str | None = None) -> tuple[Cell, ...]:
        """All lines of the table, or those that match a pattern.

        Args:
            only: shell pattern of an arm's name, or of "backbone/operator/arm".
        Raises:
            ValueError: nothing matches.
        """
        cells = [
            Cell(backbone, operator, arm.name)
            for backbone, operator, arm in itertools.product(self.backbones, self.operators, self.arms)
            if arm.operators is None or operator in arm.operators
        ]
        if only is None:
            return tuple(cells)
        chosen = tuple(c for c in cells if fnmatch.fnmatchcase(str(c) if "/" in only else c.arm, only))
        if not chosen:
            names = ", ".join(sorted({f"'{cell.arm}'" for cell in cells}))
            raise ValueError(f'study: `only` must match an arm ({names}) or "backbone/operator/arm". Received: only={only!r}.')
        return chosen

    def needed_for(self, cell: Cell) -> tuple[Cell, ...]:
        """The cells whose speed has to be measured before this cell's epochs are known."""
        arm = self.arm(cell.arm)
        if arm.equal_compute_to is None or arm.compute_ratio is not None:
            return ()
        return tuple(dataclasses.replace(cell, arm=name) for name in (arm.based_on, arm.equal_compute_to))

    def candidates_of(self, cell: Cell) -> tuple[dict, ...]:
        """What the cell chooses from: every combination of its candidate values."""
        arm = self.arm(cell.arm)
        values = {**self.candidates, **arm.candidates}
        return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))

    def is_tuned(self, cell: Cell) -> bool:
        """Whether stage 1 runs the cell: it has a choice, or its speed has to be measured."""
        return len(self.candidates_of(cell)) > 1 or any(cell in self.needed_for(other) for other in self.cells())

    def make_recipe(self, cell: Cell, candidate: dict, *, seed: int, tuning: bool, ratio: float = 1.0) -> Recipe:
        """The recipe of one run.

        Args:
            cell, candidate, seed: which run.
            tuning: stage 1, at its share of the epochs.
            ratio: factor of the epochs, for equal compute.

        A network that the run starts from has the run's seed; a teacher is the same for all.
        """
        values = {**self.recipe, "backbone": cell.backbone, "operator": cell.operator, **self.arm(cell.arm).recipe}
        recipe = Recipe.from_dict({**values, **candidate, "seed": seed})
        if recipe.start is not None:
            recipe = recipe.replace(start={**recipe.start, "seed": seed})
        full_epochs = Recipe.from_dict({"backbone": cell.backbone, **self.recipe}).epochs
        share = self.tuning_epochs / full_epochs if tuning else 1.0
        return recipe.replace(epochs=max(1, round(recipe.epochs * share * ratio)))


def _known_keys(owner, table, known):
    for key in table:
        _validate.one_of(owner, "key", key, tuple(sorted(known)))


def _table(owner, name, value):
    if not isinstance(value, dict):
        raise TypeError(f"{owner}: `{name}` must be a table. Received: {name}={value!r}.")
    return dict(value)


def _values(owner, name, value) -> tuple:
    """A list from TOML: not empty, without repeats."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{owner}: `{name}` must be a list. Received: {name}={value!r}.")
    repeated = any(entry in value[:index] for index, entry in enumerate(value))
    if not value or repeated:
        raise ValueError(f"{owner}: `{name}` must hold one or more different values. Received: {name}={value!r}.")
    return tuple(value)


def _candidates(owner, table) -> dict:
    table = _table(owner, "candidates", table)
    known = sorted({field.name for field in dataclasses.fields(Recipe)} - {"backbone", "operator", "seed", "epochs"})
    _known_keys(f"{owner} [candidates]", table, known)
    return {key: _values(f"{owner} [candidates]", key, value) for key, value in table.items()}


def _arms(table) -> tuple[Arm, ...]:
    arms: dict[str, Arm] = {}
    for name, entry in table.items():
        owner = f"study [arms.{name}]"
        if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", name):
            raise ValueError(f"study: an arm's name must be letters, digits and '-'. Received: {name!r}.")
        entry = _table("study", f"arms.{name}", entry)
        _known_keys(owner, entry, [field.name for field in dataclasses.fields(Arm) if field.name != "name"])
        recipe = _table(owner, "recipe", entry.get("recipe", {}))
        if "seed" in recipe:
            raise ValueError(f"{owner}: `recipe` must not hold `seed`; the grid's `seeds` sets it.")
        candidates = _candidates(owner, entry.get("candidates", {}))
        named = entry.get("operators")
        named = None if named is None else _values(owner, "operators", named)
        if (based_on := entry.get("based_on")) is not None:
            _validate.one_of(owner, "based_on", based_on, tuple(sorted(arms)))  # arms above this one
            base = arms[based_on]
            recipe, candidates = {**base.recipe, **recipe}, {**base.candidates, **candidates}
            named = named or base.operators
        arms[name] = Arm(
            name,
            entry.get("description", ""),
            based_on,
            recipe,
            candidates,
            named,
            entry.get("equal_compute_to"),
            entry.get("compute_ratio"),
        )
    for arm in arms.values():
        owner = f"study [arms.{arm.name}]"
        if arm.compute_ratio is not None:
            _validate.number_in(owner, "compute_ratio", arm.compute_ratio, 0.01, 100)
        if arm.equal_compute_to is None:
            continue
        plain = tuple(sorted(a.name for a in arms.values() if a.equal_compute_to is None))
        _validate.one_of(owner, "equal_compute_to", arm.equal_compute_to, plain)
        if arm.based_on not in plain:
            raise ValueError(
                f"{owner}: `based_on` must name the arm whose epochs are scaled, one of {', '.join(plain)}. "
                f"Received: based_on={arm.based_on!r}."
            )
        for other in (arms[arm.based_on], arms[arm.equal_compute_to]):
            if other.operators is not None and not set(arm.operators or ("all",)) <= set(other.operators):
                raise ValueError(
                    f"{owner}: `operators` must be among those of '{other.name}', whose speed is measured. "
                    f"Received: operators={list(arm.operators or ('all',))}."
                )
    return tuple(arms.values())


def _comparisons(entries, arms) -> tuple[Comparison, ...]:
    own = []
    for entry in entries:
        _known_keys("study [[comparisons]]", entry, ("against", "arm", "question"))
        for key in ("arm", "against"):
            _validate.one_of("study [[comparisons]]", key, entry.get(key), tuple(sorted(arms)))
        question = entry.get("question", f"{entry['arm']} minus {entry['against']}")
        own.append(Comparison(question, entry["arm"], entry["against"]))
    asked = {(comparison.arm, comparison.against) for comparison in own}
    standard = [c for c in QUESTIONS if c.arm in arms and c.against in arms and (c.arm, c.against) not in asked]
    return (*standard, *own)
