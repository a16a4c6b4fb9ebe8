# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""CIDEr-D, BLEU, ROUGE-L and METEOR of captions against people's, by COCO's own code.

Times 100, as papers give them. `pycocoevalcap` measures; METEOR and Stanford's tokenizer are Java,
and where there is none `ptb_tokens` cuts the captions and METEOR is left out.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdm_cli.endings import MissingExtra
from modeling_mdm.evaluation.tables.estimates import Estimate, mean_of, require_same_ids
from modeling_mdm.evaluation.tables.ptb_tokens import ptb_tokens

Tokenized = dict[Any, list[str]]  # captions of every item, their words joined by spaces


@dataclass(frozen=True)
class CaptionFigures:
    """Figures of captions, each times 100.

    Args:
        cider: CIDEr-D, a mean over pictures.
        bleu: BLEU-1 to BLEU-4 of all captions together.
        rouge_l: ROUGE-L, a mean over pictures.
        meteor: METEOR; None where there is no Java.
        tokenizer: who cut the captions into words: "stanford", or "python", which has its rules.
        cider_by_item: CIDEr-D of each picture.
    """

    cider: Estimate
    bleu: tuple[float, float, float, float]
    rouge_l: Estimate
    meteor: float | None
    tokenizer: str
    cider_by_item: dict[Any, float]


def has_java() -> bool:
    """Tell whether Stanford's tokenizer and METEOR can run."""
    return shutil.which("java") is not None


def caption_figures(
    captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], java: bool | None = None
) -> CaptionFigures:
    """Measure one caption of every picture against what people wrote.

    A caption without words has a CIDEr-D of 0.

    Args:
        captions: of the model, by picture.
        references: people's, by picture.
        java: use Stanford's tokenizer, and measure METEOR; None: where there is Java.

    Raises:
        ImportError: pycocoevalcap is missing.
        ValueError: a caption is missing or nobody asked for it, a picture has no reference, or
            there are fewer than two pictures: CIDEr-D weighs words by how few pictures have them.
    """
    _require_enough(captions, references)
    java = has_java() if java is None else java
    tokenize = _by_stanford if java else _by_our_rules
    people = tokenize(_lines(references))
    said = tokenize(_lines({one: [captions[one]] for one in references}))
    _, cider = _measure("cider.cider", "Cider", people, said)
    bleu, _ = _measure("bleu.bleu", "Bleu", people, said, verbose=0)
    _, rouge = _measure("rouge.rouge", "Rouge", people, said)
    return CaptionFigures(
        cider=mean_of(cider * 100),
        bleu=tuple(100 * float(value) for value in bleu),
        rouge_l=mean_of(rouge * 100),
        meteor=_meteor(people, said) if java else None,
        tokenizer="stanford" if java else "python",
        cider_by_item=dict(zip(people, map(float, cider * 100), strict=True)),
    )


def _require_enough(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    require_same_ids(captions, references, "captions")
    if len(references) < 2:
        raise ValueError(
            f"captions of {len(references)} pictures have no CIDEr-D, which weighs words by how "
            "few pictures have them: pass at least 2."
        )
    for one, written in references.items():
        if not written:
            raise ValueError(f"references has no caption of {one!r}: leave the picture out.")


def require_library(module: str = "cider.cider") -> Any:
    """Give a module of pycocoevalcap.

    Raises:
        ImportError: the library is missing; names the extra that has it.
    """
    try:
        return importlib.import_module(f"pycocoevalcap.{module}")
    except ImportError as error:
        what = "the measures of captions need pycocoevalcap"
        raise MissingExtra(what, "eval-text") from error


def _lines(texts: Mapping[Any, Sequence[str]]) -> Tokenized:
    """Put each caption on one line, as Stanford's tokenizer and METEOR read them."""
    return {one: [" ".join(text.split()) for text in some] for one, some in texts.items()}


def _by_our_rules(lines: Tokenized) -> Tokenized:
    return {one: [" ".join(ptb_tokens(line)) for line in some] for one, some in lines.items()}


def _by_stanford(lines: Tokenized) -> Tokenized:
    captions = {one: [{"caption": line} for line in some] for one, some in lines.items()}
    return require_library("tokenizer.ptbtokenizer").PTBTokenizer().tokenize(captions)


def _measure(
    module: str, name: str, people: Tokenized, said: Tokenized, **options: Any
) -> tuple[Any, Any]:
    """Give a measure of all items together, and of each."""
    return getattr(require_library(module), name)().compute_score(people, said, **options)


def _meteor(people: Tokenized, said: Tokenized) -> float:
    meteor = require_library("meteor.meteor").Meteor()
    try:
        return 100 * float(meteor.compute_score(people, said)[0])
    finally:  # it leaves its pipes open
        for pipe in (meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            pipe.close()
