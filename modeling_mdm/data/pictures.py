# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures with captions, labels or both, one item at a time.

Axis legend: item, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.utils import logging

from mdm_cli.places import require_place
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.damage import MAX_SKIPPED, StandIns
from modeling_mdm.data.idx import read_idx
from modeling_mdm.data.shards import alternatives, is_picture, read_image, read_text
from modeling_mdm.processor.image_processing_pil_mdm import read_picture, set_channels

logger = logging.get_logger(__name__)

FASHION_MNIST_ID = "zalando-datasets/fashion_mnist"
FASHION_MNIST_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_MNIST_HELP = (
    "On Debian, `apt install dataset-fashion-mnist` puts the files into "
    "/usr/share/datasets/fashion-mnist; without data_dir they come from the Hub as "
    f"{FASHION_MNIST_ID!r}."
)
DIGITS_TEST_ITEMS = 360
# Where several columns could serve, these names settle it.
USUAL_NAMES = {
    "image": ("image", "img", "picture"),
    "text": ("text", "caption"),
    "label": ("label", "labels"),
}
CAPTION_STREAM, AUGMENT_STREAM = 0, 1


class Item(TypedDict):
    """One training item: a picture, its caption and its class."""

    image: Image.Image | None
    text: str | None
    label: int | None


class Source(NamedTuple):
    """What a data set holds, before captions are drawn.

    `images` gives arrays (height, width[, 3]) or PIL pictures by index; `texts` and `labels` may be
    None, as may single values of them; `class_names` is known for some labelled sets. An item whose
    picture or text raises an error when it is asked for is damaged; `names` says what it is called.
    """

    images: Sequence[Any] | np.ndarray
    texts: Sequence[str | None] | None = None
    labels: Sequence[int | None] | np.ndarray | None = None
    class_names: Sequence[str] | None = None
    names: Sequence[str] | None = None


