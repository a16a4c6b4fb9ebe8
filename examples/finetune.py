# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Teach a trained MDM to answer: LoRA on conversations with pictures (the paper's InstructMDM).

    # questions about Fashion-MNIST, from the Hub or from IDX files
    python examples/finetune.py examples/configs/fashion_questions.yaml --data_dir FOLDER

    # your own: JSON lines, Parquet or an id on the Hub, with a column `messages` and, where
    # messages only say {"type": "image"}, a column `images`; paths are relative to the file
    python examples/finetune.py --model examples/checkpoints/mdm-fashion --dataset talk.jsonl \\
        --output_dir runs/talk

An answer of the assistant is the noisy region; all that comes before it is given. Only the adapters
learn, and with them the embeddings of words that the model never saw: they go to `output_dir`, and
the model with the adapters merged into it to `output_dir/merged`. The same command with
`--resume_from_checkpoint last` goes on where a run was cut off.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train")

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
from transformers import set_seed

from mdm_cli.interrupts import unwinding
from mdm_cli.places import require_place, require_writable
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.conversations import (
    ConversationCollator,
    adapter_targets,
    draw_embeddings,
    unseen_words,
)
from modeling_mdm.data.damage import MAX_SKIPPED, MAX_SKIPPED_HELP
from modeling_mdm.data.lengths import check_answers
from modeling_mdm.data.pictures import FASHION_MNIST_ID, load_training_data
from modeling_mdm.data.questions import KINDS, FashionQuestions
from modeling_mdm.data.talks import Conversations, load_talks
from modeling_mdm.evaluation.questions import answer_accuracy
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.cards import (
    Tuning,
    shown_command,
    write_adapter_card,
    write_merged_card,
)
from modeling_mdm.training.checkpoints import how_to_go_on
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained
from modeling_mdm.training.train import checkpoint_to_resume
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments

QUESTIONS = "fashion_questions"


