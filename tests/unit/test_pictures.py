"""Pictures and recordings: decoded as a viewer shows them and a player plays them, or bad records."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.conversions.column import Column, UnfitError
from drivetrain_pipelines.raw.conversions.images import decode_image, images
from drivetrain_pipelines.raw.conversions.recordings import log_mel, read_audio, recordings
from drivetrain_pipelines.spec import AudioSpec, ImageSpec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

SIDE = 16
COLOR, GRAY = ImageSpec(height=SIDE, width=SIDE), ImageSpec(height=SIDE, width=SIDE, mode="L")
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format_: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(sink, format_, **options)
    return sink.getvalue()


def problem_of(value: Any, spec: ImageSpec = COLOR) -> str:
    with pytest.raises(UnfitError) as caught:
        decode_image(value, spec)
    return str(caught.value)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(format_: str) -> None:
    sixteen = (RAMP * 65535).round().astype(np.uint16)
    expected = np.rint(sixteen / 65535 * 255)
    assert (decode_image(encoded(sixteen, format_), GRAY)[..., 0] == expected).all()
    assert (decode_image(sixteen, GRAY)[..., 0] == expected).all()
    portable = b"P5 16 16 65535 " + sixteen.astype(">u2").tobytes()
    assert (decode_image(portable, GRAY)[..., 0] == expected).all()


def test_fractions_are_scaled_or_refused() -> None:
    fractions = RAMP.astype(np.float32)
    expected = np.rint(fractions * 255)
    assert (decode_image(encoded(fractions, "TIFF"), GRAY)[..., 0] == expected).all()
    assert (decode_image(fractions, GRAY)[..., 0] == expected).all()
    for wrong in (fractions * 255, fractions - 0.5):
        assert "scale them to 0 to 1" in problem_of(encoded(wrong, "TIFF"))
        assert "scale them to 0 to 1" in problem_of(wrong)
    assert "finite" in problem_of(np.full((4, 4), np.nan))
    assert "32 bits" in problem_of(encoded(Image.fromarray((RAMP * 1000).astype(np.int32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(orientation: int) -> None:
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = orientation
    content = encoded(image, "PNG", exif=image.getexif())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert (decode_image(content, COLOR) == expected).all()
    assert orientation == 1 or (expected != PIXELS).any()


def test_modes() -> None:
    """Transparency is dropped, as Pillow and torchvision do; palettes, CMYK and one bit are converted."""
    transparent = np.concatenate([PIXELS, np.zeros((SIDE, SIDE, 1), np.uint8)], 2)
    assert (decode_image(encoded(transparent), COLOR) == PIXELS).all()
    assert (decode_image(transparent, COLOR) == PIXELS).all()
    palette = Image.fromarray(PIXELS).quantize(8)
    assert (decode_image(encoded(palette, transparency=0), COLOR) == np.asarray(palette.convert("RGB"))).all()
    assert (
        decode_image(encoded(palette, transparency=bytes([0, 99])), COLOR) == np.asarray(palette.convert("RGB"))
    ).all()
    bits = PIXELS[..., 0] > 100
    assert (decode_image(encoded(Image.fromarray(bits)), GRAY)[..., 0] == bits * 255).all()
    assert (decode_image(PIXELS[..., :1], COLOR) == np.repeat(PIXELS[..., :1], 3, 2)).all()
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    assert (decode_image(encoded(cmyk, "TIFF"), COLOR) == np.asarray(cmyk.convert("RGB"))).all()


def test_what_is_no_picture() -> None:
    several = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    for format_ in ("GIF", "TIFF", "WEBP", "PNG"):
        content = encoded(several[0], format_, save_all=True, append_images=several[1:])
        assert problem_of(content).startswith("it has 2 frames")
    assert problem_of(b"what is this?") == "it is not an image known to Pillow"
    assert problem_of(b"") == "it is an empty file"
    assert problem_of(None) == "it is empty (null)"
    assert problem_of({"bytes": None, "path": "a.png"}).startswith("it has only the path 'a.png'")
    assert "text, not a number" in problem_of("a.png")
    assert "shape [3, 16, 16]" in problem_of(PIXELS.transpose(2, 0, 1))
    assert "pixels from 0 to 300" in problem_of(np.array([[0, 300]]))
    bomb = b"P6 60000 60000 255 " + bytes(99)
    assert "pixels; make it smaller" in problem_of(bomb)


def test_pictures_of_readers_and_of_hugging_face() -> None:
    content = encoded(PIXELS)
    for value in ({"bytes": content, "path": None}, Image.fromarray(PIXELS), PIXELS, PIXELS.tolist(), content):
        assert (decode_image(value, COLOR) == PIXELS).all()
    column = pa.array([{"bytes": content, "path": "a"}, {"bytes": None, "path": "b"}, None])
    made = images(Column("image", column, "f"), COLOR)
    assert (made.values[0] == PIXELS).all()
    assert list(made.bad) == [1, 2]
    lists = pa.array([PIXELS.tolist(), None, PIXELS[:8].tolist()], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    assert (images(Column("image", lists, "f"), COLOR).values[0] == PIXELS).all()
    with pytest.raises(PrepareError, match="column 'image' has the type string; allowed: encoded images"):
        images(Column("image", pa.array(["a.png"]), "f"), COLOR)


def test_encoded_pictures_are_verified() -> None:
    stored = COLOR.model_copy(update={"decode": False})
    content = encoded(PIXELS, "JPEG")
    made = images(Column("bytes", [content, content[:300], b"no picture", PIXELS], "f"), stored)
    assert made.values[0].as_py() == content
    assert list(made.bad) == [1, 2, 3]


@given(format_=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"]), cut=st.floats(0, 1))
def test_a_cut_picture_is_whole_or_bad(format_: str, cut: float) -> None:
    content = encoded(np.tile(PIXELS, (4, 4, 1)), format_)
    whole = decode_image(content, COLOR)
    try:
        made = decode_image(content[: int(cut * len(content))], COLOR)
    except UnfitError as error:
        sentence = str(error)
        assert sentence
    else:
        assert (made == whole).all()


@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"RIFF", b"II*\0"]),
)
def test_any_bytes_are_a_picture_or_bad(content: bytes, start: bytes) -> None:
    made = images(Column("bytes", [start + content], "f"), COLOR)
    assert made.values.shape == (1, SIDE, SIDE, 3)
    made = recordings(Column("bytes", [start + content], "f"), SPEC)
    assert made.values.shape[0] == 1


RATE = 8000
SPEC = AudioSpec(seconds=0.5, sample_rate=RATE, mels=8)
TONE = (0.5 * np.sin(np.arange(RATE // 2) / 3)).astype(np.float32)


def recorded(samples: np.ndarray, format_: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=format_, subtype=subtype)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("format_", "subtype", "near"),
    [
        *(("WAV", kind, 1e-4) for kind in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        *(("WAV", "PCM_U8", 0.02), ("FLAC", "PCM_16", 1e-4), ("AIFF", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.2)),
        *(("CAF", "PCM_16", 1e-4), ("AU", "PCM_16", 1e-4)),
    ],
)
def test_recordings_of_every_kind(format_: str, subtype: str, near: float) -> None:
    assert np.abs(read_audio(recorded(TONE, format_, subtype), SPEC) - TONE).max() < near
    stereo = np.stack([TONE, np.zeros_like(TONE)], 1)
    assert np.abs(read_audio(recorded(stereo, format_, subtype), SPEC) - TONE / 2).max() < near


def test_mp3() -> None:
    assert np.abs(read_audio(recorded(TONE, "MP3", "MPEG_LAYER_III"), SPEC)).max() > 0.3


@pytest.mark.parametrize("format_", ["WAV", "FLAC", "OGG", "AIFF", "AU", "CAF"])
@given(cut=st.floats(0, 0.99))
def test_a_cut_recording_is_bad(format_: str, cut: float) -> None:
    content = recorded(TONE, format_)
    with pytest.raises(UnfitError):
        read_audio(content[: int(cut * len(content))], SPEC)


def test_what_is_no_recording() -> None:
    for samples, problem in (
        (np.full(99, np.nan, np.float32), "99 of its samples are not finite"),
        (np.array([0, np.inf], np.float32), "1 of its samples are not finite"),
        (np.zeros(0, np.float32), "it has no samples"),
    ):
        with pytest.raises(UnfitError, match=problem):
            read_audio(recorded(samples, "WAV", "FLOAT"), SPEC)
    with pytest.raises(UnfitError, match="it is not a recording that libsndfile can read: "):
        read_audio(b"what is this?", SPEC)
    still = bytearray(recorded(TONE))
    still[24:28] = bytes(4)
    with pytest.raises(UnfitError):
        read_audio(bytes(still), SPEC)


def test_a_recording_of_unknown_length_is_whole() -> None:
    """A program that writes to a pipe does not know the length when it starts."""
    content = bytearray(recorded(TONE))
    content[4:8] = content[40:44] = b"\xff" * 4
    assert len(read_audio(bytes(content), SPEC)) == len(TONE)
    content = bytearray(recorded(TONE))
    content[4:8] = len(content).to_bytes(4, "little")  # of some programs, with the eight bytes before
    assert np.abs(read_audio(bytes(content), SPEC) - TONE).max() < 1e-4


def test_decoded_recordings_of_hugging_face() -> None:
    value = {"array": TONE, "sampling_rate": RATE, "path": None}
    assert (read_audio(value, SPEC) == TONE).all()
    column = pa.array([{"array": TONE.tolist(), "sampling_rate": RATE}, {"array": [0.0], "sampling_rate": 0}, None])
    made = recordings(Column("audio", column, "f"), SPEC)
    assert (made.values[0] == log_mel(TONE, SPEC)).all()
    assert list(made.bad) == [1, 2]
    with pytest.raises(UnfitError, match="not \\[samples\\] of fractions"):
        read_audio({"array": [1, 2], "sampling_rate": RATE}, SPEC)


def test_a_tone_is_loudest_at_its_pitch() -> None:
    spec = AudioSpec(seconds=0.5, mels=40)
    tone = recorded(np.sin(2 * np.pi * 1000 * np.arange(22050) / 22050), "FLAC", rate=22050)
    (mel,) = recordings(Column("bytes", [tone], "f"), spec).values
    assert mel.shape == (48, 40)
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)[1:-1] / 2595) - 1)
    assert abs(centres[mel.mean(axis=0).argmax()] - 1000) < 100
    assert log_mel(np.zeros(8000, np.float32), spec).max() < -20
