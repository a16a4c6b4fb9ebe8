# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A processor that does not belong to a model is refused wherever the two meet."""

import copy

import pytest
from tiny_digits import make_config, make_processor
from transformers import pipeline

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.hub import JOINT_TASK
from modeling_mdm.matching import check_processor
from modeling_mdm.training.train import ModelArguments, make_model
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def config_with(processor, **changes):
    values = make_config(len(processor.tokenizer)).to_dict() | changes
    return MDMConfig(**values)


# What the model has instead, and what the message says of both.
DIFFERENT = {
    "patch": ({"patch_size": 2}, "patch_size is 4 and 2"),
    "channels": ({"num_channels": 3}, "num_channels is 1 and 3"),
    "fewer words": ({"vocab_size": 40}, r"vocab_size is \d+ and 40"),
    "fewer classes": ({"num_classes": 9}, "num_classes is 10 and 9"),
    "mask": ({"mask_token_id": 5}, "mask_token_id is 1 and 5"),
    "end": ({"eos_token_id": 5}, "eos_token_id is 3 and 5"),
    "padding": ({"pad_token_id": 5}, "pad_token_id is 0 and 5"),
    "picture": ({"image_token_id": 5}, "image_token_id is 2 and 5"),
}


def test_what_belongs_together_is_taken(processor):
    check_processor(processor, config_with(processor), learns=True)
    # More words, as after padding of the vocabulary, more classes, another size, no padding.
    more = {"vocab_size": 512, "num_classes": 12, "image_size": 16, "pad_token_id": None}
    check_processor(processor, config_with(processor, **more, eos_token_id=[3, 7]))
    check_processor(processor, config_with(processor, max_text_length=30))


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_pipeline_refuses_another_processor(case, processor):
    changes, message = DIFFERENT[case]
    model = MDMForJointGeneration(config_with(processor, **changes))
    with pytest.raises(ValueError, match=rf"Processor and model differ: .*{message}.*Use the proc"):
        pipeline(JOINT_TASK, model=model, processor=processor)


@pytest.mark.parametrize("case", [*DIFFERENT, "length"])
def test_training_refuses_another_processor(case, processor, tmp_path):
    length = ({"max_text_length": 7}, "max_text_length is 10 and 7")
    changes, message = DIFFERENT.get(case, length)
    config = config_with(processor, **changes)
    config.save_pretrained(tmp_path)
    if case != "fewer words":  # said in the words of the command line
        with pytest.raises(ValueError, match=message):
            make_model(ModelArguments(config=str(tmp_path)), processor)
    with pytest.raises(ValueError, match=message):
        MDMTrainer(
            MDMForJointGeneration(config),
            MDMTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
            processing_class=processor,
        )


def test_several_differences_are_said_at_once(processor):
    other = copy.deepcopy(processor)
    other.patch_size = 8
    config = config_with(processor, num_channels=3)
    with pytest.raises(ValueError, match="patch_size is 8 and 4; num_channels is 1 and 3"):
        check_processor(other, config)
