"""The ``data`` section of a job file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# "package.module:function": user code is named, never pickled.
_FUNCTION, _NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

FunctionPath = Annotated[str, StringConstraints(pattern=_FUNCTION)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]

MEANING_OF_PATTERN = {
    _FUNCTION: "module:function, such as model:make for the function make in model.py",
    _NAME: "a name of at most 63 letters, digits, dots, hyphens and underscores, the first a letter or digit",
}

Format = Literal[
    "auto", "text", "jsonl", "csv", "parquet", "arrow", "huggingface", "images", "audio", "documents", "webdataset"
]


class Spec(BaseModel):
    """Base of every section: unknown keys and wrong types are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    renamed: ClassVar[dict[str, str]] = {}  # keys of earlier versions, which are still read, with their names of today

    @model_validator(mode="before")
    @classmethod
    def _read_renamed_keys(cls, section: Any) -> Any:
        """Give keys of earlier versions their names of today."""
        if not isinstance(section, dict) or cls.renamed.keys().isdisjoint(section):
            return section
        section = dict(section)
        for old in cls.renamed.keys() & section.keys():
            new, value = cls.renamed[old], section.pop(old)
            if new in section:
                raise ValueError(f"{old} is the earlier name of {new}: give only {new}")
            section[new] = value
        return section


class TokenizerSpec(Spec):
    """A byte-level BPE tokenizer: trained on the training text, or loaded from ``file``."""

    vocab_size: int = Field(4096, ge=258, le=1 << 20, description="Size of the vocabulary of a trained tokenizer.")
    file: str | None = Field(
        None,
        description="Hugging Face `tokenizer.json` to load instead of training one: a path, URL or package member.",
    )
    end_token: str | None = Field(
        None,
        description="Token after each document. Default: `eos_token` of a `tokenizer_config.json` in the same folder, "
        "else the one that published tokenizers use.",
    )
    padding_token: str | None = Field(
        None,
        description="Token that fills short samples. Default: `pad_token` of a `tokenizer_config.json` in the same "
        "folder, else a token named like one, a special token with id 0, or the end token.",
    )
    special_tokens: list[str] = Field(
        [], description="Special tokens of a trained tokenizer. Their ids are 1, 2, ... in this order."
    )


class ImageSpec(Spec):
    """Images become ``image``: uint8 ``[height, width, channels]``."""

    height: int = Field(ge=1, le=1 << 14, description="Height to resize to, in pixels.")
    width: int = Field(ge=1, le=1 << 14, description="Width to resize to, in pixels.")
    mode: Literal["RGB", "L"] = Field("RGB", description="`RGB` for color, `L` for grayscale.")
    decode: bool = Field(
        True, description="Decode and resize while preparing. `false` stores the encoded files, for `data.online`."
    )


class AudioSpec(Spec):
    """Recordings become ``mel``: float32 ``[frames, mels]``, log-mel energies of the first ``seconds``, zero-padded."""

    sample_rate: int = Field(16_000, ge=1000, le=192_000, description="Sample rate to resample to, in Hz.")
    seconds: float = Field(gt=0, le=3600, description="Length of a sample. Longer recordings are cut, shorter padded.")
    mels: int = Field(80, ge=4, le=512, description="Number of mel bands.")
    window_ms: float = Field(25.0, gt=0, description="Length of the analysis window, in milliseconds.")
    hop_ms: float = Field(10.0, gt=0, description="Distance between frames, in milliseconds.")


class MixtureSpec(Spec):
    """One source of a mixture and its share of the stream."""

    source: str = Field(description="File, folder, glob, fsspec URL or package member.")
    weight: float = Field(1.0, gt=0, description="Share of the stream, relative to the other sources.")


class StorageSpec(Spec):
    """Access to object storage. Keys are never in a job file: they come from the profile or the environment."""

    endpoint_url: str | None = Field(None, description="URL of an S3 server other than AWS.")
    profile: str | None = Field(None, description="Profile of the shared AWS configuration, present on every node.")
    anonymous: bool = Field(False, description="Read public buckets without credentials.")


