# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run is trained and evaluated on: a set, or a recipe of streams."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from mdm_cli.places import require_file, require_place
from modeling_mdm.data.augmentation import AugmentsGiven
from modeling_mdm.data.blocks import MixedCollator, MixedItems
from modeling_mdm.data.conversations import ConversationCollator
from modeling_mdm.data.damage import MAX_SKIPPED, MAX_SKIPPED_HELP
from modeling_mdm.data.encoded import CODES, check_encoding, describe_vq, is_encoded
from modeling_mdm.data.garment_talks import PICTURES, TALK_KINDS, FashionTalks
from modeling_mdm.data.lengths import (
    check_answers,
    check_text,
    check_texts,
    leave_out_long,
    long_texts,
)
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.data.stream_sources import read_recipe
from modeling_mdm.data.streams import MixedStream
from modeling_mdm.data.talks import Conversations, load_talks
from modeling_mdm.data.tasks import DEFAULT_WEIGHTS, TASKS, MDMDataCollator, TaskMixture
from modeling_mdm.training.command_line import pairs

# Of `DataArguments`, what a recipe of streams has a use for; its sources say the rest.
_FOR_STREAMS = ("dataset", "max_skipped", "truncation", "tasks", "augment_given")
OF_EVALUATION = ("eval_dataset", "eval_columns", "eval_split", "eval_limit")  # of a set beside them
FASHION_TALKS = "fashion_talks"
# Items of a stream, with their pictures, that are held to be sorted by length; a step's at least.
MAX_BLOCK = 512
DEFAULT_TASKS = [f"{name}={weight}" for name, weight in DEFAULT_WEIGHTS.items()]


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(
        metadata={
            "help": "'digits', 'fashion_mnist', a folder, one packed into a tar file, the id of a "
            "data set on the Hub with an image column and a text and/or label column, or a YAML "
            "file that names several to stream, such as configuration/data/paper.yaml."
        }
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "For fashion_mnist: the folder with its four IDX files."}
    )
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={"help": "The split to evaluate on, with --eval_strategy steps; None for none."},
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "A set to evaluate on instead of dataset, which may then be a recipe of "
            "streams; eval_split is a split of it."
        },
    )
    eval_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of eval_dataset by role, as role=column."}
    )
    eval_share: float = field(
        default=0.0,
        metadata={
            "help": "Without an eval_split: hold out this share of the training split, the same "
            "items in every run, and evaluate on it; 0 holds out none."
        },
    )
    captions: str | None = field(
        default=None,
        metadata={"help": "A JSON table of names and templates; labelled pictures get captions."},
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns by role, as role=column; roles are image, text, label. Where text is "
            "a column of lists of strings, one of a picture's captions is drawn each time."
        },
    )
    augment: bool = field(default=False, metadata={"help": "Flip and shift training pictures."})
    augment_given: bool = field(
        default=False,
        metadata={
            "help": "Flip and shift those that are only read, for captions and answers, and leave "
            "those that are to be drawn."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Train on the first items only."})
    eval_limit: int | None = field(
        default=None, metadata={"help": "Evaluate on the first items only."}
    )
    max_skipped: float = field(default=MAX_SKIPPED, metadata={"help": MAX_SKIPPED_HELP})
    truncation: bool = field(
        default=False, metadata={"help": "Cut texts that are longer than the model's text region."}
    )
    leave_out_long: bool = field(
        default=False,
        metadata={
            "help": "Never draw a text that is longer than the model's text region, nor a "
            "conversation with such an answer; of a picture's captions others are drawn."
        },
    )
    tasks: list[str] = field(
        default_factory=lambda: list(DEFAULT_TASKS),
        metadata={
            "help": f"How often each task is drawn, as task=weight. Tasks: {', '.join(TASKS)}."
        },
    )
    talks: str | None = field(
        default=None,
        metadata={
            "help": f"Conversations to train on as well: '{FASHION_TALKS}', made of the labels of "
            "dataset=fashion_mnist, or a file, folder or Hub id with a column `messages`."
        },
    )
    talks_share: float = field(
        default=0.3, metadata={"help": "Share of the steps that are conversations, in (0, 1)."}
    )
    talks_kinds: list[str] | None = field(
        default=None,
        metadata={
            "help": "How often each kind of conversation is drawn, as kind=weight. A file's are "
            "those of its column `kind`, drawn as often as they are there if none is named; those "
            f"of {FASHION_TALKS}, then drawn equally, are {', '.join(TALK_KINDS)}."
        },
    )
    talks_late: float = field(
        default=0.0,
        metadata={
            "help": "Share of the answers in words that are noised so far that only the question "
            "tells them."
        },
    )


def load_data(
    args: DataArguments, processor: Any, items_per_step: int, seed: int
) -> tuple[PictureDataset | MixedStream | MixedItems, PictureDataset | None]:
    """Load what a run is trained on, and what it is evaluated on, if anything.

    Raises:
        ValueError: if arguments do not fit each other or the data, or a text is too long.
        OSError: if a file or folder is missing.
    """
    if args.dataset.endswith((".yaml", ".yml")):
        train_data = load_stream(args, processor, items_per_step, seed)
    else:
        train_data = load_split(args, args.train_split, args.limit, args.augment, seed)
    eval_data = load_evaluation_data(args, seed)
    for data in (train_data, eval_data):
        if isinstance(data, PictureDataset):
            if args.leave_out_long:
                leave_out_long(processor, data)
            if not args.truncation:
                check_texts(processor, data)
    if args.talks is not None and isinstance(train_data, PictureDataset):
        train_data = with_talks(args, train_data, processor, seed)
    return train_data, eval_data


def check_encoded_data(args: DataArguments, processor: Any, model: Any) -> None:
    """Refuse data that `mdm encode` has made for another processor or VQ-VAE than a run's.

    Raises:
        ValueError: names what differs, or which sources of a recipe are not encoded.
    """
    if args.dataset.endswith((".yaml", ".yml")):
        sources = read_recipe(args.dataset)
        places = [(source.path, source.split) for source in sources if is_encoded(source.path)]
        plain = [one.path for one in sources if not is_encoded(one.path) and "image" in one.columns]
    else:
        splits = [args.train_split]
        if args.eval_split is not None and args.eval_dataset is None:
            splits.append(args.eval_split)
        places = [(args.dataset, split) for split in splits] if is_encoded(args.dataset) else []
        plain = []
    if args.eval_dataset is not None and is_encoded(args.eval_dataset):
        places.append((args.eval_dataset, str(args.eval_split)))
    if not places:
        return
    vq = describe_vq(model.vq)
    for place, split in places:
        check_encoding(place, split, processor, vq)
    coded = vq["pictures"] == CODES
    if coded and plain:
        raise ValueError(
            f"dataset={args.dataset!r} names pictures as codes, and of {plain} as pixels: encode "
            "all of its sources by `mdm encode`, or none."
        )
    if coded and args.augment_given:
        raise ValueError(
            f"augment_given=True cannot mirror or shift the codes of dataset={args.dataset!r}: "
            "leave it out, or train on the pictures themselves."
        )


def with_talks(
    args: DataArguments, pictures: PictureDataset, processor: Any, seed: int
) -> MixedItems:
    """Put conversations beside pictures; their kinds apart by the number of pictures they show.

    Rows of one batch are as long as the longest.

    Raises:
        ValueError: if talks_share is outside (0, 1), kinds are unknown, or an answer is too long.
        OSError: if a file or folder is missing.
    """
    if not 0 < args.talks_share < 1:
        raise ValueError(
            f"talks_share={args.talks_share} must be between 0 and 1: leave talks out for none."
        )
    if args.talks == FASHION_TALKS:
        parts, shares = fashion_talks(args, pictures, seed)
    else:
        parts, shares = brought_talks(args, processor)
    whole = args.talks_share / sum(shares)
    return MixedItems(
        [pictures, *parts], [1 - args.talks_share, *(share * whole for share in shares)]
    )


def brought_talks(args: DataArguments, processor: Any) -> tuple[list[Conversations], list[float]]:
    """Load conversations, a set for each number of pictures that they show, or of each kind.

    Returns:
        the sets, and how often each is to be drawn.
    """
    name = cast(str, args.talks)
    if not Path(name).is_file():
        require_place("talks", name)
    talks, longest = load_talks(name, "train", args.max_skipped), processor.max_text_length
    if args.leave_out_long:
        talks = talks.without(long_texts(processor, talks.answers(), longest, "answers"))
    check_answers(processor, talks.answers(), longest)
    kinds = None if args.talks_kinds is None else pairs("talks_kinds", args.talks_kinds)
    parts, shares = zip(*talks.parts(kinds), strict=True)
    return list(parts), list(shares)


def fashion_talks(
    args: DataArguments, pictures: PictureDataset, seed: int
) -> tuple[list[FashionTalks], list[float]]:
    """Make conversations of pictures, a set for each number of pictures that they show.

    Returns:
        the sets, and how often each is to be drawn.
    """
    if args.dataset != "fashion_mnist" or pictures.captions is None or args.captions is None:
        raise ValueError(
            f"talks={FASHION_TALKS!r} are about the pictures and captions of fashion_mnist: use "
            "--dataset fashion_mnist --captions examples/captions/fashion_mnist.json."
        )
    given = dict.fromkeys(TALK_KINDS, 1.0)
    if args.talks_kinds is not None:
        given = pairs("talks_kinds", args.talks_kinds)
    FashionTalks(pictures, pictures.captions, seed, given)  # refuses what is no weight of a kind
    by_pictures: dict[int, dict[str, float]] = {}
    for kind, weight in given.items():
        if weight > 0:
            by_pictures.setdefault(max(1, PICTURES[kind]), {})[kind] = weight
    sets = [FashionTalks(pictures, pictures.captions, seed, own) for own in by_pictures.values()]
    return sets, [sum(own.values()) for own in by_pictures.values()]


def make_collator(args: DataArguments, processor: Any, seed: int) -> Any:
    """Make the collator of a run: of picture tasks, and of conversations where there are any.

    Raises:
        ValueError: if tasks or talks_late are wrong.
    """
    mixture = TaskMixture(pairs("tasks", args.tasks))
    collator: Any = MDMDataCollator(processor, mixture, seed, args.truncation)
    if args.talks is not None:
        collator = MixedCollator(collator, _collator_of_talks(args, processor, seed))
    return AugmentsGiven(collator, seed) if args.augment_given else collator


def _collator_of_talks(args: DataArguments, processor: Any, seed: int) -> ConversationCollator:
    return ConversationCollator(processor, seed=seed, late=args.talks_late, pad_to_multiple_of=8)


def load_evaluation_data(args: DataArguments, seed: int) -> PictureDataset | None:
    """Load what is evaluated on: a split, what is held out of the training split, or nothing.

    Raises:
        ValueError: if a set is named without its split, or columns without a set.
    """
    if args.eval_dataset is not None:
        if args.eval_split is None:
            raise ValueError(f"eval_dataset={args.eval_dataset!r} needs --eval_split.")
        args = replace(args, dataset=args.eval_dataset, columns=args.eval_columns, data_dir=None)
    elif args.eval_columns is not None:
        raise ValueError(f"eval_columns={args.eval_columns} are of --eval_dataset: name it.")
    if args.eval_split is not None:
        return load_split(args, args.eval_split, args.eval_limit, False, seed)
    if args.eval_share:
        return load_split(args, args.train_split, args.eval_limit, False, seed, True)
    return None


def load_split(
    args: DataArguments,
    split: str,
    limit: int | None,
    augment: bool,
    seed: int,
    takes_held_out: bool = False,
) -> PictureDataset:
    """Load one split of the data set that the arguments describe, or the held-out share of one."""
    held_out = args.eval_share if args.eval_split is None else 0.0
    return load_training_data(
        args.dataset,
        split=split,
        data_dir=args.data_dir,
        captions=args.captions,
        columns=pairs("columns", args.columns),
        seed=seed,
        augment=augment,
        limit=limit,
        held_out=held_out,
        takes_held_out=takes_held_out,
        max_skipped=args.max_skipped,
    )


def load_stream(args: DataArguments, processor: Any, items_per_step: int, seed: int) -> MixedStream:
    """Open the streams that a YAML file names, for pictures in the ratio that the model sees.

    Items of like length share a step, whatever batches and processes share it out.

    Raises:
        ValueError: if arguments are passed that streams have no use for.
    """
    used = _FOR_STREAMS + (() if args.eval_dataset is None else OF_EVALUATION)
    unused = {
        f.name: value
        for f in fields(args)
        if f.name not in used and (value := getattr(args, f.name)) != f.default
    }
    if unused:
        raise ValueError(
            f"{', '.join(f'{name}={value!r}' for name, value in unused.items())} cannot be used "
            f"with the streams of dataset={args.dataset!r}: leave it out. Split, columns and files "
            "of each stream stand in that recipe; streams are not evaluated on, but a set is that "
            "--eval_dataset names."
        )
    require_file("dataset", args.dataset)
    size = processor.image_processor.size
    return MixedStream(
        read_recipe(args.dataset),
        (size.height, size.width),
        seed,
        items_per_step,
        buckets=max(1, min(8, MAX_BLOCK // items_per_step)),
        max_skipped=args.max_skipped,
        check_text=None if args.truncation else partial(check_text, processor),
    )
