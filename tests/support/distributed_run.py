# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny digits model in as many processes as a launcher starts, and reports.

    python distributed_run.py FOLDER RUNS [PROCESSES]

Without a launcher it starts two itself, or so many, which share what is imported: that takes longer
than to train.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch
from tiny_digits import CAPTIONS, make_config

from modeling_mdm.data.blocks import MixedItems
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments

PATCHES = 4
LATENT = 4


class LackingCollator(MDMDataCollator):
    """Leaves out a modality that no item of a batch has."""

    def __call__(self, items):
        batch = super().__call__(items)
        for mask, inputs in (
            ("attention_mask", ("input_ids", "attention_mask", "text_given")),
            ("pixel_attention_mask", ("pixel_values", "pixel_attention_mask", "image_given")),
        ):
            if mask in batch and not batch[mask].any():
                batch = {name: value for name, value in batch.items() if name not in inputs}
        return batch


class CountingModel(MDMForJointGeneration):
    """Counts the batches that lacked a modality."""

    lacking = 0

    def forward(self, *args, return_loss=True, **kwargs):
        CountingModel.lacking += ("input_ids" in kwargs) + ("pixel_values" in kwargs) < 2
        return super().forward(*args, return_loss=return_loss, **kwargs)


def evaluate(trainer, collator):
    """Losses of the new model on nine items, with the noise that the trainer draws."""
    usual, trainer.data_collator = trainer.data_collator, collator
    metrics = trainer.evaluate()
    trainer.data_collator = usual
    return {name: value for name, value in metrics.items() if "loss" in name}


class Stream(torch.utils.data.IterableDataset):
    """Items of a set, in order."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        yield from (self.items[index] for index in range(len(self.items)))


def make_trainer(
    folder,
    tasks,
    limit=48,
    streamed=False,
    parts=None,
    source="digits",
    heads=2,
    **arguments,
):
    """A trainer of the tiny model; with `parts`, on as many shares of two sets."""
    processor = MDMProcessor.from_pretrained(Path(folder).parent / "processor")
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "logging_steps": 1,
        "save_steps": 2,
        "num_samples": 0,
        "disable_tqdm": True,
        "report_to": "none",
        "seed": 3,
    }
    args = MDMTrainingArguments(**{**values, **arguments})
    torch.manual_seed(0)
    config = make_config(len(processor.tokenizer))
    config.head_dim = config.inner_size // heads
    model = CountingModel(config)
    captions = CAPTIONS if source == "digits" else None
    data = load_training_data(source, captions=captions, limit=limit)
    if parts is not None:
        data = MixedItems([data, load_training_data("digits", captions=CAPTIONS)], parts)
    return MDMTrainer(
        model,
        args,
        train_dataset=Stream(data) if streamed else data,
        eval_dataset=load_training_data("digits", captions=CAPTIONS, limit=9),
        data_collator=LackingCollator(processor, TaskMixture(tasks)),
        processing_class=processor,
    )


def report_of(trainer):
    """What there is to compare of a run that is at its end."""
    history = [h for h in trainer.state.log_history if "loss" in h]
    lacking = torch.tensor([CountingModel.lacking])
    return {
        "processes": trainer.args.world_size,
        "lacking": trainer.accelerator.gather(lacking).tolist(),
        "history": {
            h["step"]: {k: v for k, v in h.items() if "loss" in k or k == "grad_norm"}
            for h in history
        },
        "random": trainer.accelerator.gather(torch.rand(1)).tolist(),
    }


def train(folder, tasks, resume=None, **arguments):
    """Evaluate, train and save, and return what there is to compare."""
    trainer = make_trainer(folder, tasks, **arguments)
    collator = MDMDataCollator(trainer.processing_class, TaskMixture(tasks))
    evaluated = evaluate(trainer, collator)
    CountingModel.lacking = 0
    trainer.train(resume)
    trainer.save_model()
    return {**report_of(trainer), "evaluated": evaluated}


def launch(count):
    """Go on as so many processes, each told what `torchrun` tells.

    Returns:
        in the first process, those of the others.
    """
    told = meeting_place(count) | {"RANK": 0, "LOCAL_RANK": 0}
    children = []
    for rank in range(1, count):
        if not (child := os.fork()):
            told, children = told | {"RANK": rank, "LOCAL_RANK": rank}, []
            break
        children.append(child)
    os.environ |= {name: str(value) for name, value in told.items()}
    return children


def meeting_place(count):
    """What `torchrun` tells all of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return told | {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}


def main():
    """Do the runs that the command line describes in JSON; the first process reports.

    A run that is "split" checks models that are split over the processes.
    """
    from sharded_run import check_all  # which has sizes from here

    folder, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    for name, run in runs.items():
        if run == "split":  # after a run, which has made the process group
            (folder / name).mkdir(exist_ok=True)
            agreed = [""] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(agreed, check_all(folder))
            report = {"agreed": agreed}
        else:
            report = train(folder / name, **run)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            (folder / name / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    import sharded_run  # noqa: F401  # shared by all processes, as what is imported above

    children = [] if "RANK" in os.environ else launch(int((*sys.argv, 2)[3]))
    main()
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(max(map(os.waitstatus_to_exitcode, statuses), key=abs, default=0))
