# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sets that `datasets` can read: their columns of pictures, texts and labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdm_cli.places import require_place
from modeling_mdm.data.archives import is_archive, unpacked
from modeling_mdm.data.known_sets import FASHION_MNIST_HELP, FASHION_MNIST_ID
from modeling_mdm.data.shards import alternatives, is_picture
from modeling_mdm.data.sources import Source, warn_of_what_is_lacking
from modeling_mdm.data.stream_sources import is_string

# Where several columns could serve, these names settle it.
USUAL_NAMES = {
    "image": ("image", "img", "picture"),
    "text": ("text", "caption", "captions"),
    "label": ("label", "labels"),
}


def read_columns(
    name_or_path: str,
    split: str,
    data_dir: str | None = None,
    columns: Mapping[str, str | list[str]] | None = None,
) -> Source:
    """Read a split of a folder or of the Hub, and find its columns by role.

    Args:
        columns: names by role; roles that are not named are found by feature type.

    Raises:
        FileNotFoundError: if there is no such set.
        ValueError: if a column is absent or ambiguous, or no role has one.
    """
    source = _source_of(_load(name_or_path, split, data_dir), dict(columns or {}))
    warn_of_what_is_lacking(source)
    return source


def _load(name_or_path: str, split: str, data_dir: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{name_or_path!r} needs `pip install datasets`.") from error
    data_files = None
    if is_archive(name_or_path):
        folder_of_it = unpacked(name_or_path)
        data_files = None if folder_of_it else name_or_path
        name_or_path = folder_of_it or "webdataset"
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

            rows = read_rows(name_or_path, data_dir, split, data_files)
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


def _source_of(dataset: Any, columns: dict[str, str | list[str]]) -> Source:
    """Find the image, text and label columns of a `datasets.Dataset` by their feature types."""
    import datasets

    if unknown := sorted(set(columns) - set(USUAL_NAMES)):
        raise ValueError(f"columns has the roles {unknown}: only {[*USUAL_NAMES]} exist.")
    from modeling_mdm.data.rows import AsStored, FirstOf, PathsOf, Rows

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
    labels, texts = [list(dataset[name]) for name in found["label"]], found["text"]
    return Source(
        images=FirstOf([AsStored(dataset[name]) for name in found["image"]]),
        texts=FirstOf([AsStored(dataset[name]) for name in texts]) if texts else None,
        labels=list(FirstOf(labels)) if labels else None,
        class_names=getattr(features[found["label"][0]], "names", None) if found["label"] else None,
        names=PathsOf(dataset[found["image"][0]]),
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
    # A list of strings, such as tags, is taken for captions where nothing else could be one.
    fitting = [name for name in fitting if not _is_list(features[name])] or fitting
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
    return is_string(feature.feature if _is_list(feature) else feature)


def _is_list(feature: Any) -> bool:
    import datasets

    return isinstance(feature, (datasets.List, datasets.LargeList))


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name!r} ({type(f).__name__})" for name, f in features.items()) or "nothing"
