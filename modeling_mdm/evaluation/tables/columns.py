# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Columns of the paper's tables: which files each wants, how much work it is, how it is measured.

A measurement fills one column or several. It is found out what is missing, of files and of weights,
before any sample is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.evaluation.fidelity import (
    Extractor,
    FidelityFigures,
    JudgeExtractor,
    NamedExtractor,
    fidelity_figures,
)
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.panel import SHEET_SAMPLES
from modeling_mdm.evaluation.tables import text_columns
from modeling_mdm.evaluation.tables.arguments import TableArguments
from modeling_mdm.evaluation.tables.caption_measures import caption_figures, require_library
from modeling_mdm.evaluation.tables.estimates import Estimate
from modeling_mdm.evaluation.tables.geneval import geneval_figures, judge, read_prompts
from modeling_mdm.evaluation.tables.geneval_eyes import ColorNamer, Detector
from modeling_mdm.evaluation.tables.processes import rank
from modeling_mdm.evaluation.tables.readers import (
    Asked,
    Captioned,
    SeenPictures,
    class_folders,
    coco_captions,
    drawn,
    karpathy_captions,
    vizwiz_questions,
    vqa_questions,
)
from modeling_mdm.evaluation.tables.samples import Bench, effort_of, write_samples
from modeling_mdm.evaluation.tables.soft_accuracy import mean_soft_accuracy, soft_accuracy
from modeling_mdm.evaluation.tables.text_columns import TEXT_COLUMNS
from modeling_mdm.processor.image_processing_pil_mdm import open_picture

NUM_IMAGENET = 50_000
NUM_COCO = 30_000
SAMPLES_OF_A_PROMPT = 4  # GenEval's
NUM_SHOWN = 5  # best and worst
COCO_PICTURE = "COCO_val2014_{:012d}.jpg"


@dataclass(frozen=True)
class Figure:
    """What fills one cell.

    Args:
        estimate: the figure with its error.
        by: who measured: a network, a library, a metric of its.
        details: what else was measured, and what the samples cost.
        shown: rows for the page, head first.
        sheet: samples for the page.
    """

    estimate: Estimate
    by: str
    details: dict[str, Any] = field(default_factory=dict)
    shown: list[tuple[str, ...]] = field(default_factory=list)
    sheet: Image.Image | None = None


