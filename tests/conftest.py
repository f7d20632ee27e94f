"""Set before TensorFlow is imported: one thread per process (the suite runs two), no GPU, no start-up noise."""

import os

import pytest

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_collection_modifyitems(items):
    """The longest test first: at the end of the suite one of the two processes would wait for it."""
    items.sort(key=lambda item: item.name != "test_joint_training_holds_on_jax")


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """A folder of small .tflite files with every operator that export writes, in both flavours."""
    import fuzz_tflite

    folder = tmp_path_factory.mktemp("models")
    fuzz_tflite.write_models(folder)
    return folder
