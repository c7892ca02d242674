"""Recordings: encoded files become log-mel energies."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.column import Column, Converted, UnfitError, convert_each, kind_of
from drivetrain_pipelines.raw.conversions.images import encoded, encoded_values
from drivetrain_pipelines.raw.conversions.numbers import number_of
from drivetrain_pipelines.spec import AudioSpec

_MIN_ENERGY = 1e-10  # lower energies count as silence
_UNKNOWN_SIZE = (0, 0xFFFFFFFF)  # what a program writes that does not know the length when it starts
_OGG_LAST_PAGE, _OGG_HEADER = 4, 27

FloatArray = npt.NDArray[np.float32]


def recordings(column: Column, spec: AudioSpec) -> Converted:
    """Return energies, float32 ``[rows, frames, mels]``.

    Raises:
        PrepareError: the column has a type that is no recordings.
    """
    values = column.values
    if isinstance(values, pa.Array) and not _is_decoded(values.type):
        values = encoded_values(column, "recordings")
    if _length(spec) < round(spec.window_ms * spec.sample_rate / 1000):
        raise PrepareError(f"data.audio.seconds ({spec.seconds:g}) is shorter than data.audio.window_ms", "Increase it")
    found, bad = convert_each(values, lambda value: log_mel(read_audio(value, spec), spec))
    shape = log_mel(np.zeros(_length(spec), np.float32), spec).shape
    energies = np.zeros((len(column), *shape), np.float32)
    for row, mel in enumerate(found):
        if mel is not None:
            energies[row] = mel
    return Converted(energies, bad)


def read_audio(value: Any, spec: AudioSpec) -> FloatArray:
    """Decode mono samples at the job's rate, float32 ``[seconds * rate]``, cut or padded; the mean of the channels.

    Args:
        value: an encoded file, or the structures of Hugging Face: bytes and path, or array and sampling_rate.

    Raises:
        UnfitError: it is damaged, cut off, empty, or has numbers that are not finite.
    """
    from scipy.signal import resample_poly  # imported here: only audio jobs need it

    samples, rate = (
        _given(value) if isinstance(value, dict) and "array" in value else _decoded(encoded(value, "recording"))
    )
    if not len(samples):
        raise UnfitError("it has no samples")
    if not np.isfinite(samples).all():
        raise UnfitError(f"{np.count_nonzero(~np.isfinite(samples))} of its samples are not finite numbers")
    mono = samples.mean(axis=1)
    if rate != spec.sample_rate:
        mono = resample_poly(mono, spec.sample_rate, rate).astype(np.float32)
    length = _length(spec)
    return np.pad(mono[:length], (0, max(0, length - len(mono))))


def log_mel(samples: FloatArray, spec: AudioSpec) -> FloatArray:
    """Compute natural-log mel energies, float32 ``[frames, mels]``: Hann windows, power spectrum, mel filters."""
    window, hop = round(spec.window_ms * spec.sample_rate / 1000), round(spec.hop_ms * spec.sample_rate / 1000)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2
    return np.log(np.maximum(power @ _filters(window, spec.sample_rate, spec.mels), _MIN_ENERGY)).astype(np.float32)


@lru_cache(maxsize=8)
def _filters(window: int, sample_rate: int, mels: int) -> npt.NDArray[np.float64]:
    """Return triangular filters on the mel scale of O'Shaughnessy (1987); float64 ``[window // 2 + 1, mels]``."""
    frequencies = np.fft.rfftfreq(window, 1 / sample_rate)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    rising = (frequencies[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies[:, None]) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _length(spec: AudioSpec) -> int:
    return round(spec.seconds * spec.sample_rate)


def _is_decoded(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {"array", "sampling_rate"} <= {field.name for field in kind}


def _given(value: dict[str, Any]) -> tuple[FloatArray, int]:
    """Return the samples ``[frames, channels]`` of a decoded recording, and their rate."""
    samples = number_of(value["array"])
    rate = value.get("sampling_rate")
    if not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise UnfitError(f"its sampling_rate is {rate!r}, not a positive whole number")
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise UnfitError(
            f"its array has the shape {list(samples.shape)} and the type {samples.dtype}, not [samples] of fractions"
        )
    return samples.astype(np.float32)[:, None], int(rate)


def _decoded(content: bytes) -> tuple[FloatArray, int]:
    """Return the samples ``[frames, channels]`` of a file, and their rate."""
    import soundfile

    if problem := _cut_off(content):
        raise UnfitError(problem)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            expected, rate = file.frames, int(file.samplerate)
            samples: FloatArray = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, OverflowError) as error:
        reason = getattr(error, "error_string", "") or str(error) or kind_of(error)
        raise UnfitError(
            f"it is not a recording that libsndfile can read: {reason.splitlines()[0].rstrip('.')}"
        ) from None
    if len(samples) < expected:
        raise UnfitError(f"it is cut off: it has {len(samples)} of {expected} samples")
    if rate <= 0:
        raise UnfitError(f"its sample rate is {rate} Hz")
    return samples, rate


def _cut_off(content: bytes) -> str:
    """Return what is wrong with the length of a file; libsndfile plays what there is and reports nothing."""
    try:
        promised = _PROMISES[content[:4]](content) if content[:4] in _PROMISES else 0
    except (struct.error, IndexError):
        return f"it is cut off in its header, after {len(content)} bytes"
    if len(content) < promised:
        return f"it is cut off: it has {len(content)} of {promised} bytes"
    if content[:4] == b"OggS" and not content[content.rfind(b"OggS") + 5] & _OGG_LAST_PAGE:
        return "it is cut off: its last page is missing"
    return ""


def _data_end(content: bytes, order: str, samples: bytes) -> int:
    """Return the end of the chunk of samples of a RIFF or AIFF file; the size of the whole is often wrong in them."""
    at = 12
    while at < len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        if name == samples:
            return 0 if size in _UNKNOWN_SIZE else at + 8 + int(size)
        at += 8 + int(size) + int(size) % 2
    return at + 8


def _ogg_end(content: bytes) -> int:
    last = content.rfind(b"OggS")
    first = last + _OGG_HEADER + content[last + _OGG_HEADER - 1]
    return first + sum(content[last + _OGG_HEADER : first])


def _au_end(content: bytes) -> int:
    first, size = struct.unpack_from(">II", content, 4)
    return 0 if size in _UNKNOWN_SIZE else int(first) + int(size)


def _caf_end(content: bytes) -> int:
    end = 8
    while end < len(content):
        (size,) = struct.unpack_from(">q", content, end + 4)
        if size < 0:  # unknown
            return 0
        end += 12 + int(size)
    return end


# The number of bytes that a file has by its own account, by its first bytes; 0 if it does not know.
_PROMISES: dict[bytes, Callable[[bytes], int]] = {
    b"RIFF": lambda content: _data_end(content, "<", b"data"),
    b"FORM": lambda content: _data_end(content, ">", b"SSND"),
    b"RF64": lambda content: int(struct.unpack_from("<Q", content, 20)[0]) + 8,
    b"OggS": _ogg_end,
    b".snd": _au_end,
    b"caff": _caf_end,
}
