# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Logged losses are means over positions: the same in batches of any size.

In several processes too: see test_distributed.py.
"""

import copy

import peft
import pytest
import torch
from distributed_run import LackingCollator
from tiny_digits import CAPTIONS, MAX_TEXT_LENGTH, make_config, make_processor
from tiny_model import every_random_source, make_model, mixed_batch

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.tasks import MDMDataCollator, SeededItems, TaskMixture
from modeling_mdm.draws import ItemKeys
from modeling_mdm.loss import MEANS, Tallies, combine_tallies
from modeling_mdm.training.item_keys import ITEMS, WithItemSeeds
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments, RunningSum

# peft asks the model by transformers' old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

PARTS = (
    *("loss", "loss_se_image", "loss_se_text", "loss_rec_image", "loss_rec_text", "loss_kl"),
    "loss_mode",
)
LACKING = {1: "text", 2: "image", 5: "image", 8: "text"}  # what some of nine items have not


class NoisyCollator(LackingCollator):
    """Adds noise that is an item's own at any step."""

    def __call__(self, items):
        batch = super().__call__(items)
        draws = [torch.Generator().manual_seed(item["seed"] % 2**62) for item in items]
        lengths = {"text": MAX_TEXT_LENGTH, "image": 4}

        def normal():
            return {
                g: torch.stack([torch.randn(n, 4, generator=draw) for draw in draws])
                for g, n in lengths.items()
            }

        batch |= {name: normal() for name in ("noise", "posterior_noise", "decoder_noise")}
        batch["times"] = {
            g: torch.cat([torch.rand(1, generator=draw) for draw in draws]) for g in lengths
        }
        batch["drop_prompt"] = torch.cat([torch.rand(1, generator=d) < 0.2 for d in draws])
        return batch | {"keep": 1.0, "self_condition": False}


class Nine(torch.utils.data.Dataset):
    """Digits with captions, some without a picture or without words."""

    def __init__(self, lacking=None):
        self.items = load_training_data("digits", captions=CAPTIONS, limit=9)
        self.lacking = lacking or {}

    def __len__(self):
        return 9

    def __getitem__(self, index):
        item = dict(self.items[index])
        if absent := self.lacking.get(index):
            item[absent] = None
        return {name: item[name] for name in ("text", "image", "label")}


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    config = make_config(len(processor.tokenizer)).to_dict() | {"use_mode_head": True}
    model = MDMForJointGeneration(MDMConfig(**config))
    with torch.no_grad():
        for statistics in model.vae.statistics.values():
            statistics.variance.uniform_(0.2, 0.5)
        model.image_head.weight.normal_(std=0.3)
    return model


def make_trainer(model, processor, folder, collator=MDMDataCollator, lacking=None, **arguments):
    values = {"use_cpu": True, "num_samples": 0, "disable_tqdm": True, "report_to": "none"}
    values |= {"ema_decay": 0, "sample_seed": 3, "save_strategy": "no"}
    args = MDMTrainingArguments(output_dir=str(folder), **{**values, **arguments})
    mixture = TaskMixture({"joint": 1, "text_to_image": 1, "captioning": 1, "image": 1, "text": 1})
    return MDMTrainer(
        model,
        args,
        train_dataset=Nine(lacking),
        eval_dataset=Nine(lacking),
        data_collator=collator(processor, mixture),
        processing_class=processor,
    )


def evaluated(trainer):
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}"] for name in PARTS}


@pytest.mark.parametrize("lacking", [None, LACKING], ids=["whole", "lacking"])
def test_evaluation_is_the_same_at_any_batch_size(model, processor, lacking, tmp_path):
    found = {}
    for size in (1, 2, 3, 4, 8, 9):
        arguments = {"per_device_eval_batch_size": size, "lacking": lacking}
        found[size] = evaluated(make_trainer(model, processor, tmp_path, **arguments))
    assert all(value > 0 for value in found[9].values())
    for size, metrics in found.items():
        assert metrics == pytest.approx(found[9], rel=1e-5), size


@pytest.mark.parametrize("lacking", [None, LACKING], ids=["whole", "lacking"])
def test_evaluation_is_the_loss_of_the_whole_set_in_one_batch(model, processor, lacking, tmp_path):
    trainer = make_trainer(
        model, processor, tmp_path, lacking=lacking, per_device_eval_batch_size=2
    )
    metrics = evaluated(trainer)
    items = [trainer.eval_dataset[index] for index in range(9)]
    batch = WithItemSeeds(trainer.data_collator)(items)
    keys = ItemKeys(3, 0, batch.pop(ITEMS))
    with torch.no_grad():
        out = model.eval()(**batch, item_keys=keys)
    for name, value in metrics.items():
        assert value == pytest.approx(out[name].item(), rel=1e-5), name