@dataclass(frozen=True)
class Work:
    """How much a measurement takes: samples or questions, and evaluations of the network."""

    num_samples: int
    num_evaluations: int


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Args:
        columns: that it fills.
        missing: names the files that it wants and that are not there.
        work: what it takes, its files being there.
        prepare: loads what it needs, and gives what measures: figures by column on the first
            process, anything on the others.
    """

    columns: tuple[str, ...]
    missing: Callable[[Path], list[Path]]
    work: Callable[[TableArguments], Work]
    prepare: Callable[[Bench, TableArguments], Callable[[], dict[str, Figure]]]


def _absent(*names: str) -> Callable[[Path], list[Path]]:
    return lambda root: [root / name for name in names if not (root / name).exists()]


def _sampled(chosen: TableArguments, count: int) -> Work:
    return Work(count, count * chosen.num_inference_steps)


def _for_pictures(bench: Bench, chosen: TableArguments) -> Bench:
    if chosen.guidance_scale is None:
        return bench
    return replace(
        bench, options={**bench.options, "guidance_scale": {"image": chosen.guidance_scale}}
    )


# ImageNet, and any folder of folders: pictures of classes.


def _classes(chosen: TableArguments) -> list[list[Path]]:
    return class_folders(chosen.root / "imagenet" / "train")


def _imagenet(columns: tuple[str, ...], bench: Bench, chosen: TableArguments) -> Any:
    extractor = extractor_of(chosen)
    classes = _classes(chosen)
    known = bench.model.config.num_classes
    if known != len(classes):
        raise ValueError(
            f"{chosen.root / 'imagenet' / 'train'} has {len(classes)} folders of classes and the "
            f"model's num_classes is {known}: its pictures are asked for by class."
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
        return _fidelity(columns, drawn_by, chosen, "imagenet", items, real, prepare, extractor)

    return measure


def in_turns(classes: Sequence[Sequence[Path]]) -> list[list[Path]]:
    """Take pictures in turns: the first of each class, then the second of each that has one, ..."""
    longest = max(map(len, classes), default=0)
    return [[files[n] for files in classes if n < len(files)] for n in range(longest)]


def extractor_of(chosen: TableArguments) -> Extractor | NamedExtractor:
    """Give the network whose features are compared."""
    if chosen.extractor_judge:
        judge_network = JudgeNetwork.from_pretrained(chosen.extractor_judge, "extractor_judge")
        return JudgeExtractor(judge_network.to(chosen.device), "mdm-judge")
    return NamedExtractor(chosen.extractor, chosen.extractor_weights)


def _fidelity(
    columns: tuple[str, ...],
    bench: Bench,
    chosen: TableArguments,
    name: str,
    items: Mapping[str, Any],
    real: Sequence[Path],
    prepare: Callable[[Sequence[Any]], Any],
    extractor: Extractor | NamedExtractor,
    **details: Any,
) -> dict[str, Figure]:
    samples = write_samples(bench, name, items, prepare)
    if rank() != 0:
        return {}
    files = [bench.answers.picture(name, item) for item in items]
    seen = SeenPictures(real, bench.processor)
    made = SeenPictures(files, bench.processor)
    cache = bench.answers.folder / "features" / name
    found = fidelity_figures(made, seen, extractor, cache, chosen.device, chosen.seed)
    effort = effort_of(samples)
    details |= {"fidelity": vars(found), "effort": vars(effort)}
    values = _values_of(found, columns)
    if "FPS, log scale" in columns:
        values["FPS, log scale"] = Estimate(effort.log_samples_per_second, effort.num_samples)
    sheet = _sheet([(made[n], None) for n in range(min(SHEET_SAMPLES, len(made)))])
    return {
        column: Figure(value, found.extractor, details, sheet=sheet)
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


# COCO: pictures of captions.


def _coco_items(chosen: TableArguments) -> list[tuple[str, Path]]:
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


# GenEval.


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
        sheet = _sheet(shown[:SHEET_SAMPLES])
        return {"GenEval": Figure(found.score, chosen.detector, details, sheet=sheet)}

    return measure


# Captions of pictures.


def _captioned(name: str, chosen: TableArguments) -> list[Captioned]:
    if name == "COCO":
        root = chosen.root / "coco"
        found = karpathy_captions(root / "dataset_coco.json", root)
    else:
        root = chosen.root / "flickr30k"
        found = karpathy_captions(root / "dataset_flickr30k.json", root / "flickr30k-images")
    return drawn(found, chosen.limit, chosen.seed)


def _captioning(name: str, bench: Bench, chosen: TableArguments) -> Any:
    require_library()
    items = {one.name: one for one in _captioned(name, chosen)}

    def prepare(some: Sequence[Captioned]) -> Any:
        return bench.processor(
            images=[open_picture(str(one.picture)) for one in some],
            generation_mode="text",
            max_new_tokens=chosen.max_new_tokens,
            return_tensors="pt",
        )

    def measure() -> dict[str, Figure]:
        samples = write_samples(bench, name, items, prepare)
        if rank() != 0:
            return {}
        said = {one: sample["text"] for one, sample in samples.items()}
        found = caption_figures(said, {one: item.captions for one, item in items.items()})
        details = {
            "bleu": found.bleu,
            "rouge_l": vars(found.rouge_l),
            "meteor": found.meteor,
            "tokenizer": found.tokenizer,
            "effort": vars(effort_of(samples)),
        }
        order = sorted(items, key=lambda one: -found.cider_by_item[one])
        rows = [
            (f"{found.cider_by_item[one]:.1f}", one, said[one], items[one].captions[0])
            for one in _ends(order)
        ]
        return {
            name: Figure(
                found.cider,
                f"CIDEr-D, words by {found.tokenizer}",
                details,
                [("CIDEr-D", "picture", "caption", "one of people's"), *rows],
                _sheet_of_texts(items, said),
            )
        }

    return measure


# Questions of pictures.


def _asked(name: str, chosen: TableArguments) -> list[Asked]:
    root, coco = chosen.root, chosen.root / "coco" / "val2014"
    if name == "VizWiz":
        found = vizwiz_questions(root / "vizwiz" / "val.json", root / "vizwiz" / "val")
    else:
        files = [root / file for file in QUESTION_FILES[name]]
        found = vqa_questions(*files, coco, COCO_PICTURE)
    return drawn(found, chosen.limit, chosen.seed)


QUESTION_FILES = {
    "VQAv2": (
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
        "vqav2/v2_mscoco_val2014_annotations.json",
    ),
    "OKVQA": (
        "okvqa/OpenEnded_mscoco_val2014_questions.json",
        "okvqa/mscoco_val2014_annotations.json",
    ),
}


def _answering(name: str, bench: Bench, chosen: TableArguments) -> Any:
    items = {one.name: one for one in _asked(name, chosen)}

    def prepare(some: Sequence[Asked]) -> Any:
        return bench.processor.apply_chat_template(
            [[{"role": "user", "content": _question(one)}] for one in some],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            max_new_tokens=chosen.max_new_tokens or bench.processor.max_text_length,
        )

    def measure() -> dict[str, Figure]:
        samples = write_samples(bench, name, items, prepare)
        if rank() != 0:
            return {}
        said = {one: sample["text"] for one, sample in samples.items()}
        people = {one: item.answers for one, item in items.items()}
        found = mean_soft_accuracy(said, people)
        credit = {one: soft_accuracy(said[one], people[one]) for one in items}
        order = sorted(items, key=lambda one: -credit[one])
        rows = [
            (f"{credit[one]:.2f}", items[one].question, said[one], items[one].answers[0])
            for one in _ends(order)
        ]
        return {
            name: Figure(
                _percent(found),
                "VQA's soft accuracy",
                {"effort": vars(effort_of(samples))},
                [("credit", "question", "answer", "one of people's"), *rows],
                _sheet_of_texts(items, said),
            )
        }

    return measure


def _question(one: Asked) -> list[dict[str, Any]]:
    picture = {"type": "image", "image": open_picture(str(one.picture))}
    return [picture, {"type": "text", "text": one.question}]


# Texts, by lm-eval.


def _text_work(name: str, chosen: TableArguments) -> Work:
    column = TEXT_COLUMNS[name]
    count = text_columns.num_items(column, chosen.root, chosen.limit)
    each = chosen.num_inference_steps if column.writes else chosen.num_evaluations
    return Work(count, count * each * chosen.num_draws)


def _reading(name: str, bench: Bench, chosen: TableArguments) -> Any:
    text_columns.require_lm_eval()

    def measure() -> dict[str, Figure]:
        found = text_columns.text_figures(
            *(name, chosen.root, bench.answers, bench.model, bench.processor),
            num_evaluations=chosen.num_evaluations,
            num_draws=chosen.num_draws,
            seed=chosen.seed,
            limit=chosen.limit,
            num_inference_steps=chosen.num_inference_steps,
            max_new_tokens=chosen.max_new_tokens,
            batch_size=chosen.batch_size,
            disable_tqdm=chosen.disable_tqdm,
        )
        details = {key: value for key, value in vars(found).items() if key != "accuracy"}
        return {name: Figure(found.accuracy, f"lm-eval, {found.metric}", details)}

    return measure


def _ends(order: Sequence[str]) -> list[str]:
    """The first and the last few, none twice."""
    return list(dict.fromkeys([*order[:NUM_SHOWN], *order[-NUM_SHOWN:]]))


def _percent(found: Estimate) -> Estimate:
    error = found.standard_error
    return Estimate(100 * found.value, found.num_items, None if error is None else 100 * error)


def _sheet(shown: Sequence[tuple[Image.Image, str | None]]) -> Image.Image:
    samples = [SimpleNamespace(image=picture, text=text) for picture, text in shown]
    return contact_sheet(samples, columns=10, picture_size=84)


def _sheet_of_texts(items: Mapping[str, Any], said: Mapping[str, str]) -> Image.Image:
    chosen = list(items)[:SHEET_SAMPLES]
    return _sheet([(open_picture(str(items[one].picture)), said[one]) for one in chosen])


def _captions_of(name: str, *files: str) -> Measurement:
    return Measurement(
        (name,),
        _absent(*files),
        lambda chosen: _sampled(chosen, len(_captioned(name, chosen))),
        partial(_captioning, name),
    )


def _answers_of(name: str, *files: str) -> Measurement:
    return Measurement(
        (name,),
        _absent(*files),
        lambda chosen: _sampled(chosen, len(_asked(name, chosen))),
        partial(_answering, name),
    )


def _pictures_of_classes(*columns: str) -> Measurement:
    return Measurement(
        columns,
        _absent("imagenet/train"),
        lambda chosen: _sampled(chosen, chosen.limit or NUM_IMAGENET),
        partial(_imagenet, columns),
    )


MEASUREMENTS: dict[int, tuple[Measurement, ...]] = {
    1: (
        _pictures_of_classes("FID", "IS", "Precision", "Recall"),
        Measurement(
            ("COCO FID",),
            _absent("coco/annotations/captions_val2014.json", "coco/val2014"),
            lambda chosen: _sampled(chosen, len(_coco_items(chosen))),
            _coco_fid,
        ),
        Measurement(
            ("GenEval",),
            _absent("geneval/evaluation_metadata.jsonl"),
            lambda chosen: _sampled(chosen, SAMPLES_OF_A_PROMPT * len(_geneval_prompts(chosen))),
            _geneval,
        ),
    ),
    2: (
        _captions_of("Flickr30K", "flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k-images"),
        _captions_of("COCO", "coco/dataset_coco.json", "coco/val2014"),
        _answers_of("VQAv2", *QUESTION_FILES["VQAv2"], "coco/val2014"),
        _answers_of("VizWiz", "vizwiz/val.json", "vizwiz/val"),
        _answers_of("OKVQA", *QUESTION_FILES["OKVQA"], "coco/val2014"),
        *(
            Measurement(
                (name,),
                partial(text_columns.wanted, column),
                partial(_text_work, name),
                partial(_reading, name),
            )
            for name, column in TEXT_COLUMNS.items()
        ),
    ),
    3: (_pictures_of_classes("FPS, log scale", "FID"),),
}
