# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Columns of words: captions of pictures, answers about them, and texts by lm-eval.

What is missing, of files and of libraries, is found out before any sample is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from modeling_mdm.evaluation.panel import SHEET_SAMPLES
from modeling_mdm.evaluation.tables import text_columns
from modeling_mdm.evaluation.tables.arguments import TableArguments
from modeling_mdm.evaluation.tables.caption_measures import caption_figures, require_library
from modeling_mdm.evaluation.tables.estimates import Estimate
from modeling_mdm.evaluation.tables.hub import hub_captions, hub_questions
from modeling_mdm.evaluation.tables.measurement import (
    Figure,
    Measurement,
    Work,
    absent,
    sampled,
    sheet_of,
)
from modeling_mdm.evaluation.tables.plots import Calibration, Confusion
from modeling_mdm.evaluation.tables.processes import rank
from modeling_mdm.evaluation.tables.readers import (
    Asked,
    Captioned,
    drawn,
    karpathy_captions,
    vizwiz_questions,
    vqa_questions,
)
from modeling_mdm.evaluation.tables.samples import Bench, choose_answers, effort_of, write_samples
from modeling_mdm.evaluation.tables.soft_accuracy import mean_soft_accuracy, plain, soft_accuracy
from modeling_mdm.evaluation.tables.text_columns import TEXT_COLUMNS

NUM_SHOWN = 5  # best and worst
COCO_PICTURE = "COCO_val2014_{:012d}.jpg"


def _captioned(name: str, chosen: TableArguments) -> list[Captioned]:
    if hub_id := chosen.hub_ids().get(name):
        found = hub_captions(name, hub_id)
    elif name == "COCO":
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
            images=[one.picture.open() for one in some],
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


def _asked(name: str, chosen: TableArguments) -> list[Asked]:
    if hub_id := chosen.hub_ids().get(name):
        found = hub_questions(name, hub_id)
    elif name == "VizWiz":
        folder = chosen.root / "vizwiz"
        found = vizwiz_questions(folder / "val.json", folder / "val")
    else:
        files = [chosen.root / file for file in QUESTION_FILES[name]]
        found = vqa_questions(*files, chosen.root / "coco" / "val2014", COCO_PICTURE)
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
    items, choices = {one.name: one for one in _asked(name, chosen)}, chosen.choices()
    region = chosen.max_new_tokens or bench.processor.max_text_length
    write = partial(_chat, bench.processor, add_generation_prompt=True, max_new_tokens=region)

    def prepare(some: Sequence[Asked]) -> Any:
        return write([[_question(one)] for one in some])

    def read(one: Asked, said: Sequence[str]) -> Any:
        replies = [{"role": "assistant", "content": answer} for answer in said]
        return _chat(bench.processor, [[_question(one), reply] for reply in replies])

    def measure() -> dict[str, Figure]:
        if choices is None:
            samples = write_samples(bench, name, items, prepare)
        else:
            count = chosen.num_evaluations
            samples = choose_answers(bench, name, items, choices, read, count)
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
                "VQA's soft accuracy, answers " + ("written" if choices is None else "ranked"),
                {"effort": vars(effort_of(samples))},
                [("credit", "question", "answer", "one of people's"), *rows],
                _sheet_of_texts(items, said),
                (_answers_confused(said, people), *_calibrated(samples, credit)),
            )
        }

    return measure


def _answers_confused(said: Mapping[str, str], people: Mapping[str, Sequence[str]]) -> Confusion:
    """Count what was answered where most people gave which answer."""
    pairs = (
        (Counter(map(plain, answers)).most_common(1)[0][0], plain(said[one]))
        for one, answers in people.items()
    )
    return Confusion.of(pairs, "what most people say", "the model's answer")


def _calibrated(
    samples: Mapping[str, Mapping[str, Any]], credit: Mapping[str, float]
) -> tuple[Calibration, ...]:
    """How sure ranked answers are against the credit that they get."""
    sure = {one: sample["confidence"] for one, sample in samples.items() if "confidence" in sample}
    return (Calibration([*sure.values()], [credit[one] for one in sure]),) if sure else ()


def _question(one: Asked) -> dict[str, Any]:
    picture = {"type": "image", "image": one.picture.open()}
    return {"role": "user", "content": [picture, {"type": "text", "text": one.question}]}


def _chat(processor: Any, conversations: list[list[dict[str, Any]]], **options: Any) -> Any:
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def _answer_work(name: str, chosen: TableArguments) -> Work:
    count, choices = len(_asked(name, chosen)), chosen.choices()
    if choices is None:
        return sampled(chosen, count)
    return Work(count, count * len(choices) * chosen.num_evaluations)


def _text_work(name: str, chosen: TableArguments) -> Work:
    column = TEXT_COLUMNS[name]
    count = text_columns.num_items(_source(name, chosen), chosen.limit)
    each = chosen.num_inference_steps if column.writes else chosen.num_evaluations
    return Work(count, count * each * chosen.num_draws)


def _source(name: str, chosen: TableArguments) -> text_columns.Source:
    ids = chosen.hub_ids()
    return text_columns.Source(name, None if name in ids else chosen.root, ids.get(name))


def _reading(name: str, bench: Bench, chosen: TableArguments) -> Any:
    text_columns.require_lm_eval()
    loaded = text_columns.load_tasks(_source(name, chosen), bench.answers.folder / "tasks")

    def measure() -> dict[str, Figure]:
        found = text_columns.text_figures(
            *(name, loaded, bench.answers, bench.model, bench.processor),
            num_evaluations=chosen.num_evaluations,
            num_draws=chosen.num_draws,
            seed=chosen.seed,
            limit=chosen.limit,
            num_inference_steps=chosen.num_inference_steps,
            max_new_tokens=chosen.max_new_tokens,
            batch_size=chosen.batch_size,
            disable_tqdm=chosen.disable_tqdm,
        )
        apart = ("accuracy", "calibration")
        details = {key: value for key, value in vars(found).items() if key not in apart}
        plots = () if found.calibration is None else (found.calibration,)
        return {name: Figure(found.accuracy, f"lm-eval, {found.metric}", details, plots=plots)}

    return measure


def _ends(order: Sequence[str]) -> list[str]:
    """The first and the last few, none twice."""
    return list(dict.fromkeys([*order[:NUM_SHOWN], *order[-NUM_SHOWN:]]))


def _percent(found: Estimate) -> Estimate:
    error = found.standard_error
    return Estimate(100 * found.value, found.num_items, None if error is None else 100 * error)


def _sheet_of_texts(items: Mapping[str, Any], said: Mapping[str, str]) -> Image.Image:
    chosen = list(items)[:SHEET_SAMPLES]
    return sheet_of([(items[one].picture.open(), said[one]) for one in chosen])


def _captions_of(name: str, *files: str) -> Measurement:
    return Measurement(
        (name,),
        absent(*files),
        lambda chosen: sampled(chosen, len(_captioned(name, chosen))),
        partial(_captioning, name),
    )


def _answers_of(name: str, *files: str) -> Measurement:
    return Measurement(
        (name,),
        absent(*files),
        partial(_answer_work, name),
        partial(_answering, name),
    )


WORD_COLUMNS = (
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
)
