# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which measurements fill which table."""

from __future__ import annotations

from modeling_mdm.evaluation.tables.measurement import Measurement
from modeling_mdm.evaluation.tables.picture_columns import (
    COCO_PICTURES,
    GENEVAL,
    PICTURES_OF_CLASSES,
    SPEED_AND_FID,
)
from modeling_mdm.evaluation.tables.word_columns import WORD_COLUMNS

MEASUREMENTS: dict[int, tuple[Measurement, ...]] = {
    1: (PICTURES_OF_CLASSES, COCO_PICTURES, GENEVAL),
    2: WORD_COLUMNS,
    3: (SPEED_AND_FID,),
}
