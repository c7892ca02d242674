"""Pictures: encoded files or arrays become uint8 pixels of the job's size, as a viewer shows them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.column import (
    Column,
    Converted,
    UnfitError,
    convert_each,
    is_bytes,
    is_empty,
    kind_of,
    plain,
    why_empty,
)
from drivetrain_pipelines.raw.conversions.numbers import number_of, numbers
from drivetrain_pipelines.spec import ImageSpec

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_SIXTEEN_BITS = 65535
_STEREO = "MPO"  # a photograph of a telephone or a stereo camera: the first frame is the picture


def images(column: Column, spec: ImageSpec) -> Converted:
    """Return pixels, uint8 ``[rows, height, width, channels]``; with ``decode: false`` the encoded files, large_binary.

    Raises:
        PrepareError: the column has a type that is no pictures.
    """
    if not spec.decode:
        found, bad = convert_each(encoded_values(column, "images"), _verified)
        return Converted(pa.array(found, pa.large_binary()), bad)
    found, bad = convert_each(_decodable(column), lambda value: decode_image(value, spec))
    pixels = np.zeros((len(column), spec.height, spec.width, len(spec.mode)), np.uint8)
    for row, picture in enumerate(found):
        if picture is not None:
            pixels[row] = picture
    return Converted(pixels, bad)


def decode_image(value: Any, spec: ImageSpec) -> Pixels:
    """Decode a file, a picture of Pillow or an array to uint8 ``[height, width, channels]``. Raises `UnfitError`."""
    from PIL import Image, ImageOps  # imported here: only image jobs need it

    with _sentences(), _opened(value) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != _STEREO:
            raise UnfitError(f"it has {frames} frames; keep one of them in data.transform or data.reader")
        image.load()
        picture = _eight_bits(ImageOps.exif_transpose(image), image.format)
        if picture.mode in ("P", "PA"):
            picture = picture.convert("RGBA")  # a palette may have transparent colors
        resized = picture.convert(spec.mode).resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        return np.asarray(resized, np.uint8).reshape(spec.height, spec.width, -1)


def encoded(value: Any, what: str) -> bytes:
    """Return the bytes of an encoded file: given as bytes, or in the structure of Hugging Face. Raises `UnfitError`."""
    if isinstance(value, dict) and "bytes" in value:
        if value["bytes"] is None and value.get("path"):
            raise UnfitError(f"it has only the path {value['path']!r}; the {what} must be in the data")
        value = value["bytes"]
    if is_empty(value):
        raise UnfitError(why_empty(value))
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise UnfitError(f"it is {kind_of(value)}, not an encoded file in bytes")
    if not len(value):
        raise UnfitError("it is an empty file")
    return bytes(value)


def encoded_values(column: Column, what: str) -> pa.Array | list[Any]:
    """Return the values of a column of encoded files. Raises `PrepareError` for a column of another type."""
    if isinstance(column.values, pa.Array) and not _holds_files(plain(column.values).type):
        allowed = f"encoded {what} as bytes, or a structure with bytes and path"
        raise column.refusal(f"the type {column.values.type}", allowed)
    return plain(column.values) if isinstance(column.values, pa.Array) else column.values


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and (is_bytes(field.type) or pa.types.is_null(field.type)) for field in kind)
    return is_bytes(kind) or bool(pa.types.is_null(kind))


def _decodable(column: Column) -> pa.Array | list[Any]:
    """Return the values of a column of encoded files or of pixels."""
    if not isinstance(column.values, pa.Array) or _holds_files(plain(column.values).type):
        return column.values
    kind = plain(column.values).type
    if (not pa.types.is_nested(kind) and not isinstance(kind, pa.FixedShapeTensorType)) or pa.types.is_struct(kind):
        return encoded_values(column, "images")  # refuses it
    try:
        made = numbers(column)
    except PrepareError:
        return column.values.to_pylist()  # pictures of different sizes
    return [None if row in made.bad else pixels for row, pixels in enumerate(made.values)]


def _verified(value: Any) -> bytes:
    """Return an encoded file once Pillow has read all of it."""
    content = encoded(value, "image")
    with _sentences(), _opened(content) as image:
        image.load()
    return content


@contextmanager
def _opened(value: Any) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        yield value
    elif isinstance(value, (dict, bytes, bytearray, memoryview)) or is_empty(value):
        content = encoded(value, "image")
        try:
            opened = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            raise UnfitError("it is not an image known to Pillow") from None
        with opened as image:
            yield image
    else:
        yield Image.fromarray(_pixels(number_of(value)))


def _pixels(array: npt.NDArray[Any]) -> Pixels:
    """Return the uint8 pixels of an array ``[height, width]`` or ``[height, width, channels]``."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in _CHANNELS):
        raise UnfitError(f"its shape {list(array.shape)} is not [height, width] or [height, width, 1, 3 or 4]")
    if array.dtype in (np.uint8, np.uint16) or array.dtype.kind == "f":
        return _scaled(array)
    if array.min() < 0 or array.max() > 255:
        raise UnfitError(f"it has pixels from {array.min()} to {array.max()}; whole numbers are 0 to 255")
    return array.astype(np.uint8)


def _eight_bits(image: Image, format_: str | None) -> Image:
    """Scale pixels of 16 bits or fractions to 8 bits; Pillow itself would cut them."""
    from PIL import Image

    if image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.mode.startswith("I;16") or (image.mode == "I" and format_ == "PPM"):
        return Image.fromarray(_scaled(np.asarray(image).astype(np.uint16)))
    if image.mode.startswith("I"):
        raise UnfitError("its pixels are whole numbers of 32 bits, whose range is unknown; convert it to 8 or 16 bits")
    return image


def _scaled(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UnfitError(f"its pixels are fractions from {low:g} to {high:g}; scale them to 0 to 1")
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return np.rint(array.astype(np.float64) * (255 / _SIXTEEN_BITS)).astype(np.uint8)


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn the errors of Pillow, which has many kinds for damaged files, into sentences."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; what matters raises
            yield
    except (UnfitError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UnfitError(f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; make it smaller") from None
    except Exception as error:
        raise UnfitError(
            f"it is a damaged or unusual image: {str(error).splitlines()[0] if str(error) else kind_of(error)}"
        ) from None