class PictureDataset(StandIns):
    """Pictures whose captions are drawn afresh in every epoch.

    What item `index` is depends on (seed, epoch, index) alone, never on the order of access, so a
    run that was cut off and resumed sees the same captions and the same augmentation. In place of
    an item that cannot be read the next one is given that can, so that batches keep their shape;
    each is counted in `skipped` and warned of once, by its name.

    Args:
        source: the pictures with their texts, labels or both.
        captions: the table from which a labelled picture without a text of its own gets one.
        seed: seed of captions and augmentation, >= 0.
        augment: flip half of the pictures left to right and shift each by up to one pixel.
        limit: use the first `limit` items only.
        max_skipped: share of the items that may be damaged.

    Raises:
        ValueError: if seed is negative, limit is below 1, max_skipped is no share, or a label has
            no row in captions.
        TooManySkippedError: when an item is asked for, if more items are damaged.
    """

    def __init__(
        self,
        source: Source,
        captions: CaptionTable | None = None,
        seed: int = 0,
        augment: bool = False,
        limit: int | None = None,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} must be >= 1, or None for all items.")
        self.source = source
        self.captions = captions
        self.seed = seed
        self.augment = augment
        super().__init__(min(len(source.images), limit or len(source.images)), max_skipped)
        # In shared memory: a set_epoch in the main process reaches persistent workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if captions is not None and source.labels is not None:
            highest = max((int(x) for x in source.labels if x is not None), default=-1)
            if highest >= captions.num_classes:
                raise ValueError(
                    f"captions has names for {captions.num_classes} classes and the data has the "
                    f"label {highest}: give a table with a row for every class."
                )

    @property
    def epoch(self) -> int:
        """The epoch whose captions are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose captions and augmentation are drawn."""
        self._epoch.fill_(epoch)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None where items have no labels."""
        if self.source.labels is None:
            return None
        if self.source.class_names is not None:
            return len(self.source.class_names)
        return max((int(x) for x in self.source.labels if x is not None), default=-1) + 1

    @property
    def labels(self) -> list[int | None] | None:
        """The label of every item, without decoding a picture; None where there are no labels."""
        if self.source.labels is None:
            return None
        return [_label_or_none(self.source.labels[i]) for i in range(self._length)]

    def __getitem__(self, index: int) -> Item:
        number, (image, text) = self._read_near(index)
        if self.augment and image is not None:
            image = flip_and_shift(image, self._rng(number, AUGMENT_STREAM))
        labels = self.source.labels
        label = None if labels is None else _label_or_none(labels[number])
        if text is None and label is not None and self.captions is not None:
            text = self.captions.draw(label, self._rng(number, CAPTION_STREAM))
        return {"image": image, "text": text, "label": label}

    def texts(self) -> Iterator[tuple[str, str]]:
        """Give the name and the text of each item that has one of its own and can be read."""
        for index in range(self._length if self.source.texts is not None else 0):
            try:
                text = read_text(self.source.texts[index], "text")  # type: ignore[index]
            except Exception:  # read again, and reported, when it is drawn
                continue
            if text is not None:
                yield self.name(index), text

    def name(self, index: int) -> str:
        """Say where an item comes from."""
        names = self.source.names
        return f"item {index}" + (f", {names[index]}" if names is not None else "")

    def _read(self, index: int) -> tuple[Image.Image | None, str | None]:
        image, texts = self.source.images[index], self.source.texts
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image = read_image(image)
        text = None if texts is None else read_text(texts[index], "text")
        if image is None and text is None and self.source.labels is None:
            raise ValueError("it holds neither a picture nor a text")
        return image, text

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, index, stream))


def _label_or_none(value: Any) -> int | None:
    # `datasets` marks a missing label of a test split with -1.
    return None if value is None or value < 0 else int(value)


def plain_picture(image: Image.Image) -> Image.Image:
    """Turn any picture upright and make it grey or RGB, on white where it is transparent."""
    pixels = read_picture(image)  # (height, width[, channels])
    if pixels.ndim == 3:
        channels = np.moveaxis(pixels, -1, 0)
        colours = set_channels(channels, 1 if len(channels) == 2 else 3)
        pixels = colours[0] if len(colours) == 1 else np.moveaxis(colours, 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def flip_and_shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror a picture left to right half of the time and shift it by -1, 0 or 1 pixel each way.

    The row or column that enters repeats the border.
    """
    flip = bool(rng.integers(2))
    down, right = (int(x) for x in rng.integers(0, 3, size=2))
    image = plain_picture(image)
    if flip:
        image = ImageOps.mirror(image)
    pixels = np.asarray(image)  # (height, width[, 3])
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((1, 1), (1, 1)) + ((0, 0),) * (pixels.ndim - 2), mode="edge")
    return Image.fromarray(padded[down : down + height, right : right + width].copy())


def load_training_data(
    name_or_path: str,
    split: str = "train",
    data_dir: str | None = None,
    captions: CaptionTable | str | Path | None = None,
    columns: Mapping[str, str | list[str]] | None = None,
    seed: int = 0,
    augment: bool = False,
    limit: int | None = None,
    held_out: float = 0.0,
    takes_held_out: bool = False,
    max_skipped: float = MAX_SKIPPED,
) -> PictureDataset:
    """Load one split of a data set of pictures with texts, labels or both.

    Args:
        name_or_path: `"digits"` (scikit-learn, 8 x 8), `"fashion_mnist"`, a folder that `datasets`
            can read (pictures with metadata.jsonl or in one folder a class, Parquet, JSON lines,
            CSV, tar shards, `save_to_disk`), or the id of a data set on the Hub.
        split: `"train"`, `"test"` or, for `datasets`, any split or slice.
        data_dir: for `"fashion_mnist"`, the folder with its four IDX files; None takes the Hub's.
            For other names, `datasets`' argument of that name.
        captions: table (or the path of one) for labelled pictures without a text. None makes one
            from the set's own class names.
        columns: `datasets` columns by role, for example `{"image": "scan", "text": "title"}`. Roles
            that are not named are found by feature type. Several columns, of which an item has one,
            are `"jpg;png"`, as WebDataset writes them, or a list.
        seed: seed of captions and augmentation.
        augment: see `PictureDataset`.
        limit: use the first `limit` items only.
        held_out: share of the split that is kept apart, the same items at every call.
        takes_held_out: load these instead of all others.
        max_skipped: see `PictureDataset`.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if a whole file is damaged, a column is absent or ambiguous, or an argument is
            wrong.
    """
    if name_or_path == "digits":
        source = _load_digits(split)
    elif name_or_path == "fashion_mnist" and data_dir is not None:
        source = _load_fashion_mnist(Path(data_dir), split)
    else:
        is_fashion = name_or_path == "fashion_mnist"
        dataset = _load_with_datasets(
            FASHION_MNIST_ID if is_fashion else name_or_path, split, data_dir
        )
        source = _source_from_columns(dataset, dict(columns or {}))
        _warn_of_what_is_lacking(source)
    if held_out:
        source = _part(source, held_out, takes_held_out)
    if isinstance(captions, (str, Path)):
        captions = CaptionTable.from_json(captions)
    if captions is None and source.class_names is not None:
        captions = CaptionTable.from_names(source.class_names)
    return PictureDataset(
        source, captions, seed=seed, augment=augment, limit=limit, max_skipped=max_skipped
    )


