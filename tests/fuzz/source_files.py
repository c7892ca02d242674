"""Small files of every kind of source, their mutations, and readers that share no code with Drivetrain's."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image, ImageOps
from pyarrow import ipc

ODD = [
    "", " ", "NaN", "nan", "inf", "-inf", "null", "None", "true", "1e400", "1e3", "007", "+5", "1_000", "1,5", "0x1F",
    "９", "--1", "9007199254740993", "99999999999999999999", "-0", "1.0", ".5", "5.", '"', "a\nb", "é", "\ud7ff", "\0",
]  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A record as the independent reader sees it.

    Attributes:
        certain: it cannot be read in another way, so it has to be in the dataset.
    """

    value: Any
    certain: bool = True


Reader = Callable[[Path], list[Record]]  # raises where a file cannot be read


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        write: writes files below a folder and returns the one to mutate.
        data: the data section, without source and name.
        read: of the mutated file and its neighbors.
        view: what is compared: the fields of a sample.
    """

    write: Callable[[Path, random.Random], Path]
    data: dict[str, Any]
    read: Reader
    view: str


def number(text: str) -> Record | None:
    """Read a number as it is written in CSV; None if it is none."""
    plain = text.strip()
    if plain.lower() in ("true", "false"):
        return Record(float(plain.lower() == "true"), False)
    try:
        value = float(plain)
    except ValueError:
        return None
    simple = text.isascii() and text.lstrip("-").replace(".", "", 1).isdigit()
    exact = simple and len(plain) < 12 and not plain.startswith(("00", "-0")) and not plain.endswith(".")
    return Record(value, exact and not plain.startswith("."))


# --- tables --------------------------------------------------------------------------------------------------------


def _rows(choose: random.Random) -> list[dict[str, Any]]:
    return [
        {"x": choose.randrange(-500, 500) / 4, "y": choose.randrange(100), "text": f"row {n} of ü", "unused": "u"}
        for n in range(choose.randrange(30, 60))
    ]


def _write_csv(delimiter: str, name: str) -> Callable[[Path, random.Random], Path]:
    def write(folder: Path, choose: random.Random) -> Path:
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["x", "y", "text", "unused"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(_rows(choose))
        return folder / name

    return write


def _csv_rows(path: Path, delimiter: str) -> tuple[list[str], list[list[str]], bool]:
    """Return the header, the rows, and whether there are quotes or line ends that can be read in several ways."""
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    odd = '"' in text or "\0" in text or text.count("\r") != text.count("\r\n")
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    header = rows[0]
    if {"x", "y"} - set(header):
        raise ValueError("a header that lacks a column")
    return header, rows[1:], odd


def _read_csv(delimiter: str) -> Reader:
    def read(path: Path) -> list[Record]:
        header, rows, odd = _csv_rows(path, delimiter)
        records = []
        for row in rows:
            if len(row) == len(header):
                x, y = number(row[header.index("x")]), number(row[header.index("y")])
                if x and y:
                    records.append(Record((x.value, y.value), x.certain and y.certain and not odd))
        return records

    return read


def _write_jsonl(folder: Path, choose: random.Random) -> Path:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in _rows(choose)))
    return folder / "rows.jsonl"


def _write_json(folder: Path, choose: random.Random) -> Path:
    (folder / "rows.json").write_text(json.dumps(_rows(choose), indent=choose.choice([None, 1])))
    return folder / "rows.json"


def _plain_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _numbers_of(row: Any) -> Record | None:
    if not isinstance(row, dict) or "x" not in row or "y" not in row:
        return None
    x, y = row["x"], row["y"]
    if not isinstance(x, int | float) or not isinstance(y, int | float):
        return None
    return Record((float(x), float(y)), _plain_number(x) and _plain_number(y) and _is_text(row))


def _is_text(row: dict[str, Any]) -> bool:
    """Check that a row was UTF-8, and is without half characters."""
    try:
        return bool(json.dumps(row, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _json_lines(path: Path) -> list[Any]:
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            text = line.decode("utf-8", errors="surrogateescape")
            rows.append(json.loads(text, object_pairs_hook=_unique) if text.strip() else None)
        except ValueError:
            continue
    return rows


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = [name for name, _ in pairs if name in ("x", "y", "text")]
    if len(set(named)) < len(named):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _read_jsonl(path: Path) -> list[Record]:
    return [record for row in _json_lines(path) if (record := _numbers_of(row))]


def _read_json(path: Path) -> list[Record]:
    rows = json.loads(path.read_bytes().decode("utf-8", errors="surrogateescape"), object_pairs_hook=_unique)
    if not isinstance(rows, list):
        raise ValueError("not a list")
    return [record for row in rows if (record := _numbers_of(row))]


def _write_parquet(folder: Path, choose: random.Random) -> Path:
    table = pa.Table.from_pylist(_rows(choose))
    pq.write_table(table, folder / "rows.parquet", row_group_size=20, compression=choose.choice(["none", "zstd"]))
    return folder / "rows.parquet"


def _read_parquet(path: Path) -> list[Record]:
    return _numbers_in(pq.read_table(path, columns=["x", "y"], use_threads=False))


def _write_arrow(folder: Path, choose: random.Random) -> Path:
    table = pa.Table.from_pylist(_rows(choose))
    with ipc.new_file(folder / "rows.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=20)
    return folder / "rows.arrow"


def _read_arrow(path: Path) -> list[Record]:
    table = ipc.open_file(pa.BufferReader(path.read_bytes())).read_all().select(["x", "y"])
    table.validate(full=True)
    return _numbers_in(table)


def _numbers_in(table: pa.Table) -> list[Record]:
    if not all(pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in table.schema):
        raise ValueError("not numbers")
    return [record for row in table.to_pylist() if (record := _numbers_of(row))]


# --- text ----------------------------------------------------------------------------------------------------------


def _read_texts(path: Path) -> list[Record]:
    """Read texts with a label: y."""
    records = []
    for row in _json_lines(path):
        if isinstance(row, dict) and isinstance(row.get("text"), str) and _is_text({"text": row["text"]}):
            label = row.get("y")
            certain = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 1 << 31 and _is_text(row)
            records.append(Record((row["text"], label), certain))
    return records


def _read_csv_texts(path: Path) -> list[Record]:
    header, rows, odd = _csv_rows(path, ",")
    places = header.index("text"), header.index("y")
    pairs = [(row[places[0]], row[places[1]]) for row in rows if len(row) == len(header)]
    pairs = [pair for pair in pairs if _is_text({"text": pair[0]})]
    return [Record((text, label), bool(text.isprintable() and label.isdigit() and not odd)) for text, label in pairs]


def _write_text(folder: Path, choose: random.Random) -> Path:
    words = ["the river", "sea\n", "ünïcode", "runs. ", "\n\n", "  def f(x):\n", "1234 ", "東京", "🙂"]
    (folder / "book.txt").write_text("".join(choose.choice(words) for _ in range(600)))
    return folder / "book.txt"


def _read_text(path: Path) -> list[Record]:
    return [Record(path.read_bytes().decode("utf-8-sig"))]


def _write_documents(folder: Path, choose: random.Random) -> Path:
    for label in "ab":
        (folder / label).mkdir()
        for n in range(12):
            (folder / label / f"{n}.txt").write_text(f"document {choose.randrange(10**6)} of {label}\nwith ü")
    return folder / "a" / "3.txt"


def _read_documents(path: Path) -> list[Record]:
    records = []
    for file in sorted(path.parent.parent.glob("*/*.txt")):
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except ValueError:
            continue
        records.append(Record((text, "ab".index(file.parent.name)), bool(text.strip()) and "\0" not in text))
    return records


# --- files ---------------------------------------------------------------------------------------------------------


def _write_images(folder: Path, choose: random.Random) -> Path:
    for label in "ab":
        (folder / label).mkdir()
        for n in range(8):
            array = np.random.default_rng(choose.randrange(10**6)).integers(0, 255, (9, 7, 3), np.uint8)
            Image.fromarray(array).save(folder / label / f"{n}.{choose.choice(['png', 'jpg', 'bmp', 'webp'])}")
    return choose.choice(sorted(folder.glob("*/*")))


def picture(content: bytes) -> Record | None:
    """Decode a picture to 8 x 8."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            plain = image.mode == "RGB" and "transparency" not in image.info and getattr(image, "n_frames", 1) == 1
            upright = ImageOps.exif_transpose(image)
            resized = upright.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
            return Record(np.asarray(resized, np.uint8).tobytes(), plain)
    except Exception:  # whatever Pillow raises for a damaged file
        return None


