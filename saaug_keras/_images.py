"""Image files as arrays: which files of a folder are images, what a camera's rotation means, labels per pixel."""

from __future__ import annotations

import pathlib
import struct
import zlib

import numpy as np

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
_LITTER = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini")
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # its tag in Exif


def is_litter(path) -> bool:
    """Whether a file or folder is not the user's but a tool's: hidden ones (`.DS_Store`, `._photo.png`,
    `.ipynb_checkpoints`) and the folders of thumbnails and waste of common systems."""
    return path.name.startswith(".") or path.name in _LITTER


def files_of(folder) -> list[pathlib.Path]:
    """The image files of a folder, sorted by name, without what tools leave there.

    Raises:
        ValueError: something with the ending of an image that is no file: a folder, a pipe, a link to nothing.
    """
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in ENDINGS and not is_litter(file))
    for file in found:
        if not file.is_file():
            raise ValueError(f"datasets.load_folder: {file} must be an image. It is not a regular file; remove it.")
    return found


def read(file, channels: int) -> np.ndarray:
    """An image as uint8 (H, W, channels), turned as its Exif says; of an animation the first frame.

    Raises:
        ValueError: it cannot be read.
    """
    import tensorflow as tf

    data = file.read_bytes()
    try:
        image = tf.io.decode_image(data, channels=channels, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"datasets.load_folder: {file} is not an image that can be read.") from error
    return _turned(image, orientation(data))


def read_labels(file) -> np.ndarray:
    """The class of every pixel, (H, W), uint8 or uint16: a PNG's grey values of 1 to 16 bits or, as PASCAL VOC has
    them, its indices into a palette.

    Raises:
        ValueError: another kind of file, in which classes are lost: compressed as photographs are, or colours.
    """
    import tensorflow as tf

    data = file.read_bytes()
    must = f"datasets.load: {file} must hold the class of every pixel, as a grey or palette PNG"
    if not data.startswith(_PNG):
        raise ValueError(f"{must}. It is not a PNG.")
    try:
        parts = list(_png_chunks(data))
        name, header = parts[0]
        width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", header)
    except (IndexError, struct.error) as error:
        raise ValueError(f"{must}. It is damaged.") from error
    if colour not in (0, 3):
        raise ValueError(f"{must}. It has colours, or an alpha channel.")
    # Without palette and transparency, indices are grey values.
    parts[0] = (name, struct.pack(">IIBBBBB", width, height, depth, 0, *rest))
    plain = _PNG + b"".join(_chunk(kind, body) for kind, body in parts if kind in (b"IHDR", b"IDAT", b"IEND"))
    try:
        grey = tf.io.decode_png(plain, channels=1, dtype=tf.uint16 if depth == 16 else tf.uint8).numpy()[..., 0]
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{must}. It is damaged.") from error
    return grey // (255 // ((1 << depth) - 1)) if depth < 8 else grey  # the decoder spreads few bits over all greys


def _png_chunks(data):
    """(kind, body) of each chunk, checked by its CRC."""
    offset = len(_PNG)
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        (crc,) = struct.unpack_from(">I", data, offset + 8 + length)
        if crc != zlib.crc32(kind + body):
            raise struct.error("a CRC is wrong")
        yield kind, body
        offset += 12 + length


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def orientation(data: bytes) -> int:
    """The Exif orientation, 1 to 8, of a JPEG or PNG file's bytes; 1, upright, where there is none that can be read."""
    try:
        exif = _exif_of(data)
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, offset)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, offset + 2 + 12 * entry)
            if tag == _ORIENTATION and kind == 3 and 1 <= value <= 8:
                return value
    except (IndexError, KeyError, struct.error):
        pass
    return 1


def _exif_of(data):
    """The TIFF structure with a file's Exif, empty if it has none."""
    if data.startswith(_PNG):
        return next((body for kind, body in _png_chunks(data) if kind == b"eXIf"), b"")
    if not data.startswith(b"\xff\xd8"):
        return b""
    offset = 2
    while data[offset : offset + 1] == b"\xff" and data[offset + 1] != 0xDA:  # up to the start of the scan
        marker, length = struct.unpack_from(">xBH", data, offset)
        if marker == 0xE1 and data.startswith(b"Exif\0\0", offset + 4):
            return data[offset + 10 : offset + 2 + length]
        offset += 2 + length
    return b""


def _turned(image, code):
    """The upright image of one that is stored with Exif orientation `code`."""
    if code >= 5:  # stored by columns
        image = image.swapaxes(0, 1)
    rows = -1 if code in (3, 4, 7, 8) else 1
    columns = -1 if code in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
