# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Train a judge of the emoji world: what is where, how many, on which background, in which style.

It is trained on the training split alone, on pictures as they are and softened, as samples of a
model are; its accuracy on the test split bounds what the figures of a model can say::

    python examples/data/emoji_world.py --output_dir runs/emoji-64
    python examples/judge_emoji.py --dataset runs/emoji-64 --output_dir runs/emoji-judge

A second of another architecture, of whose faults the first knows nothing::

    python examples/judge_emoji.py --dataset runs/emoji-64 --architecture mixer \\
        --output_dir runs/emoji-judge-2

The same command without training, for one that is there: `--num_epochs 0`.

Axis legend: batch, channels, height, width, region, class.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train")

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from judge_emoji_network import (
    CONCEPT,
    REGION_OF,
    REGIONS,
    WHOLE_HEADS,
    WIDTHS,
    EmojiJudge,
    EmojiJudgeConfig,
)
from mdm_cli.places import require_place, require_writable
from modeling_mdm.data.archives import folder_of
from modeling_mdm.evaluation.judge import fit
from modeling_mdm.evaluation.judge_network import pictures_to_tensor, to_unit_range
from modeling_mdm.precision import describe_processor, use_bfloat16
from modeling_mdm.training.command_line import bf16_argument, read_command_line

FREQUENT = 300  # concepts
TOP = 5
COLUMNS = ("image", "layout", "style", "background", "objects")
ABSENT = -1  # in place of a concept that a picture has no second of, or that training has not
SOFTNESS = 0.5  # at which the test pictures are judged once more
# What is done with a picture in training: how often it is softened, how far it is shifted.
SOFTENED, SHIFT = 0.5, 1


@dataclass
class JudgeArguments:
    """Train a judge on the training split and measure it on the test split."""

    dataset: str = field(
        metadata={"help": "What examples/data/emoji_world.py makes: its folder, or its tar file."}
    )
    output_dir: str = field(metadata={"help": "Where the judge is written."})
    architecture: str = field(
        default="convolutional", metadata={"help": f"One of: {', '.join(WIDTHS)}."}
    )
    image_size: int = field(default=32, metadata={"help": "Side of the pictures that it reads."})
    num_epochs: int = field(
        default=6,
        metadata={"help": "Passes over the training split; 0 measures the judge in output_dir."},
    )
    batch_size: int = field(default=128, metadata={"help": "Pictures a step."})
    learning_rate: float = field(
        default=3e-3, metadata={"help": "Peak of the one-cycle learning rate (AdamW)."}
    )
    bf16: str = bf16_argument()
    limit: int | None = field(
        default=None, metadata={"help": "So many items of each split, spread over it."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and augmentation."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})

    def __post_init__(self) -> None:
        self.bf16 = use_bfloat16(self.bf16)
        for name, least in {"num_epochs": 0, "batch_size": 2, "limit": 1, "image_size": 8}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be >= {least}.")
        if self.architecture not in WIDTHS:
            raise ValueError(f"architecture={self.architecture!r} must be one of {[*WIDTHS]}.")


def place_of(row: Mapping[str, Any]) -> str:
    """Say how the things of a picture lie: one at a place, several of one, or two."""
    if row["layout"] in ("beside", "stacked"):
        return str(row["layout"])
    return "several" if row["layout"] == "count" else str(row["objects"][0]["place"])


def truth_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Name the class of each head of the whole picture."""
    return {
        "background": row["background"],
        "style": row["style"],
        "count": str(sum(thing["count"] for thing in row["objects"])),
        "place": place_of(row),
    }


def names_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """List the classes of each head; concepts by their frequency."""
    truths = [truth_of(row) for row in rows]
    names = {name: sorted({truth[name] for truth in truths}) for name in WHOLE_HEADS}
    counts = Counter(thing["concept"] for row in rows for thing in row["objects"])
    names[CONCEPT] = sorted(counts, key=lambda concept: (-counts[concept], concept))
    return names


@dataclass(frozen=True)
class Examples:
    """Pictures and what they show, as numbers of classes; `ABSENT` where there is none."""

    images: Tensor  # uint8 (batch, 3, height, width)
    whole: dict[str, Tensor]  # of each head (batch,)
    concepts: Tensor  # (batch, 2)
    regions: Tensor  # (batch, 2), where those are

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], config: EmojiJudgeConfig) -> Examples:
        """Turn rows of the set into tensors."""
        numbers = {
            head: {name: n for n, name in enumerate(own)} for head, own in config.names.items()
        }
        truths = [truth_of(row) for row in rows]
        whole = {
            head: torch.tensor([numbers[head].get(truth[head], ABSENT) for truth in truths])
            for head in WHOLE_HEADS
        }
        concepts = torch.full((len(rows), 2), ABSENT)
        regions = torch.zeros((len(rows), 2), dtype=torch.long)
        for n, row in enumerate(rows):
            for m, thing in enumerate(row["objects"]):
                concepts[n, m] = numbers[CONCEPT].get(thing["concept"], ABSENT)
                regions[n, m] = REGIONS.index(REGION_OF[thing["place"]])
        images = pictures_to_tensor([row["image"] for row in rows], config.features)
        return cls(images, whole, concepts, regions)

    def __getitem__(self, chosen: Any) -> Examples:
        """Return some of them."""
        whole = {head: own[chosen] for head, own in self.whole.items()}
        return Examples(self.images[chosen], whole, self.concepts[chosen], self.regions[chosen])

    def __len__(self) -> int:
        return len(self.images)


def read_rows(dataset: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    """Read a split with its truth; of a limited one, rows from all over it.

    Raises:
        FileNotFoundError: if there is no such set.
        ValueError: if it lacks a column, or the split.
    """
    import datasets

    place = folder_of(dataset)
    require_place("dataset", place)
    data = datasets.load_dataset(place, split=split)
    if missing := sorted(set(COLUMNS) - set(data.column_names)):
        raise ValueError(
            f"dataset={dataset!r} has no columns {missing}: make the set with "
            "examples/data/emoji_world.py."
        )
    count = min(limit or len(data), len(data))
    chosen = [number * len(data) // count for number in range(count)]
    return list(data.select_columns(list(COLUMNS)).select(chosen))


def loss_of(logits: Mapping[str, Tensor], truth: Examples) -> Tensor:
    """Sum the cross-entropies of all heads; concepts where they are."""
    total = logits[CONCEPT].new_zeros(())
    for head in WHOLE_HEADS:
        total = total + functional.cross_entropy(logits[head], truth.whole[head])
    is_there = truth.concepts != ABSENT  # (batch, 2)
    rows = torch.arange(len(truth))[:, None].expand(-1, 2)
    seen = logits[CONCEPT][rows[is_there], truth.regions[is_there]]  # (thing, class)
    return total + functional.cross_entropy(seen, truth.concepts[is_there])


def softened(images: Tensor, strength: Tensor) -> Tensor:
    """Blend pictures with their means over 3 x 3 pixels.

    Args:
        images: (batch, channels, height, width). strength: of each, in [0, 1].
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return torch.lerp(images, functional.avg_pool2d(padded, 3, 1), strength[:, None, None, None])


def augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """Soften some of a batch, each by a strength of its own, and shift the whole of it."""
    is_soft = torch.rand(len(images), generator=draw) < SOFTENED
    images = softened(images, is_soft * torch.rand(len(images), generator=draw))
    height, width = images.shape[-2:]
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,), generator=draw).tolist()
    padded = functional.pad(images, (SHIFT,) * 4, mode="replicate")
    return padded[..., down : down + height, right : right + width]


