# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm plan`: what fits, how long it takes, what to change, and what cannot be planned."""

import json
from dataclasses import replace

import pytest
from tiny_model import tiny_config

from mdm_cli.main import main as mdm
from modeling_mdm.cli import plan as command
from modeling_mdm.planning.flops import Batch, step_flops
from modeling_mdm.planning.gpus import GPUS, OwnFigures, find_gpu, peak_of_device
from modeling_mdm.planning.mesh import Mesh, items_each, make_mesh
from modeling_mdm.planning.plan import Request, count_memory, make_plan, smallest_change
from modeling_mdm.planning.states import model_sizes
from modeling_mdm.planning.traffic import step_traffic


def small_gpu(megabytes):
    """A GPU of which a tiny model fills a good part."""
    return find_gpu("tiny", OwnFigures(memory=megabytes / 1e3, flops=1.0, bandwidth=0.1))


def request(**changes):
    values = {"config": tiny_config(), "gpu": small_gpu(64), "batch": 4, "words": 6, "patches": 4}
    return Request(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    tiny_config().to_json_file(tmp_path / "config.json")
    return tmp_path


# --- meshes ---


@pytest.mark.parametrize(
    ("processes", "words", "expected"),
    [
        (1, [], Mesh(1, 1, "ddp", 1)),
        (16, [], Mesh(16, 8, "fsdp2", 16)),
        (16, ["ddp"], Mesh(16, 8, "ddp", 1)),
        (16, ["hsdp"], Mesh(16, 8, "hsdp", 8)),
        (16, ["hsdp=4"], Mesh(16, 8, "hsdp", 4)),
        (16, ["tp=2"], Mesh(16, 8, "fsdp2", 8, tensor=2)),
        (16, ["fsdp2", "cp=4"], Mesh(16, 8, "fsdp2", 16, context=4)),
        (16, ["hsdp", "tp=2", "cp=2"], Mesh(16, 8, "hsdp", 4, tensor=2, context=2)),
    ],
)
def test_a_mesh_is_read(processes, words, expected):
    mesh = make_mesh(processes, 8, words, tiny_config())
    assert mesh == expected
    assert mesh.data * mesh.tensor * mesh.context == processes
    assert mesh.replicas * mesh.shards * mesh.tensor == processes
    assert make_mesh(processes, 8, mesh.words(), tiny_config()) == mesh
    assert mesh.not_run_here == ["tp"] * ("tp=2" in words)


@pytest.mark.parametrize(
    ("processes", "words", "message"),
    [
        (16, ["zero3"], r"parallel holds 'zero3': choose among ddp, fsdp2, hsdp"),
        (16, ["fsdp2", "hsdp"], r"parallel names fsdp2 and hsdp: choose one"),
        (16, ["tp=2", "tp=4"], r"parallel names tp twice"),
        (16, ["tp"], r"parallel holds 'tp': write tp=2"),
        (16, ["fsdp2=4"], r"parallel holds 'fsdp2=4': write fsdp2 alone"),
        (16, ["cp=0"], r"parallel holds 'cp=0'.*at least 1"),
        (16, ["tp=3"], r"tp=3 x cp=1 = 3 does not divide gpus=16.*such as 2"),
        (24, ["tp=3"], r"does not divide the 4 heads \(num_ssm_heads\).*such as 2"),
        (16, ["hsdp=3"], r"hsdp=3 does not divide the 16 processes.*use hsdp=2"),
        (12, [], r"gpus=12 do not fill machines of gpus_per_machine=8.*such as 8"),
        (0, [], r"gpus=0 must be at least 1"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_with_the_fix(processes, words, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(processes, 8, words, tiny_config())


def test_the_transformer_has_no_heads_for_tensor_parallelism_here():
    config = tiny_config(mixer="attention")
    with pytest.raises(ValueError, match=r"tp=2 splits the heads of Mamba-2.*'attention'.*fsdp2"):
        make_mesh(8, 8, ["tp=2"], config)
    with pytest.raises(ValueError, match=r"cp=4.*2 heads \(num_attention_heads\)"):
        make_mesh(8, 8, ["cp=4"], config)


def test_a_batch_is_divided_among_processes_or_refused_with_the_fix():
    mesh = make_mesh(16, 8, ["cp=2"], tiny_config())
    assert items_each(64, 2, mesh) == 4
    with pytest.raises(ValueError, match=r"batch=100 .* among 8 processes.*use 96 or 112"):
        items_each(100, 2, mesh)
    with pytest.raises(ValueError, match=r"batch=4 .*use 8\."):
        items_each(4, 1, mesh)
    with pytest.raises(ValueError, match="accumulation=0 must be at least 1"):
        items_each(8, 0, mesh)


# --- GPUs ---


def test_a_gpu_is_known_by_name_or_by_its_figures():
    assert find_gpu("H100") is not None and find_gpu("H100").memory == 80e9
    own = find_gpu("mine", OwnFigures(memory=64, flops=400, bandwidth=2, link=100))
    assert (own.memory, own.bandwidth, own.link) == (64e9, 2e12, 100e9)
    assert set(own.products.values()) == {400e12}
    assert find_gpu("h100", OwnFigures(memory=40)).memory == 40e9
    with pytest.raises(ValueError, match=r"gpu='h1000' is unknown: name one of a100.*gpu_memory"):
        find_gpu("h1000")
    with pytest.raises(ValueError, match=r"its own gpu_flops, gpu_bandwidth as numbers"):
        find_gpu("mine", OwnFigures(memory=64))
    with pytest.raises(ValueError, match=r"gpu_memory=-1 must be more than 0"):
        find_gpu("h100", OwnFigures(memory=-1))


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_has_the_peak_of_its_data_sheet(device, gpu):
    expected = None if gpu is None else GPUS[gpu].products["bfloat16"]
    assert peak_of_device(device) == expected


# --- traffic ---


def test_traffic_is_that_of_the_collectives():
    config, gpu = tiny_config(self_conditioning=False), find_gpu("h100")
    sizes = model_sizes(config)

    def sent(*words, processes=16):
        mesh = make_mesh(processes, 8, words, config)
        found = step_traffic(config, sizes, mesh, gpu, Batch(2, 6, 4))
        return {one.name: one for one in found}

    count = sizes.numel
    split = sent("fsdp2")
    assert split["gather weights"].bytes == 2 * 4 * count * 15 / 16
    assert split["reduce gradients"].bytes == 4 * count * 15 / 16
    # Over two machines, by the network.
    assert split["gather weights"].seconds == split["gather weights"].bytes / gpu.network
    within = sent("hsdp")
    assert within["gather weights"].bytes == 2 * 4 * count * 7 / 8
    assert within["gather weights"].seconds == within["gather weights"].bytes / gpu.link
    assert within["add gradients up"].bytes == 2 * 1 / 2 * 4 * count / 8
    assert within["add gradients up"].seconds == within["add gradients up"].bytes / gpu.network
    assert sent("ddp")["add gradients up"].bytes == 2 * 15 / 16 * 4 * count
    tensor = sent("ddp", "tp=2", processes=2)["add parts of blocks up"]
    assert tensor.bytes == 2 * 2 * (1 / 2) * 2 * 20 * config.hidden_size * config.num_hidden_layers
    assert not tensor.is_hidden and sent(processes=1) == {}


# --- whole plans ---


def test_a_plan_adds_up():
    plan = make_plan(request(accumulation=2, utilisation=0.5))
    memory, seconds, speed = plan.memory, plan.seconds, plan.speed
    assert memory.total == memory.states.total + memory.step and memory.fits
    assert memory.activations <= memory.step <= memory.activations + memory.states.gradients
    assert plan.with_other_checkpointing.step != memory.step
    peak = plan.request.gpu.products["bfloat16"]
    assert seconds["computing"] == pytest.approx(2 * plan.flops.total / (0.5 * peak))
    assert seconds["step"] == pytest.approx(seconds["computing"] + seconds["updating"])
    assert speed["items_per_second"] == pytest.approx(4 / seconds["step"])
    assert speed["tokens_per_second"] == pytest.approx(10 * speed["items_per_second"])
    assert speed["mfu"] == pytest.approx(2 * plan.flops.model / seconds["step"] / peak)
    *sets, everything = plan.hours
    assert [one.name for one in sets] == ["ImageNet", "JourneyDB", "UltraChat"]
    assert everything.items == sum(one.items for one in sets) == 1_281_167 + 4_189_737 + 207_865
    # JourneyDB's items are those of the step itself.
    assert sets[1].days == pytest.approx(4_189_737 / 4 * seconds["step"] / 86400)
    assert sets[1].gpu_hours == pytest.approx(24 * sets[1].days)
    assert plan.change is None


def test_what_fits_is_said_and_holds():
    plan = make_plan(request(batch=2))
    most = plan.largest["plain"]
    assert most > 2 and plan.largest["checkpointing"] >= most
    assert count_memory(request(batch=most)).fits
    assert not count_memory(request(batch=most + 2)).fits


def test_the_smallest_change_makes_it_fit():
    base = request(words=30, patches=36, config=tiny_config(num_hidden_layers=5), batch=8)
    plain = count_memory(base).total
    again = count_memory(replace(base, checkpointing=True)).total
    assert again < plain
    enough = replace(base, gpu=small_gpu((again + plain) / 2 / 0.92 / 1e6))
    assert not count_memory(enough).fits
    assert smallest_change(enough) == ["--checkpointing true"]
    tight = replace(base, gpu=small_gpu(again * 0.9 / 0.92 / 1e6))
    (said,) = smallest_change(tight)
    assert "--accumulation" in said
    half = replace(enough, checkpointing=True, checkpointed_blocks=0.2)
    assert not count_memory(half).fits
    assert smallest_change(half) == ["--checkpointed_blocks 1.0"]
    hopeless = replace(base, gpu=small_gpu(0.001))
    assert smallest_change(hopeless) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_share_of_checkpointed_blocks_is_planned_in_memory_and_flops():
    base = request(
        words=30, patches=36, config=tiny_config(num_hidden_layers=4), checkpointing=True
    )
    half = replace(base, checkpointed_blocks=0.5)
    plan = make_plan(half)
    plain, everything = count_memory(replace(base, checkpointing=False)), count_memory(base)
    assert everything.step < plan.memory.step < plain.step
    assert plan.with_other_checkpointing == plain
    flops = step_flops(base.config, base.batch_each, checkpointing=0.5)
    assert plan.flops.total == pytest.approx(flops.total)
    assert (
        flops.recomputed == step_flops(base.config, base.batch_each, checkpointing=1).recomputed / 2
    )
    nothing = replace(base, checkpointed_blocks=0.1)  # rounds to none
    assert (half.again, nothing.again, count_memory(nothing).step) == (2, 0, plain.step)


def test_a_share_of_checkpointed_blocks_exchanges_that_share_once_more():
    config, gpu = tiny_config(self_conditioning=False), find_gpu("h100")
    mesh = make_mesh(2, 8, ["ddp", "tp=2"], config)
    sent = [
        step_traffic(config, model_sizes(config), mesh, gpu, Batch(2, 6, 4), checkpointing=share)
        for share in (0.0, 0.5, 1.0)
    ]
    none, half, everything = (found[-1].bytes for found in sent)
    assert half == pytest.approx(none * 2.5 / 2) and everything == pytest.approx(none * 3 / 2)


def test_more_processes_hold_less_each_and_planned_only_is_said():
    alone = make_plan(request())
    split = make_plan(request(gpus=4, batch=16, gpus_per_machine=4))
    assert split.memory.states.weights < alone.memory.states.weights / 2
    assert not any("does not run" in note for note in split.notes)
    in_two = make_plan(request(gpus=4, batch=8, parallel=("hsdp=2",), gpus_per_machine=4))
    assert not any("does not run" in note for note in in_two.notes)
    for word in ("tp=2", "cp=2"):
        plan = make_plan(request(gpus=4, batch=8, parallel=(word,), gpus_per_machine=4))
        is_unrun = "does not run tp yet: planned only" in plan.notes[0]
        assert is_unrun == (word == "tp=2")
        assert any("--context_parallel_size 2" in note for note in plan.notes) == (word == "cp=2")
        assert plan.flops.total < alone.flops.total


def test_processes_that_share_sequences_hold_them_whole_outside_of_blocks():
    def step(blocks, *words):
        config = tiny_config(num_hidden_layers=blocks)
        accumulation = 1 + len(words)
        sizes = {"config": config, "words": 64, "batch": 4, "gpus": 4, "gpus_per_machine": 4}
        return count_memory(request(**sizes, accumulation=accumulation, parallel=words)).step

    # What blocks hold is about halved, what is outside of them is not.
    of_blocks, of_shared = step(4) - step(2), step(4, "cp=2") - step(2, "cp=2")
    assert 0.45 < of_shared / of_blocks < 0.75
    outside = step(2) - of_blocks
    assert step(2, "cp=2") > outside + of_shared * 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int4"}, "dtype='int4': choose one of bfloat16, float32"),
        ({"utilisation": 0.0}, r"utilisation=0.0 must be in \(0, 1\]"),
        ({"epochs": -1}, "epochs=-1 must be more than 0"),
        (
            {"checkpointed_blocks": 1.5, "checkpointing": True},
            r"checkpointed_blocks=1.5 must be in \[0, 1\]",
        ),
        (
            {"checkpointed_blocks": float("nan"), "checkpointing": True},
            "checkpointed_blocks=nan must be in",
        ),
        ({"checkpointed_blocks": 0.5}, "checkpointed_blocks=0.5 is a share .* checkpointing=True"),
        ({"words": 0, "patches": 0}, "leave nothing to read"),
    ],
)
def test_a_request_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        request(**changes)


# --- the command ---


def test_the_command_prints_a_table_and_writes_json(folder, capsys):
    output = folder / "plans" / "plan.json"
    words = f"plan --config {folder} --gpus 2 --gpu h100 --batch 4 --output {output}"
    assert mdm([*words.split(), "--parallel", "tp=2"]) == 0
    said = capsys.readouterr().out
    for line in ("weights", "activations, at most", "self conditioning", "add parts of blocks up"):
        assert line in said
    assert "GPU-hours" in said and "does not run tp yet: planned only" in said
    plan = json.loads(output.read_text(encoding="utf-8"))
    assert plan["mesh"]["tensor"] == 2 and plan["fits"] and plan["smallest_change"] is None
    assert plan["flops"]["total"] >= plan["flops"]["model"] > plan["flops"]["forward"] > 0
    assert mdm([*words.split()[:-2], "--json", "true"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"]["split"] == "fsdp2"


def test_a_share_of_checkpointed_blocks_is_read(folder):
    words = f"--config {folder} --checkpointing true --checkpointed_blocks"
    shares = ("0.0", "0.4", "0.5", "0.9", "1.0")  # of two blocks, the nearest number of them
    found = [command.parse([*words.split(), share])[0] for share in shares]
    assert [one.again for one in found] == [0, 1, 1, 2, 2]
    assert command.parse(["--config", str(folder)])[0].again == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_plans_a_share_of_checkpointed_blocks(folder, capsys):
    words = f"plan --config {folder} --checkpointing true --checkpointed_blocks 0.5"
    assert mdm(words.split()) == 0
    assert "50% of blocks" in capsys.readouterr().out
    assert mdm([*words.split(), "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["request"]["checkpointed_blocks"] == 0.5
    assert 0 < found["flops"]["recomputed"] < found["flops"]["forward"] / 2


def test_lengths_are_those_of_the_config_or_named(folder):
    def lengths(*words):
        found, _ = command.parse(["--config", str(folder), *words])
        return found.words, found.patches

    assert lengths() == (6, 4)
    assert lengths("--words", "9", "--image_size", "0") == (9, 0)
    assert lengths("--sequence", "40", "--image_size", "16") == (24, 16)
    found, _ = command.parse(["--config", str(folder), "--gpus", "4", "--accumulation", "2"])
    assert found.batch == 8 * 4 * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpu abacus", "gpu='abacus' is unknown: name one of a100"),
        ("--optim lomo", "optim='lomo' is no optimizer whose memory the plan knows"),
        ("--gpus 3 --parallel tp=2", "tp=2 x cp=1 = 2 does not divide gpus=3"),
        ("--gpus 8 --parallel tp=8", "does not divide the 4 heads"),
        ("--gpus 8 --batch 12", "batch=12 cannot be divided among 8 processes"),
        ("--batch 0", "batch=0 must be at least 1"),
        ("--image_size 10", "image_size=10 is no multiple of `patch_size` = 4"),
        ("--sequence 3", "sequence=3 is less than the 4 patches"),
        ("--sequence 30 --words 3", "both say how many words"),
        ("--checkpointed_blocks 0.5", "is a share of what checkpointing=True does"),
        ("--config_overrides hidden=3", "config_overrides names ['hidden']"),
    ],
)
def test_the_command_names_what_cannot_be_planned(words, message, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        mdm(["plan", "--config", str(folder), *words.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", ["mdm-1b", "mdm-7b"])
def test_large_presets_are_planned(preset):
    words = f"--config configuration/{preset} --gpus 64 --gpu h100 --batch 512"
    plan = make_plan(command.parse(words.split())[0])
    learning = plan.parameters["learning"]
    assert learning > (6e9 if preset == "mdm-7b" else 1e9)
    # Six flops for each weight and position, and what estimates twice, at least for the shared.
    assert plan.flops.model > 6 * 1e9 * 8 * 512
    even = 8 * learning / 64  # rows that 64 does not divide leave some processes more
    assert even <= plan.memory.states.optimizer < 1.1 * even