class _Chosen(Sequence[Any]):
    """Some of the values of a sequence that reads them one by one."""

    def __init__(self, values: Sequence[Any], indices: np.ndarray) -> None:
        self.values, self.indices = values, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.values[int(self.indices[index])]


def _part(source: Source, held_out: float, takes_held_out: bool) -> Source:
    count = len(source.images)
    apart = round(count * held_out)
    if not 0 < apart < count:
        raise ValueError(
            f"held_out={held_out} of {count} items leaves nothing to train on or nothing to hold "
            "out: give a share in (0, 1) that is at least one item of each."
        )
    # Drawn, because files often lie in the order of their classes; by no seed of a run.
    order = np.random.default_rng(0).permutation(count)
    indices = np.sort(order[:apart] if takes_held_out else order[apart:])
    images, texts, labels, names = (
        None if values is None else _Chosen(values, indices)
        for values in (source.images, source.texts, source.labels, source.names)
    )
    return Source(images, texts, labels, source.class_names, names)


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} does not exist in this data set: use 'train' or 'test'.")


def _load_digits(split: str) -> Source:
    """Load scikit-learn's digits: 1437 for training, 360 for testing, always the same ones."""
    _check_split(split)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The data set 'digits' comes with scikit-learn: `pip install scikit-learn`."
        ) from error
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:DIGITS_TEST_ITEMS] if split == "test" else order[DIGITS_TEST_ITEMS:]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # (item, 8, 8)
    return Source(images, labels=digits.target[chosen], class_names=[str(n) for n in range(10)])


def _load_fashion_mnist(folder: Path, split: str) -> Source:
    _check_split(split)
    prefix = "t10k" if split == "test" else "train"
    images = read_idx(_idx_path(folder, f"{prefix}-images-idx3-ubyte"))  # (item, 28, 28)
    labels = read_idx(_idx_path(folder, f"{prefix}-labels-idx1-ubyte"))  # (item,)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"data_dir={str(folder)!r}: the {split} split has images of shape {images.shape} and "
            f"labels of shape {labels.shape}, which do not belong together. {FASHION_MNIST_HELP}"
        )
    return Source(images, labels=labels.astype(np.int64), class_names=FASHION_MNIST_NAMES)


def _idx_path(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir={str(folder)!r} is missing: there is no such folder. {FASHION_MNIST_HELP}"
        )
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"data_dir={str(folder)!r} has no file {name}.gz (nor {name}). {FASHION_MNIST_HELP}"
    )