def _read_images(path: Path) -> list[Record]:
    files = sorted(path.parent.parent.glob("*/*"))
    pictures = [(picture(file.read_bytes()), "ab".index(file.parent.name)) for file in files]
    return [Record((found.value, label), found.certain) for found, label in pictures if found]


RATE = 8000


def _write_audio(folder: Path, choose: random.Random) -> Path:
    for label in "ab":
        (folder / label).mkdir()
        for n in range(6):
            samples = np.random.default_rng(choose.randrange(10**6)).uniform(-0.9, 0.9, 1200).astype(np.float32)
            subtype = choose.choice(["PCM_16", "FLOAT"])
            soundfile.write(folder / label / f"{n}.wav", samples, RATE, subtype=subtype)
    return choose.choice(sorted(folder.glob("*/*")))


def _read_audio(path: Path) -> list[Record]:
    records = []
    for file in sorted(path.parent.parent.glob("*/*")):
        try:
            samples, rate = soundfile.read(io.BytesIO(file.read_bytes()), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            continue
        if len(samples) and np.isfinite(samples).all():
            whole = len(samples) == 1200 and rate == RATE and samples.shape[1] == 1 and abs(samples).max() <= 1
            records.append(Record((samples.mean(axis=1), rate, "ab".index(file.parent.name)), whole))
    return records


def _write_webdataset(folder: Path, choose: random.Random) -> Path:
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for n in range(20):
            array = np.random.default_rng(choose.randrange(10**6)).integers(0, 255, (8, 8, 3), np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(array).save(encoded, "png")
            for name, content in ((f"{n:04d}.png", encoded.getvalue()), (f"{n:04d}.cls", str(n % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "shard-000.tar"


def _read_webdataset(path: Path) -> list[Record]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            if member.isfile() and (file := tar.extractfile(member)):
                samples.setdefault(key, {})[suffix] = file.read()
    records = []
    for place, parts in enumerate(samples.values(), start=1):
        images = [found for suffix, content in parts.items() if suffix != "cls" and (found := picture(content))]
        label = parts.get("cls", b"").decode("utf-8", errors="replace").strip()
        if len(images) == 1 and label.isdigit():
            whole = place < len(samples) or len(samples) == 20  # the last record of a damaged archive may be cut
            certain = whole and images[0].certain and set(parts) == {"png", "cls"} and label in ("0", "1")
            records.append(Record((images[0].value, int(label)), certain))
    return records


TEXTS = {"packing": "pad", "sequence_length": 24, "label_column": "y", "tokenizer": {"vocab_size": 300}}
PICTURES = {"image": {"height": 8, "width": 8}}
AUDIO = {"audio": {"sample_rate": RATE, "seconds": 0.1, "mels": 8}}

KINDS = {
    "csv": Kind(_write_csv(",", "rows.csv"), {"columns": ["x", "y"]}, _read_csv(","), "numbers"),
    "tsv": Kind(_write_csv("\t", "rows.tsv"), {"columns": ["x", "y"]}, _read_csv("\t"), "numbers"),
    "jsonl": Kind(_write_jsonl, {"columns": ["x", "y"]}, _read_jsonl, "numbers"),
    "json": Kind(_write_json, {"columns": ["x", "y"]}, _read_json, "numbers"),
    "parquet": Kind(_write_parquet, {"columns": ["x", "y"]}, _read_parquet, "numbers"),
    "arrow": Kind(_write_arrow, {"columns": ["x", "y"]}, _read_arrow, "numbers"),
    "jsonl text": Kind(_write_jsonl, TEXTS, _read_texts, "texts"),
    "csv text": Kind(_write_csv(",", "rows.csv"), TEXTS, _read_csv_texts, "texts"),
    "text": Kind(_write_text, {"sequence_length": 16, "tokenizer": {"vocab_size": 300}}, _read_text, "running text"),
    "documents": Kind(
        _write_documents, {**TEXTS, "format": "documents", "label_column": "label"}, _read_documents, "texts"
    ),
    "images": Kind(_write_images, PICTURES, _read_images, "images"),
    "audio": Kind(_write_audio, AUDIO, _read_audio, "audio"),
    "webdataset": Kind(_write_webdataset, PICTURES, _read_webdataset, "images"),
}


def mutate(path: Path, choose: random.Random) -> None:
    """Change one to three places of a file; half of the changes replace a value of a text file by an odd one."""
    content = bytearray(path.read_bytes())
    text = path.suffix in (".csv", ".tsv", ".jsonl", ".json")
    for _ in range(choose.choice([1, 1, 2, 3])):
        at = choose.randrange(len(content) + 1) if content else 0
        kind = choose.randrange(6)
        if text and choose.random() < 0.5:
            content = _odd_value(content, choose)
        elif kind == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << choose.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = bytes(choose.randrange(256) for _ in range(choose.randrange(1, 5)))
        elif kind == 3:
            del content[at : at + choose.randrange(1, 20)]
        elif kind == 4:
            content[at:at] = content[at : at + choose.randrange(1, 60)]
        else:
            content[at : at + 4] = choose.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xef\xbb\xbf", b"\r\n\r\n"])
    path.write_bytes(bytes(content))


def _odd_value(content: bytearray, choose: random.Random) -> bytearray:
    """Replace what stands between two separators."""
    separators = [n for n, byte in enumerate(content) if byte in b",\t\n:[]{} "]
    if len(separators) < 2:
        return content
    first = choose.randrange(len(separators) - 1)
    begin, end = separators[first] + 1, separators[first + 1]
    odd = choose.choice(ODD)
    quoted = json.dumps(odd, ensure_ascii=False) if choose.random() < 0.3 else odd
    return content[:begin] + bytearray(quoted.encode("utf-8", errors="surrogatepass")) + content[end:]
