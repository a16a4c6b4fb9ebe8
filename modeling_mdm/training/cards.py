# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model cards of what tuning leaves behind: the adapters, and the model they are merged into."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from mdm_cli.places import is_hub_id
from modeling_mdm.hub import MODEL_TAGS

LOAD_ADAPTERS = """import peft

from modeling_mdm import MDMForJointGeneration, MDMProcessor

base = MDMForJointGeneration.from_pretrained("{base}"{options})
model = peft.PeftModel.from_pretrained(base, "{folder}")
processor = MDMProcessor.from_pretrained("{folder}")"""
LOAD_MERGED = """from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained("{folder}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{folder}", trust_remote_code=True)"""


@dataclass(frozen=True)
class Tuning:
    """How adapters came to be.

    base: folder or Hub id of the model that they are for. options: arguments with which it is
    loaded, beside that. dataset: what they were tuned on: a name, a file, a folder or a Hub id.
    command: of the run. settings: its main figures, by name. accuracies: shares of held-out
    questions answered rightly, by when they were asked and by kind; may be empty.
    """

    base: str
    dataset: str
    command: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    accuracies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def write_adapter_card(folder: Path, tuning: Tuning) -> None:
    """Write the `README.md` of a folder of adapters, over what was there."""
    options = "".join(f", {name}={value!r}" for name, value in tuning.options.items())
    code = LOAD_ADAPTERS.format(base=tuning.base, options=options, folder=folder)
    what = f"LoRA adapters for the Multi-Modal Diffusion Mamba `{tuning.base}`."
    _write(folder, tuning, what, code, library_name="peft", tags=["lora"])


def write_merged_card(folder: Path, tuning: Tuning) -> None:
    """Write the `README.md` of a model into which adapters were merged, over what was there."""
    what = f"The Multi-Modal Diffusion Mamba `{tuning.base}` with LoRA adapters merged into it."
    code = LOAD_MERGED.format(folder=folder)
    _write(folder, tuning, what, code, library_name="transformers", tags=[])


def shown_command(program: str, argv: Sequence[str]) -> str:
    """Return a command line for others to read: what must stay secret is left out."""
    words = list(argv)
    for number, word in enumerate(words):
        if word == "--hub_token" and number + 1 < len(words):
            words[number + 1] = "..."
        elif word.startswith("--hub_token="):
            words[number] = "--hub_token=..."
    return f"{program} {shlex.join(words)}".strip()


def _write(
    folder: Path, tuning: Tuning, what: str, code: str, library_name: str, tags: list[str]
) -> None:
    data = ModelCardData(
        # The Hub takes ids alone: of a folder, its name.
        base_model=tuning.base if _is_owned(tuning.base) else Path(tuning.base).resolve().name,
        datasets=[tuning.dataset] if _is_owned(tuning.dataset) else None,
        library_name=library_name,
        license=_licence(tuning.base),
        pipeline_tag="any-to-any",
        tags=[*MODEL_TAGS, *tags],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {folder.resolve().name}\n\n{what} Tuned on `{tuning.dataset}` to answer.\n",
        f"```python\n{code}\n```\n",
        f"## Training\n\n```bash\n{tuning.command}\n```\n",
    ]
    if tuning.settings:
        sections.append("".join(f"* {name}: {value}\n" for name, value in tuning.settings.items()))
    if tuning.accuracies:
        sections.append(f"## Figures\n\n{_table(tuning.accuracies)}\n")
    ModelCard("\n".join(sections)).save(folder / "README.md")


def _table(accuracies: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out the shares of held-out questions answered rightly, a row a kind."""
    kinds = list(dict.fromkeys(kind for shares in accuracies.values() for kind in shares))
    head = ["held-out questions, answered word for word", *accuracies]
    rows = [head, ["---"] * len(head)]
    for kind in kinds:
        shares = [shares.get(kind) for shares in accuracies.values()]
        rows.append([kind, *("-" if share is None else f"{share:.1%}" for share in shares)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _is_owned(name: str) -> bool:
    return "/" in name and is_hub_id(name) and not Path(name).exists()


def _licence(base: str) -> str | None:
    card = Path(base) / "README.md"
    return ModelCard.load(card).data.license if card.is_file() else None