def test_other_seeds_and_sets_are_evaluated_with_other_noise(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    first = evaluated(trainer)
    assert evaluated(trainer) == first
    again = trainer.evaluate(Nine())  # not wrapped by the trainer's own making
    assert again["eval_loss"] == pytest.approx(first["loss"], rel=1e-6)
    other = evaluated(make_trainer(model, processor, tmp_path, sample_seed=4))
    assert other["loss_se_image"] != first["loss_se_image"]


@pytest.mark.parametrize("workers", [0, 2])
def test_several_sets_under_names(model, processor, workers, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, dataloader_num_workers=workers)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": SeededItems(Nine(LACKING), 42)}
    metrics = trainer.evaluate()
    whole = evaluated(make_trainer(model, processor, tmp_path))
    part = evaluated(make_trainer(model, processor, tmp_path, lacking=LACKING))
    for name in PARTS:
        assert metrics[f"eval_a_{name}"] == pytest.approx(whole[name], rel=1e-6)
        assert metrics[f"eval_b_{name}"] == pytest.approx(part[name], rel=1e-6)


def test_logged_parts_of_training_are_the_same_at_any_batch_size(processor, tmp_path):
    """An epoch in which nothing moves: the noise is each item's own, the rate 0."""
    logs = {}
    for size, steps in ((1, 9), (3, 3), (9, 1), (2, 3)):
        torch.manual_seed(0)
        model = MDMForJointGeneration(make_config(len(processor.tokenizer)))
        model.vae.requires_grad_(False)
        trainer = make_trainer(
            model,
            processor,
            tmp_path,
            NoisyCollator,
            LACKING,
            learning_rate=0.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2 if size == 2 else 1,
            max_steps=steps,
            logging_steps=steps,
        )
        trainer.train()
        (log,) = [log for log in trainer.state.log_history if "loss" in log]
        logs[size] = {name: log[name] for name in PARTS if name in log and name != "loss"}
    assert len(logs[9]) == 5 and all(value > 0 for value in logs[9].values())
    for size, parts in logs.items():
        assert parts == pytest.approx(logs[9], rel=1e-5), size


def test_an_adapter_is_evaluated_alike(model, processor, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["in_proj"])
    tuned = peft.get_peft_model(copy.deepcopy(model), config)
    found = [
        evaluated(make_trainer(tuned, processor, tmp_path, per_device_eval_batch_size=size))
        for size in (2, 9)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(evaluated(make_trainer(model, processor, tmp_path)), rel=1e-5)


# --- what is summed


@pytest.mark.parametrize("rows", [[[0, 1, 2], [3, 4, 5, 6, 7]], [[3], [4], [0, 1, 2, 5, 6, 7]]])
def test_tallies_of_parts_combine_to_the_losses_of_the_whole(rows):
    model = make_model(use_mode_head=True)
    batch, draws = mixed_batch(), every_random_source(8)
    whole, total = model(**batch, **draws), RunningSum()
    for part in rows:
        cut = {
            name: {g: value[part] for g, value in values.items()}
            if isinstance(values, dict)
            else values[part]
            if isinstance(values, torch.Tensor)
            else values
            for name, values in {**batch, **draws}.items()
        }
        total.add(model(**cut).tallies)
    combined = combine_tallies(model.config, total.pop())
    names = {name for name in whole if name.startswith("loss")}
    assert combined.keys() == names and len(names) == 9
    for name, value in combined.items():
        assert value.item() == pytest.approx(whole[name].item(), rel=1e-5), name
    assert total.pop() is None


def test_tallies_are_sums_and_counts_of_every_item():
    tallies = Tallies(torch.zeros(2, 3, 4))
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, float("nan"), 16.0]])
    tallies.add("loss_kl_text", values, torch.tensor([[True, False, True], [True, False, False]]))
    tallies.add("loss_mode", values[:, 0], torch.tensor([False, True]))
    expected = torch.zeros(2, len(MEANS), 2)
    expected[:, MEANS.index("loss_kl_text")] = torch.tensor([[5.0, 2.0], [8.0, 1.0]])
    expected[:, MEANS.index("loss_mode")] = torch.tensor([[0.0, 0.0], [8.0, 1.0]])
    assert torch.equal(tallies.values, expected)
    losses = combine_tallies(make_model().config, expected.sum(0))
    assert losses["loss_kl"] == 13 / 3 and losses["loss_rec_text"] == 0
    assert "loss_mode" not in losses  # of a model without that head


def test_a_batch_names_seeds_only_where_all_items_have_one():
    collate = WithItemSeeds(lambda items: {"x": torch.zeros(len(items))})
    assert collate([{"seed": 2**64 - 1}, {"seed": 4}])[ITEMS].tolist() == [2**63 - 1, 4]
    assert ITEMS not in collate([{"seed": 3}, {"x": 1}])
    assert ITEMS not in collate([1, 2])