class OnlineSpec(Spec):
    """A transform that runs on CPU actors during training, for augmentation or decoding.

    ``transform(sample, random)`` takes a sample as a dictionary of arrays and returns one. ``random`` is a numpy
    Generator that depends only on the job's seed and the sample's position in the stream; it is None in evaluations.
    """

    transform: FunctionPath = Field(description="`function(sample, random)` that returns the transformed sample.")
    actors: int = Field(
        2, ge=1, le=1024, description="Number of actors, of one CPU each. Fewer run if the cluster has fewer CPUs free."
    )


class DataSpec(Spec):
    """The training and evaluation data of a run."""

    name: Name = Field("dataset", description="Name of the prepared dataset, for `drivetrain data`.")
    source: str | list[MixtureSpec] = Field(
        description="Training data: file, folder, glob, fsspec URL, package member, or a list of weighted sources."
    )
    eval_source: str | None = Field(
        None, description="Evaluation data. Without it, `eval_fraction` of the samples is held out."
    )
    eval_fraction: float = Field(
        0.02, gt=0, lt=1, description="Share of the samples that is held out, chosen by a hash of their content."
    )
    split_by: str | None = Field(
        None, description="Column whose equal values stay on the same side of the split, such as a speaker."
    )
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the training samples to use. Every run leaves out the same ones."
    )
    format: Format = Field("auto", description="Format of the files. `auto` selects it by their names.")
    reader: FunctionPath | None = Field(
        None, description="`function(path)` that yields records, for files of any other format."
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="What to do with a bad record. `skip` counts them and names the first ten in the summary."
    )
    transform: FunctionPath | None = Field(
        None,
        description="Function applied once to each record during preparation: `str -> str` for text, otherwise "
        "`dict -> dict`, a list of dictionaries, or None to drop the record.",
    )
    files: dict[str, str] = Field(
        {}, description="Sources by name. `reader` and `transform` get the path of each as an argument of that name."
    )
    chunk_bytes: int = Field(
        32 << 20, ge=1 << 10, description="Raw data per preparation task, and therefore per shard, in bytes."
    )

    tokenizer: TokenizerSpec = Field(TokenizerSpec(), description="Tokenizer of text.")
    sequence_length: int = Field(128, ge=2, le=1 << 20, description="Number of tokens that the model sees per sample.")
    packing: Literal["concatenate", "fit", "pad"] = Field(
        "concatenate",
        description="How documents become samples. `concatenate`: join and cut. `fit`: keep documents whole and number "
        "them in the column `segments`. `pad`: one sample per document, cut or padded with 0, with its label.",
    )
    text_column: str = Field("text", description="Column with the text in JSON lines, CSV, Parquet and Arrow files.")

    image: ImageSpec | None = Field(None, description="Make image samples, in the column `image`.")
    audio: AudioSpec | None = Field(None, description="Make audio samples, in the column `mel`.")
    columns: list[str] | None = Field(
        None, description="Numeric columns to keep as they are, alone or in addition to `image` or `audio`."
    )
    label_column: str = Field("label", description="Column with the label.")
    classes: list[str] | None = Field(
        None, description="Names of the labels 0, 1, .... Not needed where folders or `labels.csv` name the classes."
    )

    online: OnlineSpec | None = Field(
        None, description="Transform applied during training, each time a sample is used."
    )

    location: str | None = Field(
        None, description="Folder or URL for prepared datasets. Default: `datasets` in DRIVETRAIN_HOME."
    )
    storage: StorageSpec = Field(StorageSpec(), description="Access to object storage for sources and `location`.")
    cache_bytes: int = Field(
        64 << 30, ge=1 << 20, description="Size of each node's cache for shards of a remote `location`, in bytes."
    )
    lanes: int = Field(32, ge=1, le=4096, description="Number of parts of the data that are read in parallel.")
    shuffle_window: int = Field(
        1 << 14, ge=1, le=1 << 24, description="Number of consecutive samples of a lane that are shuffled together."
    )

    @property
    def kind(self) -> Literal["tokens", "image", "audio", "columns"]:
        """Kind of the samples."""
        if self.image:
            return "image"
        if self.audio:
            return "audio"
        return "columns" if self.columns else "tokens"

    @property
    def file_format(self) -> str:
        """Format of the source files; ``any`` if the job has its own reader."""
        return "any" if self.reader else self.format

    @property
    def mixture(self) -> list[MixtureSpec]:
        """All sources, with their weights."""
        return [MixtureSpec(source=self.source)] if isinstance(self.source, str) else self.source
