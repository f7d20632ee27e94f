"""Two-stage search for multiplication-free networks under a microcontroller's limits, on KerasTuner.

Names are imported when first used: KerasTuner and TensorFlow are heavy.
"""

import importlib

_HOME = {
    "Gene": "genes",
    "GeneSpace": "genes",
    "Plan": "plan",
    "Search": "pipeline",
    "SearchSpace": "space",
    "StageSpace": "space",
    "SuperNet": "supernet",
    "SuperNetEvaluator": "evaluator",
    "TargetSpace": "space",
    "TwoStageOracle": "oracle",
    "TwoStageTuner": "tuner",
    "rank_subspaces": "space",
}

__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'saaug_keras.search' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"saaug_keras.search.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
