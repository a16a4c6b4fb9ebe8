# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The files for `accelerate launch`, read as accelerate reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from tiny_model import make_model

FOLDER = Path(__file__).resolve().parents[2] / "configuration" / "accelerate"
# Of each file: processes, machines, what splits the weights.
EXPECTED = {
    "two_processes": (2, 1, None),
    "fsdp2": (8, 1, "FSDP"),
    "fsdp2_two_machines": (16, 2, "FSDP"),
    "hsdp": (16, 2, "FSDP"),
    "deepspeed_zero2": (8, 1, "2"),
    "deepspeed_zero3": (8, 1, "3"),
}


def launch_environment(name):
    """What accelerate would set for the processes that it starts."""
    line = ["--config_file", str(FOLDER / f"{name}.yaml"), "examples/train.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    if args.use_deepspeed:  # as accelerate's launch_command does
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return args, prepare_deepspeed_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


def test_every_file_is_checked():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_file(name, monkeypatch):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # unknown keys are an error
    processes, machines, split = EXPECTED[name]
    assert (config.num_processes, config.num_machines) == (processes, machines)
    args, environment = launch_environment(name)
    assert args.num_processes == processes and args.mixed_precision in ("no", "bf16")
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    if split == "FSDP":
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        for mixer in ("mamba2", "attention"):
            model = make_model(mixer=mixer)
            is_split = fsdp2_prepare_auto_wrap_policy(plugin, model)
            assert [m for m in model.modules() if is_split(m)] == list(model.decoder.layers)
        assert plugin.reshard_after_forward is True
        assert "SHARDED" in str(plugin.state_dict_type)
        is_mesh = environment.get("ACCELERATE_USE_PARALLELISM_CONFIG") == "true"
        assert is_mesh == (name == "hsdp")
        if is_mesh:
            mesh = ParallelismConfig()
            assert (mesh.dp_replicate_size, mesh.dp_shard_size) == (machines, processes // machines)
            assert mesh.total_size == processes and mesh.fsdp_dim_names == [
                "dp_replicate",
                "dp_shard_cp",
            ]
    elif split is not None:
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == split
        # A whole model is saved, not parts that only DeepSpeed can read.
        saves_whole = environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"]
        assert saves_whole == ("true" if split == "3" else "false")
