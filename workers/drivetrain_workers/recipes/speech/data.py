"""Words synthesized by espeak-ng in many voices, at a random time within a second, with noise."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
_TIMBRES = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+croak")
_PITCHES, _RATES = (35, 60), (140, 200)  # on a scale of 0 to 99; words per minute
_SECONDS = 1.0  # of a recording
_SNR_DB = (2.0, 30.0)  # signal-to-noise ratio in decibels
_RETRIEVAL, _UTF8 = 1, 1  # the sound is returned to the callback; encoding of the text
_RATE, _PITCH = 1, 3  # numbers of espeak-ng's parameters


def words(path: Path) -> Iterator[dict[str, object]]:
    """Yield every word in every voice, from espeak-ng's library; of a recording, that recording."""
    if path.suffix != ".so":
        yield {"file": path.name, "bytes": path.read_bytes(), "speaker": "", "label": 0}
        return
    voice, random = _Espeak(path), np.random.default_rng(0)
    for accent, timbre, pitch in product(_ACCENTS, _TIMBRES, _PITCHES):
        speaker = f"{accent}{timbre} {pitch}"
        for (number, word), rate in product(enumerate(WORDS), _RATES):
            recording = _record(voice.say(word, accent + timbre, pitch, rate), voice.sample_rate, random)
            yield {"file": f"{word} by {speaker}", "bytes": recording, "speaker": speaker, "label": number}


def _record(spoken: np.ndarray[Any, Any], sample_rate: int, random: np.random.Generator) -> bytes:
    """Return a WAV file of one second with the word at a random time, with noise."""
    length = round(_SECONDS * sample_rate)
    spoken = spoken[:length] / np.abs(spoken).max()
    begin = random.integers(0, length - len(spoken) + 1)
    noise = random.normal(size=length) * spoken.std() * 10 ** (-random.uniform(*_SNR_DB) / 20)
    noise[begin : begin + len(spoken)] += spoken
    sink = io.BytesIO()
    soundfile.write(sink, noise / np.abs(noise).max(), sample_rate, format="WAV")
    return sink.getvalue()


class _Espeak:
    """C interface of espeak-ng, with the voices in the folder of the library."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._pieces: list[Any] = []
        self._callback = kind(self._receive)  # the library calls it later, so it must not be collected
        self.sample_rate: int = self._library.espeak_Initialize(_RETRIEVAL, 0, str(library.parent).encode(), 0)
        if self.sample_rate < 0:
            raise OSError(f"{library} does not start: its folder espeak-ng-data is missing")
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, word: str, voice: str, pitch: int, rate: int) -> np.ndarray[Any, Any]:
        """Synthesize one word; int16 samples."""
        self._pieces.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}")
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        text = word.encode()
        self._library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._pieces)

    def _receive(self, samples: Any, count: int, _: Any) -> int:
        if samples and count:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # continue
