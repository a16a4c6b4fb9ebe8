# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Columns of pictures: ImageNet's and COCO's fidelity, and GenEval.

What is missing, of files and of weights, is found out before any sample is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from modeling_mdm.evaluation.efficientnet import LITE, LiteExtractor
from modeling_mdm.evaluation.fidelity import (
    Extractor,
    FidelityFigures,
    JudgeExtractor,
    NamedExtractor,
    fidelity_figures,
)
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.panel import SHEET_SAMPLES
from modeling_mdm.evaluation.tables.arguments import TableArguments
from modeling_mdm.evaluation.tables.estimates import Estimate
from modeling_mdm.evaluation.tables.geneval import geneval_figures, judge, read_prompts
from modeling_mdm.evaluation.tables.geneval_eyes import ColorNamer, Detector
from modeling_mdm.evaluation.tables.hub import hub_captions, hub_classes
from modeling_mdm.evaluation.tables.measurement import (
    Figure,
    Measurement,
    absent,
    sampled,
    sheet_of,
)
from modeling_mdm.evaluation.tables.plots import Confusion, Plot
from modeling_mdm.evaluation.tables.processes import rank
from modeling_mdm.evaluation.tables.readers import (
    Captioned,
    FilePicture,
    Picture,
    SeenPictures,
    class_folders,
    coco_captions,
    drawn,
)
from modeling_mdm.evaluation.tables.samples import Bench, effort_of, write_samples

NUM_IMAGENET = 50_000
NUM_COCO = 30_000
SAMPLES_OF_A_PROMPT = 4  # GenEval's


def _for_pictures(bench: Bench, chosen: TableArguments) -> Bench:
    if chosen.guidance_scale is None:
        return bench
    return replace(
        bench, options={**bench.options, "guidance_scale": {"image": chosen.guidance_scale}}
    )


def _classes(chosen: TableArguments) -> dict[str, list[Picture]]:
    name = chosen.hub_ids().get("FID")
    return hub_classes(name) if name else class_folders(chosen.root / "imagenet" / "train")


def _imagenet(columns: tuple[str, ...], bench: Bench, chosen: TableArguments) -> Any:
    extractor = extractor_of(chosen)
    names, classes = zip(*_classes(chosen).items(), strict=True)
    known = bench.model.config.num_classes
    if known != len(classes):
        raise ValueError(
            f"the real pictures are of {len(classes)} classes and the model's num_classes is "
            f"{known}: its pictures are asked for by class."
        )
    count = chosen.limit or NUM_IMAGENET
    items = {f"{n:06d}": n % known for n in range(count)}
    real = [file for files in in_turns(classes) for file in files][:count]

    def prepare(labels: Sequence[int]) -> Any:
        return bench.processor(
            class_labels=list(labels), generation_mode="image", return_tensors="pt"
        )

    def measure() -> dict[str, Figure]:
        drawn_by = _for_pictures(bench, chosen)
        return _fidelity(
            *(columns, drawn_by, chosen, "imagenet", items, real, prepare, extractor),
            look=partial(_confused, names, list(items.values()), extractor),
        )

    return measure


def _confused(
    names: Sequence[str],
    asked: Sequence[int],
    extractor: Extractor | NamedExtractor,
    made: Sequence[Image.Image],
) -> tuple[Plot, ...]:
    """Plot the classes asked for against those that a judge of the same classes sees."""
    if not isinstance(extractor, JudgeExtractor):
        return ()
    if extractor.judge.config.num_classes != len(names):
        return ()
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (list(asked), extractor.judge.classify(made)), 1)
    return (Confusion(tuple(names), counts, "asked for", f"seen by {extractor.name}"),)


def in_turns(classes: Sequence[Sequence[Picture]]) -> list[list[Picture]]:
    """Take pictures in turns: the first of each class, then the second of each that has one, ..."""
    longest = max(map(len, classes), default=0)
    return [[files[n] for files in classes if n < len(files)] for n in range(longest)]


def extractor_of(chosen: TableArguments) -> Extractor | NamedExtractor:
    """Give the network whose features are compared."""
    if chosen.extractor_judge:
        judge_network = JudgeNetwork.from_pretrained(chosen.extractor_judge, "extractor_judge")
        return JudgeExtractor(judge_network.to(chosen.device), "mdm-judge")
    if chosen.extractor == LITE:
        return LiteExtractor(chosen.device)
    return NamedExtractor(chosen.extractor, chosen.extractor_weights)


def _fidelity(
    columns: tuple[str, ...],
    bench: Bench,
    chosen: TableArguments,
    name: str,
    items: Mapping[str, Any],
    real: Sequence[Picture],
    prepare: Callable[[Sequence[Any]], Any],
    extractor: Extractor | NamedExtractor,
    look: Callable[[Sequence[Image.Image]], tuple[Plot, ...]] = lambda made: (),
    **details: Any,
) -> dict[str, Figure]:
    samples = write_samples(bench, name, items, prepare)
    if rank() != 0:
        return {}
    seen = SeenPictures(real, bench.processor)
    files = [FilePicture(bench.answers.picture(name, item)) for item in items]
    made = SeenPictures(files, bench.processor)
    cache = bench.answers.folder / "features" / name
    found = fidelity_figures(made, seen, extractor, cache, chosen.device, chosen.seed)
    effort = effort_of(samples)
    details |= {"fidelity": vars(found), "effort": vars(effort)}
    values = _values_of(found, columns)
    if "FPS, log scale" in columns:
        values["FPS, log scale"] = Estimate(effort.log_samples_per_second, effort.num_samples)
    sheet = sheet_of([(made[n], None) for n in range(min(SHEET_SAMPLES, len(made)))])
    plots = look(made)
    return {
        column: Figure(value, found.extractor, details, sheet=sheet, plots=plots)
        for column, value in values.items()
    }


