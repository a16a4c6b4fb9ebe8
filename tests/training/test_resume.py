# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that was cut off goes on with the batch that is due, at any step of any pass."""

import json
from itertools import islice

import datasets
import pytest
import torch
from tiny_digits import make_config, make_processor
from transformers import TrainerCallback

from modeling_mdm.data.blocks import MixedItems
from modeling_mdm.data.streams import MixedStream, StreamSource
from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.passes import EndlessStream
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def text(number):
    return f"{WORDS[number // 10]} {WORDS[number % 10]}"


TEXTS = [text(number) for number in range(20)]
OTHERS = [text(number) for number in range(20, 27)]


class Plain(torch.utils.data.IterableDataset):
    """A stream that knows nothing of states or epochs."""

    def __iter__(self):
        yield from ({"text": text, "image": None} for text in TEXTS)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` waits ten seconds after every pass over Parquet, for Arrow's threads at exit."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, texts in (("many", TEXTS), ("few", OTHERS)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
    return folder


def source(folder, name, weight=1.0):
    files = {"train": str(folder / f"{name}.jsonl")}
    return StreamSource("json", weight, {"text": "text"}, data_files=files)


DATA = {
    "stream": lambda folder: MixedStream([source(folder, "many")]),
    "bucketed": lambda folder: MixedStream([source(folder, "many")], batch_size=4, buckets=2),
    "mixture": lambda folder: MixedStream(
        [source(folder, "many"), source(folder, "few", 2.0)], batch_size=4, buckets=2
    ),
    "plain": lambda folder: Plain(),
    "datasets": lambda folder: (
        datasets.Dataset.from_dict({"text": TEXTS})
        .to_iterable_dataset()
        .shuffle(seed=0, buffer_size=5)
    ),
    "set": lambda folder: datasets.Dataset.from_dict({"text": TEXTS[:18]}),
    "parts": lambda folder: MixedItems(
        [datasets.Dataset.from_dict({"text": texts}) for texts in (TEXTS, OTHERS)], [2, 1]
    ),
}


class SaveAt(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


class Recorder(MDMTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        words = self.processing_class.tokenizer.batch_decode(
            inputs["input_ids"], skip_special_tokens=True
        )
        self.seen.setdefault(self.state.global_step, []).extend(words)
        return super().training_step(model, inputs, *args, **kwargs)


def train(output_dir, processor, data, steps, resume=None, save_at=(), **arguments):
    torch.manual_seed(0)
    trainer = Recorder(
        MDMForJointGeneration(make_config(len(processor.tokenizer))),
        MDMTrainingArguments(
            output_dir=str(output_dir),
            max_steps=steps,
            save_strategy="no",
            logging_steps=1,
            learning_rate=1e-2,
            ema_decay=0,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **{"per_device_train_batch_size": 4, **arguments},
        ),
        train_dataset=data,
        data_collator=MDMDataCollator(processor, TaskMixture({"text": 1.0, "infill": 1.0}), 0),
        processing_class=processor,
    )
    trainer.seen = {}
    trainer.add_callback(SaveAt(save_at))
    trainer.train(resume)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return trainer, {log["step"]: (log["loss"], log["epoch"]) for log in logs}


def check(tmp_path, processor, make, steps, places, **arguments):
    """Compare runs that go on at `places` with one that was never cut off; return its batches."""
    whole, course = train(tmp_path / "whole", processor, make(), steps, save_at=places, **arguments)
    for place in places:
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{place}")
        part, found = train(tmp_path / "cut", processor, make(), steps, checkpoint, **arguments)
        assert part.seen == {n: whole.seen[n] for n in range(place, steps)}, place
        assert found == course
        for one, other in zip(whole.model.parameters(), part.model.parameters(), strict=True):
            assert torch.equal(one, other), place
    return whole.seen


def test_the_item_that_is_due_in_the_second_pass(processor, folder, tmp_path):
    seen = check(tmp_path, processor, lambda: DATA["stream"](folder), 9, [7])
    assert [seen[n] for n in range(5)] == [TEXTS[4 * n : 4 * n + 4] for n in range(5)]
    assert seen[7] == TEXTS[8:12]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind, marks=[] if kind in ("mixture", "datasets", "parts") else pytest.mark.slow
        )
        for kind in DATA
    ],
)
def test_a_run_goes_on_with_equal_batches_and_weights(kind, processor, folder, tmp_path):
    check(
        tmp_path, processor, lambda: DATA[kind](folder), 10, (2, 8) if kind == "mixture" else (8,)
    )


@pytest.mark.parametrize("kind", [pytest.param("mixture", marks=pytest.mark.slow), "set"])
def test_a_run_that_accumulates_gradients_goes_on(kind, processor, folder, tmp_path):
    arguments = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    check(tmp_path, processor, lambda: DATA[kind](folder), 8, (3, 5), **arguments)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("mixture", 1),
        pytest.param("plain", 1, marks=pytest.mark.slow),
        pytest.param("set", 2, marks=pytest.mark.slow),
        pytest.param("parts", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_workers_goes_on(kind, workers, processor, folder, tmp_path):
    arguments = {"dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
    check(tmp_path, processor, lambda: DATA[kind](folder), 6, (4,), **arguments)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", DATA)
def test_a_run_goes_on_from_every_step(kind, processor, folder, tmp_path):
    check(tmp_path, processor, lambda: DATA[kind](folder), 14, range(1, 14))


def test_a_batch_is_of_one_part_whoever_loads_it(processor, folder, tmp_path):
    seen, items = [], DATA["parts"](folder)
    for workers in (0, 1):
        trainer, _ = train(
            tmp_path / str(workers), processor, items, 10, dataloader_num_workers=workers
        )
        seen.append(trainer.seen)
    assert seen[0] == seen[1]
    parts = ["few" if set(texts) <= set(OTHERS) else "many" for texts in seen[0].values()]
    assert all(set(texts) <= set(OTHERS) or set(texts) <= set(TEXTS) for texts in seen[0].values())
    assert 2 <= parts.count("few") <= 4  # a pass has five batches of one and two of the other


def test_a_long_stream_is_not_read_again_from_its_beginning(folder, tmp_path, processor):
    opened = []

    class Counting(MixedStream):
        def _read(self, row, place):
            opened.append(place)
            return super()._read(row, place)

    def make():
        return Counting([source(folder, "many")])

    train(tmp_path, processor, make(), 10, save_at=(9,))  # 36 items: 16 of the second pass
    opened.clear()
    train(tmp_path, processor, make(), 10, str(tmp_path / "checkpoint-9"))
    assert opened[0] >= 11 and len(opened) <= 16


def test_a_run_goes_on_with_batches_of_another_size(folder, tmp_path, processor):
    train(tmp_path, processor, DATA["stream"](folder), 5, save_at=(4,))
    changed = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    checkpoint = str(tmp_path / "checkpoint-4")
    trainer, _ = train(tmp_path, processor, DATA["stream"](folder), 5, checkpoint, **changed)
    assert trainer.seen == {4: [*TEXTS[16:], *TEXTS[:2]]}


def test_counts_go_on_from_the_end_of_a_pass(folder, tmp_path, processor):
    text = (folder / "many.jsonl").read_text().splitlines()
    (tmp_path / "damaged.jsonl").write_text("\n".join([*text, "{"]))

    def make():
        return MixedStream([source(tmp_path, "damaged")])

    whole, _ = train(tmp_path, processor, make(), 12, save_at=(10,))
    part, _ = train(tmp_path, processor, make(), 12, str(tmp_path / "checkpoint-10"))
    assert part.seen == {n: whole.seen[n] for n in (10, 11)}
    counts = [t.train_dataset.skipped["json"] for t in (whole, part)]
    assert counts == [2, 2]


def test_workers_without_a_shard_are_idle():
    data = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    loader = torch.utils.data.DataLoader(EndlessStream(data), batch_size=4, num_workers=2)
    seen = [text for batch in islice(iter(loader), 7) for text in batch["text"]]
    assert seen == [*TEXTS, *TEXTS[:8]]


def test_the_second_run_of_a_trainer_begins_at_the_first_item(folder, tmp_path, processor):
    trainer, _ = train(tmp_path, processor, DATA["stream"](folder), 3)
    first = dict(trainer.seen)
    trainer.seen.clear()
    trainer.train()
    assert trainer.seen == first


def test_streams_without_items_and_after_each_epoch_are_refused(folder, tmp_path, processor):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no item that can be read"):
        train(tmp_path, processor, MixedStream([source(tmp_path, "empty")]), 3)
    with pytest.raises(ValueError, match="logging_strategy='epoch'"):
        train(tmp_path, processor, DATA["stream"](folder), 3, logging_strategy="epoch")