def _load_with_datasets(name_or_path: str, split: str, data_dir: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{name_or_path!r} needs `pip install datasets`.") from error
    require_place("dataset", name_or_path)
    folder = Path(name_or_path)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name_or_path)
        # A set saved alone remembers the split that it was; one made in memory counts as "train".
        splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if split not in splits:
            raise ValueError(f"split={split!r} is not in {name_or_path!r}: use one of {[*splits]}.")
        return splits[split]
    try:
        if name_or_path != FASHION_MNIST_ID:
            from modeling_mdm.data.rows import read_rows

            rows = read_rows(name_or_path, data_dir, split)
            if rows is not None:
                return rows
        return datasets.load_dataset(name_or_path, data_dir=data_dir, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        hint = (
            f"{FASHION_MNIST_HELP} Give data_dir where the Hub cannot be reached."
            if name_or_path == FASHION_MNIST_ID
            else "Give 'digits', 'fashion_mnist', a folder, or the id of a set on the Hub."
        )
        what = "" if folder.exists() else " is no folder here, and as an id of the Hub"
        raise FileNotFoundError(f"name_or_path={name_or_path!r}{what}: {error} {hint}") from error
    except ValueError as error:
        raise ValueError(f"name_or_path={name_or_path!r}, split={split!r}: {error}") from error


def _source_from_columns(dataset: Any, columns: dict[str, str]) -> Source:
    """Find the image, text and label columns of a `datasets.Dataset` by their feature types."""
    import datasets

    if unknown := sorted(set(columns) - set(USUAL_NAMES)):
        raise ValueError(f"columns has the roles {unknown}: only {[*USUAL_NAMES]} exist.")
    from modeling_mdm.data.rows import FirstOf, PathsOf, Rows

    features = dataset.features
    found = {role: _find_columns(features, role, columns.get(role)) for role in USUAL_NAMES}
    if not found["image"]:
        raise ValueError(
            f"no column holds images, among {_described(features)}: name one with "
            "columns={'image': ...}."
        )
    if not found["text"] and not found["label"]:
        raise ValueError(
            f"no column holds a text or a label, among {_described(features)}: name one with "
            "columns={'text': ...} or columns={'label': ...}."
        )
    if isinstance(dataset, Rows):
        return dataset.source(**found)
    for name in found["text"]:
        if not _fits(features[name], "text"):
            raise ValueError(f"columns names {name!r} as the text: {features[name]} is no text.")
    for name in found["image"]:
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    labels = [list(dataset[name]) for name in found["label"]]
    return Source(
        images=FirstOf([dataset[name] for name in found["image"]]),
        texts=FirstOf([dataset[name] for name in found["text"]]) if found["text"] else None,
        labels=list(FirstOf(labels)) if labels else None,
        class_names=getattr(features[found["label"][0]], "names", None) if found["label"] else None,
        names=PathsOf(dataset[found["image"][0]]),
    )


def _warn_of_what_is_lacking(source: Source) -> None:
    """Warn of items without a text or a picture where others of the set have one."""
    for role, values in (("picture", source.images), ("text", source.texts)):
        lacking = getattr(values, "lacking", list)()
        if lacking and len(lacking) < len(source.images):
            name = source.names[lacking[0]] if source.names is not None else ""
            logger.warning(
                f"{len(lacking)} of {len(source.images)} items have no {role} and are used "
                f"without. The first is item {lacking[0]}, {name}. A role may name several "
                "columns, as in columns={'image': 'jpg;png'}."
            )


def _find_columns(features: Mapping[str, Any], role: str, named: Any) -> list[str]:
    if named is not None:
        there = [name for name in alternatives(named) if name in features]
        if not there:
            raise ValueError(
                f"columns={{{role!r}: {named!r}}} is absent: the data set has "
                f"{_described(features)}."
            )
        return there
    fitting = [name for name, feature in features.items() if _fits(feature, role)]
    for usual in USUAL_NAMES[role]:
        if usual in fitting:
            return [usual]
    if role == "image" and all(map(is_picture, fitting)):
        return fitting  # files of several kinds in tar shards
    if len(fitting) > 1:
        raise ValueError(
            f"the columns {fitting} could all be the {role}: choose with columns={{{role!r}: ...}}."
        )
    return fitting


def _fits(feature: Any, role: str) -> bool:
    import datasets

    if role == "image":
        # Parquet written without `datasets` holds an image as a struct of bytes and path.
        return isinstance(feature, datasets.Image) or (
            isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        )
    if role == "label":
        return isinstance(feature, datasets.ClassLabel)
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name!r} ({type(f).__name__})" for name, f in features.items()) or "nothing"