def _values_of(found: FidelityFigures, columns: Sequence[str]) -> dict[str, Estimate]:
    count = found.num_pictures
    known = {
        "FID": Estimate(found.frechet_distance, count, interval=found.frechet_interval),
        "COCO FID": Estimate(found.frechet_distance, count, interval=found.frechet_interval),
        "Precision": _share(found.precision, count),
        "Recall": _share(found.recall, found.num_real),
    }
    if found.inception_score is not None:
        known["IS"] = Estimate(found.inception_score, count)
    return {column: known[column] for column in columns if column in known}


def _share(share: float, count: int) -> Estimate:
    return Estimate(share, count, (share * (1 - share) / count) ** 0.5)


def _coco_items(chosen: TableArguments) -> list[tuple[str, Picture]]:
    found: Sequence[Captioned]
    if name := chosen.hub_ids().get("COCO FID"):
        found = hub_captions("COCO FID", name)
    else:
        root = chosen.root / "coco"
        found = coco_captions(root / "annotations" / "captions_val2014.json", root / "val2014")
    pairs = [(caption, one.picture) for one in found for caption in one.captions]
    return drawn(pairs, chosen.limit or NUM_COCO, chosen.seed)


def _coco_fid(bench: Bench, chosen: TableArguments) -> Any:
    extractor, pairs = extractor_of(chosen), _coco_items(chosen)
    items = {f"{n:06d}": caption for n, (caption, _) in enumerate(pairs)}
    real = list(dict.fromkeys(picture for _, picture in pairs))
    num_cut = sum(_is_cut(bench.processor, caption) for caption in items.values())
    return lambda: _fidelity(
        ("COCO FID",),
        _for_pictures(bench, chosen),
        chosen,
        "coco_fid",
        items,
        real,
        partial(_prompted, bench.processor),
        extractor,
        num_prompts_cut=num_cut,
    )


def _prompted(processor: Any, prompts: Sequence[str]) -> Any:
    return processor(
        text=list(prompts), generation_mode="image", truncation=True, return_tensors="pt"
    )


def _is_cut(processor: Any, text: str) -> bool:
    words = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(words) >= processor.max_text_length


def _geneval_prompts(chosen: TableArguments) -> list[dict[str, Any]]:
    prompts = read_prompts(chosen.root / "geneval" / "evaluation_metadata.jsonl")
    return drawn(prompts, chosen.limit, chosen.seed)


def _geneval(bench: Bench, chosen: TableArguments) -> Any:
    looks = rank() == 0  # the others make samples alone
    detector = Detector(chosen.detector, chosen.device) if looks else None
    namer = ColorNamer(chosen.color_model, chosen.device) if looks else None
    items = {
        f"{n:05d}-{sample}": prompt
        for n, prompt in enumerate(_geneval_prompts(chosen))
        for sample in range(SAMPLES_OF_A_PROMPT)
    }

    def prepare(prompts: Sequence[Mapping[str, Any]]) -> Any:
        return _prompted(bench.processor, [prompt["prompt"] for prompt in prompts])

    def measure() -> dict[str, Figure]:
        samples = write_samples(_for_pictures(bench, chosen), "geneval", items, prepare)
        if detector is None or namer is None:
            return {}
        verdicts, shown = [], []
        for name, prompt in items.items():
            picture = Image.open(bench.answers.picture("geneval", name))
            verdicts.append(judge(prompt, detector(picture), partial(namer, picture)))
            shown.append((picture, prompt["prompt"]))
        found = geneval_figures(verdicts)
        details = {
            "by_category": {name: vars(one) for name, one in found.by_category.items()},
            "effort": vars(effort_of(samples)),
        }
        sheet = sheet_of(shown[:SHEET_SAMPLES])
        return {"GenEval": Figure(found.score, chosen.detector, details, sheet=sheet)}

    return measure


def _pictures_of_classes(*columns: str) -> Measurement:
    return Measurement(
        columns,
        absent("imagenet/train"),
        lambda chosen: sampled(chosen, chosen.limit or NUM_IMAGENET),
        partial(_imagenet, columns),
    )


PICTURES_OF_CLASSES = _pictures_of_classes("FID", "IS", "Precision", "Recall")
SPEED_AND_FID = _pictures_of_classes("FPS, log scale", "FID")
COCO_PICTURES = Measurement(
    ("COCO FID",),
    absent("coco/annotations/captions_val2014.json", "coco/val2014"),
    lambda chosen: sampled(chosen, len(_coco_items(chosen))),
    _coco_fid,
)
GENEVAL = Measurement(
    ("GenEval",),
    absent("geneval/evaluation_metadata.jsonl"),
    lambda chosen: sampled(chosen, SAMPLES_OF_A_PROMPT * len(_geneval_prompts(chosen))),
    _geneval,
)
