# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What can be measured of a checkpoint of the emoji world: one row of `TASKS` for each task.

Beside each figure stand those of the judges on real pictures, and by chance.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emoji_figures import CATEGORIES, Eye, Verdict, Wanted, is_changed, kept_error, shares, verdict
from emoji_reader import CaptionReader, Claims, truth_of_things
from emoji_selection import selection_figures
from emoji_words import word_figures
from PIL import Image

from judge_emoji import FREQUENT
from judge_emoji_network import CONCEPT
from modeling_mdm.data.lengths import num_tokens
from modeling_mdm.data.questions import as_item, as_part
from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.evaluation.panel import as_seen
from modeling_mdm.evaluation.questions import answer_accuracy, before_answers
from modeling_mdm.evaluation.sampling import Sampling, batches, evaluating, generate, options_of
from modeling_mdm.evaluation.tables.caption_measures import caption_figures

NOUNS = 80  # the most frequent in scenes; GenEval's prompts have as many
KEPT = 0.05  # mean absolute difference, in [-1, 1], up to which what an edit leaves is kept
SHEET = 24  # samples
Figures = dict[str, Any]
Row = Mapping[str, Any]


@dataclass
class Bench:
    """What every task measures with.

    eyes: the judges, by name.
    """

    model: Any
    processor: Any
    eyes: Mapping[str, Eye]
    place: str
    sampling: Sampling
    num_samples: int
    samples_dir: str | None = None

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Rows of a split, without their pictures."""
        if split not in self._rows:
            data = self._data(split)
            names = [name for name in data.column_names if name != "image"]
            rows = list(data.select_columns(names))
            for number, row in enumerate(rows):
                row |= {"split": split, "number": number}
            self._rows[split] = rows
        return self._rows[split]

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    def _data(self, split: str) -> Any:
        import datasets

        return datasets.load_dataset(self.place, split=split)

    def pictures(self, rows: Sequence[Row]) -> list[Image.Image]:
        """The pictures of rows, as the model sees them."""
        splits = {split: self._data(split) for split in {row["split"] for row in rows}}
        return as_seen(
            self.processor, [splits[row["split"]][row["number"]]["image"] for row in rows]
        )

    @cached_property
    def side(self) -> int:
        """Pixels of a picture of the set each way, which boxes are in."""
        return int(self._data("test")[0]["image"].width)

    @cached_property
    def reader(self) -> CaptionReader:
        """Reads captions by what the training split names."""
        return CaptionReader(self.rows("train"))

    @property
    def frequent(self) -> set[str]:
        """The most frequent concepts of the training split."""
        return {*self.eyes["judge"].judge.config.names[CONCEPT][:FREQUENT]}

    def fits(self, text: str) -> bool:
        """Whether the model can read a text whole, with its `<end>`."""
        (count,) = num_tokens(self.processor, [text])
        return count <= self.processor.max_text_length

    def collect(
        self, name: str, count: int, write: Callable[[range, Figures], Sequence[Any]]
    ) -> list[Any]:
        """Have samples written, some at a time; keep a sheet of the first ones.

        Args:
            write: makes the samples of some numbers, with these options of `generate`.
        """
        samples: list[Any] = []
        options = options_of(self.sampling)
        with evaluating(self.model):
            for chosen in batches(count, self.sampling, name):
                samples += write(chosen, options)
        if self.samples_dir:
            folder = Path(self.samples_dir)
            folder.mkdir(parents=True, exist_ok=True)
            contact_sheet(samples[:SHEET], 8, 128).save(folder / f"{name.replace(' ', '_')}.png")
        return samples

    def make(
        self, name: str, count: int, inputs: Callable[[range], Mapping[str, Any]]
    ) -> list[Any]:
        """Collect samples of what the processor makes inputs of."""
        return self.collect(
            name,
            count,
            lambda chosen, options: generate(
                self.model, self.processor, inputs(chosen), [], **options
            ),
        )

    def draw(self, name: str, prompts: Sequence[str]) -> list[Image.Image]:
        """Draw prompts."""

        def inputs(chosen: range) -> dict[str, Any]:
            return {"text": [prompts[n] for n in chosen], "generation_mode": "image"}

        return [sample.image for sample in self.make(name, len(prompts), inputs)]

    def judged(
        self,
        pictures: Sequence[Image.Image],
        wanted: Sequence[Wanted],
        real: Sequence[Image.Image],
        look: Callable[[Any, Wanted], Verdict] = verdict,
    ) -> Figures:
        """What each judge sees in pictures, in real ones, and by chance: of another's wishes."""
        found: Figures = {}
        others = mixed(wanted)
        for name, eye in self.eyes.items():
            seen = eye.see(pictures)
            looks = {"made": (seen, wanted), "chance": (seen, others)}
            if real:
                looks["real"] = (eye.see(real), wanted)
            found[name] = {
                key: shares([look(one, wish) for one, wish in zip(*pair, strict=True)])
                for key, pair in looks.items()
            }
        return found


