# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables as data: Tables 1 to 3 of *End-to-End Multi-Modal Diffusion Mamba*.

Figures are copied as they stand there; "-" is a figure that it does not give. Percentages and CIDEr
are times 100, precision and recall are shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Lu et al., End-to-End Multi-Modal Diffusion Mamba, Table {}"


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Args:
        number: in the paper.
        about: names of the columns that say what a row is; the rest are measured.
        columns: what is measured.
        rows: a row's words, those of `about` first.
    """

    number: int
    about: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def source(self) -> str:
        """Where the figures stand."""
        return SOURCE.format(self.number)

    def with_row(self, name: str, figures: Mapping[str, str]) -> list[tuple[str, ...]]:
        """Give head and rows, and ours at the end; "-" where we have no figure."""
        ours = (name, *("-" for _ in self.about[1:]))
        ours += tuple(figures.get(column, "-") for column in self.columns)
        return [(*self.about, *self.columns), *self.rows, ours]


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()
    )


TABLE_1 = PaperTable(
    1,
    ("Model", "Arc", "Params"),
    ("FID", "IS", "Precision", "Recall", "COCO FID", "GenEval"),
    _rows("""
Imagen | Diff | 7.3B | - | - | - | - | 7.27 | -
ADM | Diff | 554M | 10.94 | 101.0 | 0.69 | 0.63 | - | -
CDM | Diff | - | 4.88 | 158.7 | - | - | - | -
LDM | Diff | 400M | 3.60 | 147.6 | 0.87 | 0.68 | - | 0.43
DiT-XL/2 | Diff | 675M | 2.27 | 278.2 | 0.83 | 0.57 | - | -
SDXL | Diff | 3.4B | - | - | - | - | 4.40 | 0.55
SD-3 | Diff | 12.7B | - | - | - | - | - | 0.68
VQGAN | AR | 227M | 18.65 | 80.4 | 0.78 | 0.26 | - | -
ViT-VQGAN | AR | 1.7B | 4.17 | 175.1 | - | - | - | -
NExT-GPT | AR | 7B | - | - | - | - | 10.07 | -
Chameleon | AR | 7B | - | - | - | - | 26.74 | 0.39
LlamaGen | AR | 3.1B | 2.81 | 311.5 | 0.84 | 0.54 | 4.19 | -
Transfusion | AR+Diff | 7.3B | - | - | - | - | 6.78 | 0.63
MonoFormer | AR+Diff | 1.1B | 2.57 | 272.6 | 0.84 | 0.56 | - | -
Dual-DiT | Diff | 2B | - | - | - | - | 9.40 | 0.65
JanusFlow | AR+Diff | 1.3B | - | - | - | - | - | 0.70
Show-O | AR+Diff | 1.3B | - | - | - | - | 9.24 | 0.68
MDM | Diff | 7B | 2.49 | 281.4 | 0.86 | 0.59 | 5.91 | 0.68
"""),
)
TABLE_2 = PaperTable(
    2,
    ("Model",),
    (
        *("Flickr30K", "COCO", "VQAv2", "VizWiz", "OKVQA", "HellaSwag", "OpenBookQA"),
        *("WinoGrande", "ARC-E", "ARC-C", "BoolQ", "PIQA", "GSM8K", "MATH", "MMLU"),
    ),
    _rows("""
Llama-2 (7B)|-|-|-|-|-|77.2|58.6|78.5|75.2|45.9|77.4|78.8|14.6|2.5|45.3
Mistral (7B)|-|-|-|-|-|81.3|-|75.3|80.0|55.5|84.7|83.0|52.1|13.1|60.1
Flamingo (80B)|75.1|113.8|67.6|-|-|-|-|-|-|-|-|-|-|-|-
Gemini Pro|82.2|99.8|71.2|-|-|84.7|-|-|-|-|-|-|86.5|32.6|71.8
GPT4V|55.3|78.5|77.2|-|-|95.3|-|-|-|-|-|-|92.0|52.9|86.4
InstructBLIP (7B)|82.4|102.2|-|33.4|33.9|-|-|-|-|-|-|-|-|-|-
mPLUG-Owl (7B)|80.3|119.3|-|39.0|-|-|-|-|-|-|-|-|-|-|-
TinyLlama (1.1B)|-|-|-|-|-|59.2|36.0|59.1|55.3|30.1|57.8|73.3|-|-|-
Pythia (12B)|-|-|-|-|-|52.0|33.2|57.4|54.0|28.5|63.3|70.9|-|-|-
DREAMLLM (7B)|-|115.4|56.6|45.8|44.3|-|-|-|-|-|-|-|-|-|-
Emu (7B)|-|117.7|40.0|35.4|34.7|-|-|-|-|-|-|-|-|-|-
Chameleon (34B)|74.7|120.2|66.0|-|-|74.2|51.0|70.4|76.1|46.5|81.4|79.6|41.6|11.5|52.1
NExT-GPT (7B)|84.5|124.9|66.7|48.4|52.1|-|-|-|-|-|-|-|-|-|-
Transfusion (7B)|-|33.7|-|-|-|-|-|-|-|-|-|-|-|-|-
MonoFormer (1.1B)|-|-|-|-|-|50.6|37.2|56.9|48.2|31.5|62.3|71.2|-|-|-
Dual-DiT (2B)|-|56.2|60.1|29.9|25.3|-|-|-|-|-|-|-|-|-|-
JanusFlow (1.3B)|-|-|79.8|-|-|-|-|-|-|-|-|-|-|-|-
Show-O (1.3B)|67.6|-|74.7|-|-|-|-|-|-|-|-|-|-|-|-
MDM (7B)|62.4|109.6|60.3|39.8|47.1|70.6|41.5|68.8|55.1|46.2|65.7|79.9|40.5|12.1|54.4
InstructMDM (7B)|75.2|122.1|66.7|46.3|51.6|74.8|48.3|74.9|65.4|47.1|71.5|83.7|46.0|13.1|59.2
"""),
)
TABLE_3 = PaperTable(
    3,
    ("Model", "Image/Text Scan Switch"),
    ("FPS, log scale", "FID"),
    _rows("""
Model w Mamba | 1234/12 | 1.357 | 2.49
Model w Mamba | 12/1 | 1.405 | 3.96
Model w Transformer | - | 1.914 | 6.72
"""),
)
TABLES = {table.number: table for table in (TABLE_1, TABLE_2, TABLE_3)}