def train(judge: EmojiJudge, examples: Examples, chosen: JudgeArguments) -> None:
    """Train a judge in place, and leave it ready to look at pictures."""

    def shown(part: Tensor, draw: torch.Generator) -> Tensor:
        return augmented(to_unit_range(examples.images[part]), draw)

    def loss(logits: dict[str, Tensor], part: Tensor) -> Tensor:
        return loss_of({name: own.float() for name, own in logits.items()}, examples[part])

    fit(judge, len(examples), shown, loss, chosen)
    judge.eval()


def measure(judge: EmojiJudge, examples: Examples) -> dict[str, float | None]:
    """Return the share of right answers of each head; None where there is nothing to judge.

    Of concepts, each where it is, also the share that is among the judge's first `TOP`; over those
    that training has, and over the `FREQUENT` ones.
    """
    seen = judge.probabilities(examples.images)
    found = {head: _share(seen[head].argmax(-1) == examples.whole[head]) for head in WHOLE_HEADS}
    is_there = examples.concepts != ABSENT
    rows = torch.arange(len(examples))[:, None].expand(-1, 2)
    true = examples.concepts[is_there]
    of_things = seen[CONCEPT][rows[is_there], examples.regions[is_there]]  # (thing, class)
    most = of_things.topk(min(TOP, of_things.shape[-1])).indices
    is_right = most == true[:, None]  # (thing, place in the list)
    for name, chosen in (("", true >= 0), (f", {FREQUENT} most frequent", true < FREQUENT)):
        found[f"concept{name}"] = _share(is_right[chosen, 0])
        found[f"concept in top {TOP}{name}"] = _share(is_right[chosen].any(-1))
    return found


def _share(right: Tensor) -> float | None:
    return float(right.float().mean()) if len(right) else None


def soft_copy(examples: Examples) -> Examples:
    """Return the same pictures, softened as a model's may be."""
    images = examples.images.float()
    soft = softened(images, torch.full((len(images),), SOFTNESS))
    return replace(examples, images=soft.round().to(torch.uint8))


def parse(argv: Sequence[str]) -> tuple[JudgeArguments]:
    """Read the command line."""
    return read_command_line([JudgeArguments], argv, __doc__, prog="python examples/judge_emoji.py")


def make_judge(chosen: JudgeArguments) -> EmojiJudge:
    """Train a judge on the training split alone."""
    rows = read_rows(chosen.dataset, "train", chosen.limit)
    config = EmojiJudgeConfig(names_of(rows), chosen.image_size, chosen.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed)
        judge = EmojiJudge(config)
    examples, start = Examples.of(rows, config), time.perf_counter()
    del rows
    train(judge, examples, chosen)
    judge.description = {
        "num_train": len(examples),
        "training_seconds": round(time.perf_counter() - start, 1),
        "machine": {"processor": describe_processor(), "threads": torch.get_num_threads()},
        "arguments": asdict(chosen),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }
    return judge


def run(chosen: JudgeArguments) -> EmojiJudge:
    """Train a judge or read one, print its accuracy on the test split, save and return it."""
    require_writable("output_dir", chosen.output_dir)
    is_new = chosen.num_epochs > 0
    judge = make_judge(chosen) if is_new else EmojiJudge.from_pretrained(chosen.output_dir)
    test = Examples.of(read_rows(chosen.dataset, "test", chosen.limit), judge.config)
    plain, soft = measure(judge, test), measure(judge, soft_copy(test))
    if is_new:
        judge.description |= {"num_test": len(test), "test": plain, "test_softened": soft}
        judge.save_pretrained(chosen.output_dir)
    print(f"{len(test)} test pictures {'':>20} as they are  softened")
    for head, share in plain.items():
        print(f"{head:>42}  {_shown(share):>10}  {_shown(soft[head]):>8}")
    return judge


def _shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def main(argv: Sequence[str] | None = None) -> EmojiJudge:
    """Do what the command line says."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