def mixed(rows: Sequence[Any]) -> list[Any]:
    """Rows in another order, always the same, for what is right by chance: neighbours are alike."""
    return random.Random(0).sample(rows, len(rows))


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Take so many rows from all over a list; where it has fewer, in turns."""
    if not rows:
        return []
    if count >= len(rows):
        return [rows[n % len(rows)] for n in range(count)]
    return [rows[n * len(rows) // count] for n in range(count)]


def frequent_singles(bench: Bench) -> tuple[list[Row], str]:
    """`num_samples` rows that show one thing, of the most frequent, and their split.

    The training split where the other has none, as of the 40 commonest things, each of which is
    trained in all of its styles.

    Raises:
        ValueError: neither has any.
    """
    for split in ("test", "train"):
        rows = [
            row
            for row in bench.rows(split)
            if row["layout"] == "single"
            and row["objects"][0]["concept"] in bench.frequent
            and bench.fits(row["text"])
        ]
        if rows:
            return spread(rows, bench.num_samples), split
    raise ValueError(f"dataset={bench.place} shows none of the judge's {FREQUENT} alone.")


def _text_to_image(bench: Bench) -> Figures:
    rows, split = frequent_singles(bench)
    return _drawn(bench, "text to image", rows) | {"rows": split}


def _held_out(bench: Bench) -> Figures:
    alone = [row for row in bench.rows("held_out") if row["layout"] == "single"]
    rows = [row for row in alone if bench.fits(row["text"])]  # rare names take many pieces
    found = _drawn(bench, "held out", spread(rows, bench.num_samples))
    return found | {"too long": len(alone) - len(rows)}


def _drawn(bench: Bench, name: str, rows: Sequence[Row]) -> Figures:
    made = bench.draw(name, [row["text"] for row in rows])
    return bench.judged(made, [*map(Wanted.of_row, rows)], bench.pictures(rows))


def _geneval(bench: Bench) -> Figures:
    """GenEval's six categories; rows of the test split, and of training where it has too few."""
    train, test = bench.rows("train"), bench.rows("test")
    counts = Counter(
        thing["concept"] for row in train if row["layout"] != "single" for thing in row["objects"]
    )
    nouns = {concept for concept, _ in counts.most_common(NOUNS)}
    own = [
        [row for row in rows if nouns.issuperset(thing["concept"] for thing in row["objects"])]
        for rows in (test, train)
    ]
    each = max(bench.num_samples // len(CATEGORIES), 2)
    found: Figures = {}
    for name, category in CATEGORIES.items():
        asked = [
            [
                (row, *wish)
                for row in rows
                if (wish := category.ask(row, bench.reader.read)) and bench.fits(wish[0])
            ]
            for rows in own
        ]
        few = len(asked[0]) < each
        some = spread(asked[0] + asked[1] if few else asked[0], each)
        if not some:
            continue
        rows, prompts, wanted = zip(*some, strict=True)

        def look(seen: Any, wish: Wanted, right: Any = category.is_right) -> Verdict:
            return {"right": right(seen, wish)}

        made = bench.draw(f"geneval {name}", prompts)
        found[name] = bench.judged(made, wanted, bench.pictures(rows), look)
        found[name]["rows"] = "test and train" if few else "test"
    return found


def said_of(claims: Claims | None, row: Row) -> Verdict:
    """Say which parts of a caption are true of a row; what it does not say is left out."""
    found: Verdict = {"well formed": claims is not None}
    if claims is None:
        return found
    for name in ("style", "background"):
        if (said := getattr(claims, name)) is not None:
            found[name] = said == row[name]
    found["names things"] = bool(claims.things)
    if claims.things:
        truth = truth_of_things(row)
        found["concept"] = claims.concepts == tuple(sorted(thing.concept for thing in truth))
        found["count"] = claims.count == sum(thing.count for thing in truth)
    return found


def _captioning(bench: Bench) -> Figures:
    rows = spread(bench.rows("test"), bench.num_samples)
    pictures = bench.pictures(rows)

    def inputs(chosen: range) -> dict[str, Any]:
        return {"images": [pictures[n] for n in chosen], "generation_mode": "text"}

    samples = bench.make("captioning", len(rows), inputs)
    texts = [sample.text for sample in samples]
    claims = [bench.reader.read(text) for text in texts]
    people = {n: row["captions"] for n, row in enumerate(rows)}
    measured = caption_figures(dict(enumerate(texts)), people)
    return {
        "made": shares([*map(said_of, claims, rows)]),
        "chance": shares([*map(said_of, claims, mixed(rows))]),
        "cider_d": vars(measured.cider) | {"tokenizer": measured.tokenizer},
        "first": texts[:SHEET],
    }


def _joint(bench: Bench) -> Figures:
    found: Figures = {}
    count = bench.num_samples

    def write(chosen: range, options: Figures) -> list[Any]:
        own = {**options, "num_return_sequences": len(chosen)}
        return generate(bench.model, bench.processor, {"generation_mode": "joint"}, [], **own)

    samples = bench.collect("joint", count, write)
    found["from nothing"] = _agreeing(bench, samples)
    rows = spread(bench.rows("test"), count)
    found["from half a caption"] = _agreeing(bench, _continued(bench, rows))
    return found


def _continued(bench: Bench, rows: Sequence[Row]) -> list[Any]:
    """Give the first half of each caption's words, and let the rest be written with a picture."""
    captions = [row["text"].split() for row in rows]
    starts = [" ".join(words[: len(words) // 2]) for words in captions]

    def inputs(chosen: range) -> dict[str, Any]:
        said = [starts[n] for n in chosen]
        return {"text": said, "generation_mode": "joint", "continue_text": True}

    return bench.make("joint from half a caption", len(rows), inputs)


def _agreeing(bench: Bench, samples: Sequence[Any]) -> Figures:
    claims = [bench.reader.read(sample.text) for sample in samples]
    readable = [n for n, one in enumerate(claims) if one is not None]
    known = [bench.reader.has_known_words(sample.text) for sample in samples]
    pictures = [samples[n].image for n in readable]
    wanted = [Wanted.of_claims(claims[n]) for n in readable]
    said = [one.text for one in samples]
    return {
        "well formed": len(readable) / len(samples),
        "known words": sum(known) / len(samples),
        "distinct captions": len({*said}) / len(samples),
        "in training": sum(text in bench.reader.captions for text in said) / len(samples),
        **(bench.judged(pictures, wanted, []) if readable else {}),
        "first": said[:SHEET],
    }


def _questions(bench: Bench) -> Figures:
    asked = [(row, own) for row in bench.rows("test") for own in row["questions"]]
    by_kind: dict[str, list[Any]] = {}
    for row, own in asked:
        by_kind.setdefault(own["kind"], []).append((row, own))
    each = max(bench.num_samples // len(by_kind), 1)
    some = [pair for kind in sorted(by_kind) for pair in spread(by_kind[kind], each)]
    pictures = bench.pictures([row for row, _ in some])
    items = [
        as_item(own["kind"], [picture], own["question"], own["answer"])
        for picture, (_, own) in zip(pictures, some, strict=True)
    ]
    options = {"num_inference_steps": bench.sampling.num_inference_steps, **bench.sampling.options}
    right = answer_accuracy(
        *(
            bench.model,
            bench.processor,
            items,
            None,
            bench.sampling.batch_size,
            bench.sampling.seed,
        ),
        **options,
    )
    usual = {kind: Counter(own["answer"] for _, own in pairs) for kind, pairs in by_kind.items()}
    chance = {kind: max(own.values()) / own.total() for kind, own in usual.items()}
    return {"right": right, "chance": chance, "of each kind": each}


def _edits(bench: Bench) -> Figures:
    """Ask for changes; a judge says whether they are seen, pixels whether the rest is kept."""
    import datasets

    by_id = {row["id"]: row for row in bench.rows("test")}
    pairs = datasets.load_dataset(str(Path(bench.place) / "edits"), split="test")
    some = spread(list(pairs), bench.num_samples)
    given, truth = ([by_id[edit[key]] for edit in some] for key in ("given", "edited"))
    shown, true = bench.pictures(given), bench.pictures(truth)

    def write(chosen: range, options: Figures) -> list[_Captioned]:
        items = [
            as_item(some[n]["kind"], [shown[n]], some[n]["request"], [as_part(true[n])])
            for n in chosen
        ]
        inputs = before_answers(bench.processor, items, bench.model.device, generation_mode="image")
        out = bench.model.generate(**inputs, **options)
        samples = bench.processor.post_process(out, inputs)
        return [
            _Captioned(sample.image, some[n]["request"])
            for sample, n in zip(samples, chosen, strict=True)
        ]

    made = [sample.image for sample in bench.collect("edits", len(some), write)]
    kept = [kept_error(*three) <= KEPT for three in zip(made, shown, true, strict=True)]
    found: Figures = {"kept": sum(kept) / len(kept)}
    for name, eye in bench.eyes.items():
        for key, pictures, is_kept in (("made", made, kept), ("real", true, [True] * len(kept))):
            seen = [
                is_changed(one, before, after)
                for one, before, after in zip(eye.see(pictures), given, truth, strict=True)
            ]
            verdicts: list[Verdict] = []
            for edit, changed, own in zip(some, seen, is_kept, strict=True):
                both = changed and own
                verdicts.append({"changed": changed, "both": both, f"both, {edit['kind']}": both})
            found.setdefault(name, {})[key] = shares(verdicts)
    return found


@dataclass(frozen=True)
class _Captioned:
    image: Image.Image
    text: str


def _selection(bench: Bench) -> Figures:
    """Whether what scans read of a scene lies on its things."""
    scenes = [row for row in bench.rows("test") if row["layout"] != "single"]
    rows = spread(scenes, bench.num_samples)
    side = bench.side
    with evaluating(bench.model):
        return selection_figures(
            *(bench.model, bench.processor, rows, bench.pictures(rows), side),
            *(bench.sampling.batch_size, bench.sampling.seed),
        )


def _words(bench: Bench) -> Figures:
    """How much of the error the right name takes away, noise by noise."""
    rows, split = frequent_singles(bench)
    with evaluating(bench.model):
        found = word_figures(
            *(bench.model, bench.processor, rows, bench.pictures(rows)),
            *(bench.sampling.batch_size, bench.sampling.seed),
        )
    return found | {"rows": split}


TASKS: Mapping[str, Callable[[Bench], Figures]] = {
    "text_to_image": _text_to_image,
    "geneval": _geneval,
    "captioning": _captioning,
    "joint": _joint,
    "questions": _questions,
    "edits": _edits,
    "held_out": _held_out,
    "selection": _selection,
    "words": _words,
}
