# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models and processors by the name that a user gave them, with errors that say what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import ProcessorMixin

from mdm_cli.places import require_place

HUB_SECONDS = 10


def load_pretrained(kind: type, argument: str, place: str, **options: Any) -> Any:
    """Return `kind.from_pretrained(place)`.

    Args:
        kind: the class of a model, configuration or processor.
        argument: what the user calls the place.
        place: a folder or an id of the Hub.
        **options: of `from_pretrained`.

    Raises:
        OSError: if there is no such folder, what is in it cannot be read, or the Hub does not give
            it.
    """
    require_place(argument, place)
    _require_settings(kind, argument, Path(place))
    _ask_hub(argument, place)
    try:
        return kind.from_pretrained(place, **options)
    except SafetensorError as error:
        message = f"{argument}={place!r} holds damaged weights ({error}): copy them again."
        raise OSError(message) from error
    except OSError as error:
        if Path(place).is_dir():
            raise
        raise OSError(
            f"{argument}={place!r} is no folder here, and as an id of the Hub it could not be "
            f"loaded: {error}"
        ) from error


def require_device(argument: str, device: str) -> None:
    """Let devices pass that this torch and this machine have.

    Raises:
        ValueError: if it is none.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{argument}={device!r} cannot be used here: {error}") from error


def _ask_hub(argument: str, place: str) -> None:
    """Fail in seconds where the Hub does not answer: `from_pretrained` tries for minutes."""
    if Path(place).is_dir() or is_offline_mode():
        return
    names = ("config.json", "processor_config.json", "adapter_config.json")
    if any(isinstance(try_to_load_from_cache(place, name), str) for name in names):
        return
    try:
        HfApi().model_info(place, timeout=HUB_SECONDS)
    except Exception as error:  # its client has errors of its own for a network that is down
        raise OSError(
            f"{argument}={place!r} is no folder here, and as an id of the Hub it could not be "
            f"found: {error}"
        ) from error


def _require_settings(kind: type, argument: str, folder: Path) -> None:
    """Tell an empty or wrong folder from one of the Hub."""
    names = ("config.json", "adapter_config.json")
    if issubclass(kind, ProcessorMixin):
        names = ("processor_config.json",)
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{argument}={str(folder)!r} holds no {names[0]}, so there is no {kind.__name__} in "
            "it: name the folder that `save_pretrained` or a run has written."
        )
