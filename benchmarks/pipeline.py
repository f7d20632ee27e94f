"""Images per second of the input pipeline alone, on random 32x32 images: `python benchmarks/pipeline.py`.

The pipeline must stay well above what training consumes (benchmarks of training say how much that is).
"""

import time

import numpy as np

from saaug_keras import datasets


def main():
    images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
    labels = np.zeros(len(images), np.int32)
    settings = {
        "plain": {},
        "shuffled": {"shuffle": True},
        "shuffled, shifted and mirrored": {"shuffle": True, "augment": True},
        "the same, enlarged to 96x96": {"shuffle": True, "augment": True, "resolution": 96},
        "the same, reduced to 16x16": {"shuffle": True, "augment": True, "resolution": 16},
    }
    for name, options in settings.items():
        batches = datasets.pipeline(images, labels, batch_size=128, **options)
        for _ in batches.take(10):
            pass
        start = time.perf_counter()
        for _ in batches:
            pass
        print(f"{name:32} {len(images) / (time.perf_counter() - start):12,.0f} img/s", flush=True)


if __name__ == "__main__":
    main()