@dataclass
class AdapterArguments:
    """What is tuned."""

    model: str = field(metadata={"help": "Folder or Hub id of a trained model and its processor."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale is lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    mode_head: bool = field(
        default=False,
        metadata={
            "help": "Learn to decide whether an answer holds words, a picture or both; the "
            "adapters then load on a model with use_mode_head=True."
        },
    )
    merge: bool = field(default=True, metadata={"help": "Also write the merged model."})
    command: str = field(init=False, default="python examples/finetune.py")  # for the model card


@dataclass
class ConversationArguments:
    """What it is tuned on."""

    dataset: str = field(
        metadata={"help": f"'{QUESTIONS}', a file or folder, or the id of a set on the Hub."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": f"For {QUESTIONS}: the folder with the four IDX files."}
    )
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    max_skipped: float = field(default=MAX_SKIPPED, metadata={"help": MAX_SKIPPED_HELP})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Length of an answer's region; the processor's if None."}
    )
    drawings: float = field(
        default=0.3,
        metadata={"help": f"For {QUESTIONS}: share of items that ask for a picture instead."},
    )
    weights: list[float] | None = field(
        default=None,
        metadata={
            "help": f"For {QUESTIONS}: how often each kind is trained ({', '.join(KINDS)}); "
            "held-out questions are of all kinds equally."
        },
    )
    late: float = field(
        default=0.0,
        metadata={"help": "Share of answers noised so far that only the question tells them."},
    )
    captions: str = field(
        default="examples/captions/fashion_mnist.json",
        metadata={"help": f"For {QUESTIONS}: names and templates of those pictures."},
    )
    test_questions: int = field(
        default=0,
        metadata={"help": f"For {QUESTIONS}: held-out questions asked before and after."},
    )


def load_conversations(args: ConversationArguments, seed: int) -> Any:
    """Load what the arguments name: items with `messages`.

    Raises:
        ValueError: if the set has no column `messages`, or a picture is missing.
    """
    if args.dataset == QUESTIONS:
        pictures = load_training_data(
            "fashion_mnist", split=args.train_split, data_dir=args.data_dir, seed=seed
        )
        return FashionQuestions(
            pictures, seed, args.drawings, CaptionTable.from_json(args.captions), args.weights
        )
    if not Path(args.dataset).is_file():
        require_place("dataset", args.dataset)
    return load_talks(args.dataset, args.train_split, args.max_skipped)


def held_out_questions(args: ConversationArguments) -> list[dict[str, Any]]:
    """Ask about pictures of the test split; the same questions every time."""
    pictures = load_training_data("fashion_mnist", split="test", data_dir=args.data_dir)
    questions = FashionQuestions(pictures, seed=1)
    return [questions[index] for index in range(min(args.test_questions, len(questions)))]


def load_model(args: AdapterArguments) -> MDMForJointGeneration:
    """Load the model to tune, with a new mode head if it shall get one and has none."""
    new = {"use_mode_head": True} if args.mode_head else {}
    return load_pretrained(MDMForJointGeneration, "model", args.model, **new)


def make_adapters(model: MDMForJointGeneration, args: AdapterArguments) -> peft.PeftModel:
    """Put new adapters on a model; words that it never saw get embeddings that learn."""
    words = unseen_words(model)
    if words:
        draw_embeddings(model, words)
    config = peft.LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=adapter_targets(model),
        trainable_token_indices={"vae.embed_tokens": words} if words else None,
        modules_to_save=["mode_head"] if model.config.use_mode_head else None,
    )
    return peft.get_peft_model(model, config)


def parse(
    argv: list[str],
) -> tuple[AdapterArguments, ConversationArguments, MDMTrainingArguments]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    kinds = (AdapterArguments, ConversationArguments, MDMTrainingArguments)
    adapter_args, data_args, args = read_command_line(kinds, argv, __doc__)
    adapter_args.command = shown_command(adapter_args.command, argv)
    return adapter_args, data_args, args


def describe(
    adapter_args: AdapterArguments,
    data_args: ConversationArguments,
    args: MDMTrainingArguments,
    results: dict[str, dict[str, float]],
) -> Tuning:
    """Gather what the model cards say."""
    return Tuning(
        base=adapter_args.model,
        dataset=FASHION_MNIST_ID if data_args.dataset == QUESTIONS else data_args.dataset,
        command=adapter_args.command,
        options={"use_mode_head": True} if adapter_args.mode_head else {},
        settings={
            "conversations a step": args.items_per_step,
            "learning rate": args.learning_rate,
            "rank of the adapters": adapter_args.lora_rank,
            "alpha of the adapters": adapter_args.lora_alpha,
        },
        accuracies=results,
    )


def write_results(folder: Path, results: dict[str, dict[str, float]], tuning: Tuning) -> None:
    """Write the card of the adapters, and the accuracies if any were measured."""
    if results:
        text = json.dumps(results, indent=2) + "\n"
        (folder / "answers.json").write_text(text, encoding="utf-8")
    write_adapter_card(folder, tuning)


def run(
    adapter_args: AdapterArguments, data_args: ConversationArguments, args: MDMTrainingArguments
) -> dict[str, dict[str, float]]:
    """Tune, save the adapters and the merged model, return the accuracies before and after."""
    require_writable("output_dir", args.output_dir)
    checkpoint = checkpoint_to_resume(args)
    set_seed(args.seed)
    processor = load_pretrained(MDMProcessor, "model", adapter_args.model)
    talks = load_conversations(data_args, args.data_seed)
    collator = ConversationCollator(
        processor, data_args.max_new_tokens, args.data_seed, data_args.late, pad_to_multiple_of=8
    )
    if isinstance(talks, Conversations):
        check_answers(processor, talks.answers(), collator.max_new_tokens)
    model = load_model(adapter_args)
    questions = held_out_questions(data_args) if data_args.test_questions else []
    results = {}

    def ask(when: str, model: Any) -> None:
        if questions and args.process_index == 0:
            model.to(args.device)
            with autocast(args.bf16, args.device):
                results[when] = answer_accuracy(
                    model, processor, questions, data_args.max_new_tokens, seed=args.sample_seed
                )
            print(json.dumps({when: results[when]}), flush=True)

    ask("before", model)
    tuned = make_adapters(model, adapter_args)
    tuned.print_trainable_parameters()
    trainer = MDMTrainer(
        model=tuned,
        args=args,
        train_dataset=talks,
        data_collator=collator,
        processing_class=processor,
    )
    with unwinding(lambda: how_to_go_on(args.output_dir)):
        trainer.train(checkpoint)
        trainer.save_model()
        trainer.save_state()
    if args.process_index == 0:
        folder = Path(args.output_dir)
        if questions or adapter_args.merge:
            base = load_model(adapter_args)
            merged = peft.PeftModel.from_pretrained(base, args.output_dir).merge_and_unload()
            ask("after", merged)
            if adapter_args.merge:
                merged.save_pretrained(folder / "merged")
                processor.save_pretrained(folder / "merged")
        tuning = describe(adapter_args, data_args, args, results)
        write_results(folder, results, tuning)
        if adapter_args.merge:
            write_merged_card(folder / "merged", tuning)
    return results


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Tune as the command line says, and return the accuracies before and after."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
