"""Drawings of things that the networks of the zoo know, made here: photographs of the data sets are not ours to give.

They show that a network runs, on a board or in the demo. How well it does is for its test images to say.
"""

from __future__ import annotations

import numpy as np

_SMOOTH = 8  # drawn at this many times the size, then averaged


class _Canvas:
    """A colour picture on the unit square, x to the right and y down; later shapes cover earlier ones."""

    def __init__(self, height, width, top, bottom):
        self.height, self.width = height * _SMOOTH, width * _SMOOTH
        self.y = ((np.arange(self.height) + 0.5) / self.height)[:, None]
        self.x = ((np.arange(self.width) + 0.5) / self.width)[None, :]
        self.classes = np.zeros((self.height, self.width), np.uint8)
        self.pixels = np.zeros((self.height, self.width, 3))
        self.pixels[:] = _mix(top, bottom, self.y[..., None])

    def fill(self, mask, colour, shade=0.0, label=None):
        """Covers a mask; `shade` darkens it towards the lower right by that share."""
        light = 1 - shade * (0.5 * self.x + 0.5 * self.y)
        mask = np.broadcast_to(mask, self.classes.shape)
        self.pixels[mask] = (np.array(colour) * light[..., None])[mask]
        if label is not None:
            self.classes[mask] = label
        return self

    def ellipse(self, x, y, rx, ry, colour, shade=0.5, label=None):
        return self.fill(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2 < 1, colour, shade, label)

    def box(self, x0, y0, x1, y1, colour, shade=0.3, label=None):
        inside = (self.x >= x0) & (self.x < x1) & (self.y >= y0) & (self.y < y1)
        return self.fill(inside, colour, shade, label)

    def polygon(self, points, colour, shade=0.3, label=None):
        """Of corners in clockwise order; convex."""
        inside = np.ones(self.classes.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            inside &= (x1 - x0) * (self.y - y0) - (y1 - y0) * (self.x - x0) >= 0
        return self.fill(inside, colour, shade, label)

    def petals(self, x, y, count, distance, size, colour):
        for angle in np.arange(count) * (2 * np.pi / count):
            self.ellipse(x + distance * np.cos(angle), y + distance * np.sin(angle), size, size, colour, 0.3)
        return self

    def image(self, seed):
        """uint8 (H, W, 3), with a little noise, as cameras have."""
        noise = np.random.default_rng(seed).normal(0, 4, (self.height // _SMOOTH, self.width // _SMOOTH, 3))
        small = self.pixels.reshape(self.height // _SMOOTH, _SMOOTH, -1, _SMOOTH, 3).mean(axis=(1, 3))
        return np.clip(np.round(small + noise), 0, 255).astype(np.uint8)

    def labels(self):
        """uint8 (H, W)."""
        return self.classes[_SMOOTH // 2 :: _SMOOTH, _SMOOTH // 2 :: _SMOOTH].copy()


def _mix(first, second, share):
    return np.array(first) * (1 - share) + np.array(second) * share


_WHITE, _BLACK = (245, 245, 245), (20, 20, 25)
_SKY, _HAZE, _LEAF, _GRASS = (80, 140, 215), (190, 215, 235), (50, 120, 45), (90, 150, 60)


def _fruit(colour):
    canvas = _Canvas(32, 32, _WHITE, (225, 225, 225)).ellipse(0.52, 0.86, 0.36, 0.06, (190, 190, 190), 0)
    canvas.ellipse(0.5, 0.54, 0.36, 0.36, colour, 0.6).ellipse(0.38, 0.4, 0.06, 0.05, (255, 235, 225), 0)
    return canvas.box(0.485, 0.1, 0.525, 0.24, (90, 60, 30)).ellipse(0.6, 0.15, 0.1, 0.045, _LEAF)


def _flower(petal, heart, count, distance, size, middle):
    canvas = _Canvas(32, 32, (40, 80, 35), (30, 60, 25)).box(0.47, 0.5, 0.53, 1, (60, 130, 50))
    canvas.ellipse(0.3, 0.85, 0.2, 0.07, _LEAF).ellipse(0.7, 0.9, 0.2, 0.07, _LEAF)
    return canvas.petals(0.5, 0.42, count, distance, size, petal).ellipse(0.5, 0.42, middle, middle, heart, 0.2)


def _pear():
    canvas = _Canvas(32, 32, _WHITE, (225, 225, 225)).ellipse(0.5, 0.64, 0.3, 0.28, (190, 195, 60), 0.5)
    canvas.ellipse(0.5, 0.38, 0.17, 0.24, (195, 200, 65), 0.4)
    return canvas.box(0.485, 0.06, 0.525, 0.18, (90, 60, 30))


def _cloud():
    canvas = _Canvas(32, 32, (50, 110, 200), (130, 180, 235))
    for x, y, r in ((0.25, 0.55, 0.16), (0.45, 0.42, 0.22), (0.68, 0.5, 0.19), (0.82, 0.6, 0.12), (0.5, 0.62, 0.2)):
        canvas.ellipse(x, y, r * 1.2, r, _WHITE, 0.12)
    return canvas


def _sea():
    canvas = _Canvas(32, 32, (120, 170, 220), (200, 220, 235)).box(0, 0.42, 1, 1, (30, 85, 140), 0.3)
    for y in (0.5, 0.6, 0.72, 0.86):
        canvas.fill(np.abs(canvas.y - y - 0.015 * np.sin(14 * canvas.x + 40 * y)) < 0.012, (150, 185, 210))
    return canvas


def _plain():
    return _Canvas(32, 32, _SKY, (225, 235, 240)).box(0, 0.6, 1, 1, (175, 160, 80), 0.2)


def _mountain():
    canvas = _Canvas(32, 32, _SKY, _HAZE).polygon([(0.3, 0.25), (0.75, 0.9), (-0.15, 0.9)], (95, 95, 105))
    canvas.polygon([(0.68, 0.35), (1.15, 0.9), (0.25, 0.9)], (75, 78, 90)).box(0, 0.85, 1, 1, (60, 85, 50))
    return canvas.polygon([(0.3, 0.25), (0.39, 0.38), (0.21, 0.38)], _WHITE, 0)


def _road():
    canvas = _Canvas(32, 32, _SKY, _HAZE).box(0, 0.45, 1, 1, (110, 120, 60))
    canvas.polygon([(0.47, 0.45), (0.53, 0.45), (0.95, 1), (0.05, 1)], (95, 95, 100))
    return canvas.polygon([(0.497, 0.45), (0.503, 0.45), (0.53, 1), (0.47, 1)], (235, 215, 120), 0)


def _skyscraper():
    canvas = _Canvas(32, 32, (90, 150, 220), _HAZE).box(0.36, 0.06, 0.66, 1, (140, 155, 175), 0.5)
    for row in range(11):
        canvas.box(0.39, 0.1 + row * 0.08, 0.63, 0.14 + row * 0.08, (60, 75, 100), 0.2)
    return canvas.box(0.05, 0.6, 0.3, 1, (125, 115, 110)).box(0.72, 0.5, 0.98, 1, (150, 140, 130))


def _bottle():
    canvas = _Canvas(32, 32, _WHITE, _WHITE).box(0.36, 0.38, 0.64, 0.95, (40, 110, 60), 0.6)
    canvas.ellipse(0.5, 0.38, 0.14, 0.1, (40, 110, 60)).box(0.45, 0.1, 0.55, 0.35, (40, 110, 60), 0.4)
    return canvas.box(0.44, 0.04, 0.56, 0.1, (200, 170, 60)).box(0.36, 0.55, 0.64, 0.78, (235, 225, 200), 0.2)


def _cup():
    canvas = _Canvas(32, 32, (235, 235, 238), (215, 215, 218)).ellipse(0.74, 0.52, 0.16, 0.17, (190, 60, 50))
    canvas.ellipse(0.74, 0.52, 0.09, 0.1, (228, 228, 230), 0).box(0.22, 0.28, 0.7, 0.82, (200, 65, 55), 0.4)
    return canvas.ellipse(0.46, 0.82, 0.24, 0.07, (170, 50, 45)).ellipse(0.46, 0.28, 0.24, 0.08, (80, 45, 30), 0.2)


def _plate():
    canvas = _Canvas(32, 32, (150, 105, 70), (130, 90, 60)).ellipse(0.5, 0.52, 0.44, 0.42, _WHITE, 0.12)
    return canvas.ellipse(0.5, 0.52, 0.29, 0.27, (222, 222, 226), 0.05).ellipse(0.5, 0.51, 0.27, 0.25, _WHITE, 0.08)


def _clock():
    canvas = _Canvas(32, 32, (200, 195, 185), (190, 185, 175)).ellipse(0.5, 0.5, 0.42, 0.42, _BLACK, 0.2)
    canvas.ellipse(0.5, 0.5, 0.36, 0.36, _WHITE, 0.08)
    canvas.petals(0.5, 0.5, 12, 0.29, 0.025, _BLACK).box(0.485, 0.26, 0.515, 0.52, _BLACK)
    return canvas.box(0.5, 0.485, 0.68, 0.52, _BLACK)


def _television():
    canvas = _Canvas(32, 32, (200, 190, 175), (150, 120, 90)).box(0.1, 0.2, 0.9, 0.76, _BLACK)
    return canvas.box(0.14, 0.24, 0.86, 0.7, (70, 105, 150), 0.4).box(0.4, 0.76, 0.6, 0.84, (40, 40, 45))


def _house():
    canvas = _Canvas(32, 32, _SKY, _HAZE).box(0, 0.75, 1, 1, _GRASS).box(0.18, 0.45, 0.82, 0.85, (215, 200, 175))
    canvas.polygon([(0.5, 0.15), (0.92, 0.47), (0.08, 0.47)], (140, 60, 45)).box(0.44, 0.6, 0.57, 0.85, (90, 55, 35))
    return canvas.box(0.25, 0.55, 0.37, 0.68, (70, 90, 120)).box(0.64, 0.55, 0.76, 0.68, (70, 90, 120))


def _mushroom():
    canvas = _Canvas(32, 32, (60, 70, 40), (70, 60, 35)).box(0.42, 0.5, 0.58, 0.9, (230, 220, 195), 0.3)
    cap = ((canvas.x - 0.5) / 0.38) ** 2 + ((canvas.y - 0.52) / 0.36) ** 2 < 1
    return canvas.fill(cap & (canvas.y < 0.55), (170, 90, 50), 0.4)


# CIFAR-100's class -> drawing.
_THINGS = {
    "apple": lambda: _fruit((200, 35, 40)),
    "bottle": _bottle,
    "clock": _clock,
    "cloud": _cloud,
    "cup": _cup,
    "house": _house,
    "mountain": _mountain,
    "mushroom": _mushroom,
    "orange": lambda: _fruit((240, 140, 20)),
    "pear": _pear,
    "plain": _plain,
    "plate": _plate,
    "poppy": lambda: _flower((215, 35, 30), (30, 25, 30), 5, 0.17, 0.2, 0.09),
    "road": _road,
    "sea": _sea,
    "skyscraper": _skyscraper,
    "sunflower": lambda: _flower((245, 195, 25), (80, 50, 25), 16, 0.27, 0.1, 0.2),
    "television": _television,
}


def _scene(seed):
    """A road scene with CamVid's class of every pixel: 0 sky, 1 building, 2 pole, 3 road, 4 pavement, 5 tree, 8 car."""
    rng = np.random.default_rng(seed)
    shift = float(rng.uniform(-0.1, 0.1))
    canvas = _Canvas(120, 160, (170, 190, 215), (215, 225, 235))
    canvas.box(0, 0.2, 0.33, 0.7, (150, 125, 105), label=1).box(0.72, 0.1, 1, 0.7, (125, 115, 110), label=1)
    for row in (0.26, 0.36, 0.46):
        for x in (0.04, 0.14, 0.24, 0.77, 0.87):
            canvas.box(x, row, x + 0.05, row + 0.06, (65, 70, 85), label=1)
    canvas.ellipse(0.4 + shift, 0.42, 0.1, 0.16, (60, 95, 50), label=5).box(0, 0.62, 1, 1, (165, 160, 155), label=4)
    middle = 0.5 + shift
    canvas.polygon([(middle - 0.06, 0.56), (middle + 0.06, 0.56), (1.1, 1), (-0.1, 1)], (95, 95, 100), label=3)
    canvas.box(0.69, 0.15, 0.7, 0.72, (70, 70, 75), label=2)
    x = middle + float(rng.uniform(0.0, 0.12))
    canvas.box(x - 0.09, 0.64, x + 0.09, 0.76, (150, 35, 40), label=8).box(x - 0.06, 0.58, x + 0.06, 0.65, _BLACK, label=8)
    return canvas


def dataset(name: str):
    """The drawings of what a data set's networks know: a `datasets.Dataset` without training images."""
    from saaug_keras import _validate, datasets

    _validate.one_of("zoo.samples", "dataset", name, ("camvid", "cifar100"))
    if name == "camvid":
        scenes = [_scene(seed) for seed in range(4)]
        images = np.stack([scene.image(seed) for seed, scene in enumerate(scenes)])
        labels = np.stack([scene.labels() for scene in scenes])
        names, ignored = datasets.CAMVID_CLASSES, len(datasets.CAMVID_CLASSES)
    else:
        names, ignored = datasets.CIFAR100_CLASSES, None
        labels = np.array([names.index(thing) for thing in _THINGS], np.int32)
        images = np.stack([draw().image(seed) for seed, draw in enumerate(_THINGS.values())])
    return datasets.Dataset(name, images[:0], labels[:0], images, labels, names, ignore_class=ignored)
