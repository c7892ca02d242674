"""Audio front end: recordings to log-mel energies."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from drivetrain_pipelines.spec import AudioSpec

_MIN_ENERGY = 1e-10  # lower energies count as silence

FloatArray = npt.NDArray[np.float32]


def read_audio(content: bytes, spec: AudioSpec) -> FloatArray:
    """Decode mono samples at the job's rate, float32 ``[seconds * rate]``, cut or padded. Raises as soundfile."""
    import soundfile  # imported here: only audio jobs need it
    from scipy.signal import resample_poly

    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate != spec.sample_rate:
        mono = resample_poly(mono, spec.sample_rate, rate).astype(np.float32)
    length = round(spec.seconds * spec.sample_rate)
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
