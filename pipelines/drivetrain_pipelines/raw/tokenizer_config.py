"""The special tokens that the configuration of a published tokenizer names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import TokenizerSpec

CONFIG_FILE = "tokenizer_config.json"
_NAMES = {"end_token": "eos_token", "padding_token": "pad_token"}


def with_special_tokens(spec: TokenizerSpec) -> TokenizerSpec:
    """Return the settings with the tokens that a ``tokenizer_config.json`` in the tokenizer's folder names.

    Tokens that the job names stay. The file is part of the tokenizer where its folder is on this machine.

    Raises:
        InputError: the configuration cannot be read.
    """
    path = Path(spec.file or "").with_name(CONFIG_FILE) if spec.file and "://" not in spec.file else None
    if path is None or not os.path.isfile(path):
        return spec
    try:
        config = json.loads(path.read_bytes())
        named = {key: _content(config.get(name)) for key, name in _NAMES.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("data.tokenizer.file", repr(str(path)), "a JSON object", str(error)) from error
    return spec.model_copy(update={key: getattr(spec, key) or token for key, token in named.items()})


def _content(token: object) -> str | None:
    """Return the text of a token, which may be an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
