# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a saved model carries beside its weights: the way to its code, and a model card.

Where this package is not installed, an Auto class or a pipeline with `trust_remote_code=True` looks
its class up in `config.json` and takes the code from the same folder.
"""

import os
from typing import Any

from .configuration_mdm import MDMConfig
from .version import __version__

# Every Auto class that the model can be loaded by.
AUTO_MODELS = ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForImageTextToText")
JOINT_TASK = "mdm-joint-generation"
MODEL_TAGS = ("mdm", "diffusion", "mamba-2", "multimodal", "custom_code")

MODEL_CARD = f"""---
library_name: transformers
pipeline_tag: any-to-any
tags: [{", ".join(MODEL_TAGS)}]
---

# A Multi-Modal Diffusion Mamba

It reads and writes pictures and text through one diffusion process. The code is in this repository.

```python
from transformers import pipeline

pipe = pipeline("mdm-joint-generation", model="PATH_OR_ID", trust_remote_code=True)
sample = pipe()[0]  # a picture and its text, both written from nothing
print(sample["text"])
sample["image"].save("picture.png")
```

Data, training, figures and limits of this model have not been written down here.
"""


def custom_pipelines() -> dict[str, dict[str, Any]]:
    """Describe the project's own pipelines as `config.custom_pipelines` does."""
    # Named in this way, the file travels with the model's code.
    from .pipeline_mdm import MDMJointGenerationPipeline

    implementation = f"pipeline_mdm.{MDMJointGenerationPipeline.__name__}"
    return {JOINT_TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "multimodal"}}


def name_code(config: MDMConfig, model_class: type) -> None:
    """Write into a configuration what wrote it, and where every Auto class finds its code."""
    config.mdm_version = __version__
    model = f"modeling_mdm.{model_class.__name__}"
    config.auto_map = {
        "AutoConfig": f"configuration_mdm.{type(config).__name__}",
        **dict.fromkeys(AUTO_MODELS, model),
    }
    config.custom_pipelines = custom_pipelines()


def write_model_card(folder: str | os.PathLike) -> None:
    """Write a short `README.md` with the tags of the Hub, unless the folder has one."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "README.md")
    if not os.path.exists(path):
        with open(path, "w", encoding="utf-8") as card:
            card.write(MODEL_CARD)


__all__ = ["AUTO_MODELS", "JOINT_TASK", "custom_pipelines", "name_code", "write_model_card"]
