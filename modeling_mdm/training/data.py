# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures with captions, labels or both, one item at a time.

Axis legend: item, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps

from modeling_mdm.image_processing_pil_mdm import read_picture, set_channels, upright
from modeling_mdm.training.captions import CaptionTable
from modeling_mdm.training.idx import read_idx

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
    None, as may single values of them; `class_names` is known for some labelled sets.
    """

    images: Sequence[Any] | np.ndarray
    texts: Sequence[str | None] | None = None
    labels: Sequence[int | None] | np.ndarray | None = None
    class_names: Sequence[str] | None = None


class PictureDataset(torch.utils.data.Dataset[Item]):
    """Pictures whose captions are drawn afresh in every epoch.

    What item `index` is depends on (seed, epoch, index) alone, never on the order of access, so a
    run that was cut off and resumed sees the same captions and the same augmentation.

    Args:
        source: the pictures with their texts, labels or both.
        captions: the table from which a labelled picture without a text of its own gets one.
        seed: seed of captions and augmentation, >= 0.
        augment: flip half of the pictures left to right and shift each by up to one pixel.
        limit: use the first `limit` items only.

    Raises:
        ValueError: if seed is negative, limit is below 1, or a label has no row in captions.
    """

    def __init__(
        self,
        source: Source,
        captions: CaptionTable | None = None,
        seed: int = 0,
        augment: bool = False,
        limit: int | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} must be >= 1, or None for all items.")
        self.source = source
        self.captions = captions
        self.seed = seed
        self.augment = augment
        self._length = min(len(source.images), limit or len(source.images))
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

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        index = int(index)
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} items.")
        index %= self._length
        image = self.source.images[index]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif image is not None:
            image = upright(image)
        if self.augment:
            image = flip_and_shift(image, self._rng(index, AUGMENT_STREAM))
        labels, texts = self.source.labels, self.source.texts
        label = None if labels is None else _label_or_none(labels[index])
        text = None if texts is None else texts[index]
        if text is None and label is not None and self.captions is not None:
            text = self.captions.draw(label, self._rng(index, CAPTION_STREAM))
        return {"image": image, "text": text, "label": label}

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
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    augment: bool = False,
    limit: int | None = None,
) -> PictureDataset:
    """Load one split of a data set of pictures with texts, labels or both.

    Args:
        name_or_path: `"digits"` (scikit-learn, 8 x 8), `"fashion_mnist"`, a folder that `datasets`
            can read (pictures with metadata.jsonl or in one folder a class, Parquet,
            `save_to_disk`), or the id of a data set on the Hub.
        split: `"train"`, `"test"` or, for `datasets`, any split or slice.
        data_dir: for `"fashion_mnist"`, the folder with its four IDX files; None takes the Hub's.
            For other names, `datasets`' argument of that name.
        captions: table (or the path of one) for labelled pictures without a text. None makes one
            from the set's own class names.
        columns: `datasets` columns by role, for example `{"image": "scan", "text": "title"}`. Roles
            that are not named are found by feature type.
        seed: seed of captions and augmentation.
        augment: see `PictureDataset`.
        limit: use the first `limit` items only.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if a file is damaged, a column is absent or ambiguous, or an argument is wrong.
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
    if isinstance(captions, (str, Path)):
        captions = CaptionTable.from_json(captions)
    if captions is None and source.class_names is not None:
        captions = CaptionTable.from_names(source.class_names)
    return PictureDataset(source, captions, seed=seed, augment=augment, limit=limit)


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
    folder = Path(name_or_path)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name_or_path)
        # A set saved alone remembers the split that it was; one made in memory counts as "train".
        splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if split not in splits:
            raise ValueError(f"split={split!r} is not in {name_or_path!r}: use one of {[*splits]}.")
        return splits[split]
    try:
        return datasets.load_dataset(name_or_path, data_dir=data_dir, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        hint = (
            f"{FASHION_MNIST_HELP} Give data_dir where the Hub cannot be reached."
            if name_or_path == FASHION_MNIST_ID
            else "Give 'digits', 'fashion_mnist', a folder, or the id of a set on the Hub."
        )
        raise FileNotFoundError(f"name_or_path={name_or_path!r}: {error} {hint}") from error
    except ValueError as error:
        raise ValueError(f"name_or_path={name_or_path!r}, split={split!r}: {error}") from error


def _source_from_columns(dataset: Any, columns: dict[str, str]) -> Source:
    """Find the image, text and label columns of a `datasets.Dataset` by their feature types."""
    import datasets

    if unknown := sorted(set(columns) - set(USUAL_NAMES)):
        raise ValueError(f"columns has the roles {unknown}: only {[*USUAL_NAMES]} exist.")
    features = dataset.features
    image_column = _find_column(features, "image", columns.get("image"))
    text_column = _find_column(features, "text", columns.get("text"))
    label_column = _find_column(features, "label", columns.get("label"))
    if image_column is None:
        raise ValueError(
            f"no column holds images, among {_described(features)}: name one with "
            "columns={'image': ...}."
        )
    if text_column is None and label_column is None:
        raise ValueError(
            f"no column holds a text or a label, among {_described(features)}: name one with "
            "columns={'text': ...} or columns={'label': ...}."
        )
    if not isinstance(features[image_column], datasets.Image):
        dataset = dataset.cast_column(image_column, datasets.Image())
    label_feature = features[label_column] if label_column is not None else None
    return Source(
        images=dataset[image_column],
        texts=dataset[text_column] if text_column is not None else None,
        labels=list(dataset[label_column]) if label_column is not None else None,
        class_names=getattr(label_feature, "names", None),
    )


def _find_column(features: Mapping[str, Any], role: str, named: str | None) -> str | None:
    if named is not None:
        if named not in features:
            raise ValueError(
                f"columns={{{role!r}: {named!r}}} is absent: the data set has "
                f"{_described(features)}."
            )
        return named
    fitting = [name for name, feature in features.items() if _fits(feature, role)]
    for usual in USUAL_NAMES[role]:
        if usual in fitting:
            return usual
    if len(fitting) > 1:
        raise ValueError(
            f"the columns {fitting} could all be the {role}: choose with columns={{{role!r}: ...}}."
        )
    return fitting[0] if fitting else None


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
