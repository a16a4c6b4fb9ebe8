# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The arguments of training: the paper's defaults (Sec. 5.1) over transformers' own."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from modeling_mdm.planning.spread import require_share_of_blocks
from modeling_mdm.precision import default_device, use_bfloat16
from modeling_mdm.training.command_line import bf16_argument


@dataclass
class MDMTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the paper's defaults and a few more arguments.

    `bf16` may be `"auto"`, the default: bfloat16 where the processor has instructions for it. What
    was chosen then stands in its place, True or False.

    Raises:
        ValueError: if ema_decay is outside [0, 1), or max_train_seconds, decay_train_seconds,
            num_samples or sample_steps is out of range, bf16 is none of auto, true and false, or
            checkpointed_blocks is outside [0, 1] or has nothing to act on.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of AdamW."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup",
        metadata={"help": "Learning rate over time; constant after `warmup_steps`."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator reads columns the model does not know."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "A batch without one modality leaves that modality's weights unused."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide NaN losses from the logs; waits for every step."}
    )
    label_names: list[str] | None = field(
        default_factory=list, metadata={"help": "Stays empty: the model makes its own targets."}
    )
    bf16: str = bf16_argument()
    ema_decay: float = field(
        default=0.9999,
        metadata={
            "help": "Decay of the average of the weights, with warm-up; 0 keeps no average. "
            "Evaluation, samples and the saved model use the average."
        },
    )
    max_train_seconds: float | None = field(
        default=None,
        metadata={"help": "Stop with a checkpoint after this many seconds of this process."},
    )
    decay_train_seconds: float = field(
        default=0.0,
        metadata={
            "help": "The last of max_train_seconds, over which the learning rate falls to 0, "
            "however many steps they hold; 0 leaves it to lr_scheduler_type."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "For training scripts: the checkpoint folder to go on from, or `last` for the "
            "newest whole one in output_dir, if there is one."
        },
    )
    num_samples: int = field(
        default=16,
        metadata={"help": "Samples drawn in each evaluation into output_dir/samples; 0 for none."},
    )
    sample_steps: int = field(default=30, metadata={"help": "Sampling steps of those samples."})
    sample_seed: int = field(
        default=0, metadata={"help": "Seed of those samples and of the noise in evaluation."}
    )

    checkpointed_blocks: float = field(
        default=1.0,
        metadata={
            "help": "Share of the blocks, evenly spread, that activation_checkpointing computes "
            "again for their gradients; the others keep what they made."
        },
    )

    context_parallel_size: int = field(
        default=1,
        metadata={
            "help": "Processes that share each sequence, for pictures and texts that fit no GPU; "
            "divides the processes and the heads."
        },
    )

    def __post_init__(self) -> None:
        self._choose_type()  # before transformers hands it to accelerate
        super().__post_init__()
        if self.data_seed is None:
            # Otherwise the order of the items hangs on whatever seeded torch last.
            self.data_seed = self.seed
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1); 0 keeps no average.")
        if self.max_train_seconds is not None and not self.max_train_seconds > 0:
            raise ValueError(
                f"max_train_seconds={self.max_train_seconds} must be > 0, or None for no limit."
            )
        if not 0.0 <= self.decay_train_seconds <= (self.max_train_seconds or 0.0):
            raise ValueError(
                f"decay_train_seconds={self.decay_train_seconds} are the last of "
                f"max_train_seconds={self.max_train_seconds}: set that too, to as many or more."
            )
        if self.num_samples < 0:
            raise ValueError(f"num_samples={self.num_samples} must be >= 0; 0 draws no samples.")
        if self.sample_steps < 1:
            raise ValueError(f"sample_steps={self.sample_steps} must be >= 1.")
        require_share_of_blocks(
            self.checkpointed_blocks, self.gradient_checkpointing, "activation_checkpointing"
        )

    @property
    def items_per_step(self) -> int:
        """Items of a step: of all processes, devices and accumulated batches."""
        batches = 1 if self.accelerator_config.split_batches else self.world_size
        return self.train_batch_size * self.gradient_accumulation_steps * batches

    def _choose_type(self) -> None:
        device = "cpu" if self.use_cpu else default_device()
        is_auto = str(self.bf16).lower() == "auto"
        self.bf16 = False if is_auto and self.fp16 else use_bfloat16(self.bf16, device)
        if self.bf16 and device == "cpu":
            self.use_cpu = True  # transformers asks for it even where there is nothing else
