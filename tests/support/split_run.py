# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny digits model as `accelerate launch` does with FSDP2 or HSDP, on CPU processes.

    python split_run.py FOLDER JOBS

This process only forks: each job has processes of its own, which share what is imported here.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
import weakref
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from distributed_run import CountingModel, make_trainer, meeting_place, report_of
from tiny_digits import ROOT, load_script
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from modeling_mdm.attention import MDMAttentionBlock
from modeling_mdm.block import MDMBlock, SelectiveScan
from modeling_mdm.training.sharded import write_weights
from modeling_mdm.training.trainer import MDMTrainer

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
HSDP = {
    **FSDP2,
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


@contextmanager
def launched_with(environment):
    """Be a process that `accelerate launch` started with such an environment.

    accelerate splits weights over GPUs alone, though torch does on any device: so it is told that
    these processes are of that kind, and their device stays the CPU.
    """
    before = dict(os.environ)
    os.environ |= environment
    own = PartialState._shared_state.get("distributed_type")
    real = AcceleratorState.__init__

    def begin(self, *args, **kwargs):
        if not self.__class__._shared_state and "ACCELERATE_USE_FSDP" in environment:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        real(self, *args, **kwargs)

    AcceleratorState.__init__ = begin
    try:
        yield
    finally:
        AcceleratorState.__init__ = real
        AcceleratorState._reset_state()
        if own is not None:
            PartialState._shared_state["distributed_type"] = own
        os.environ.clear()
        os.environ.update(before)


MESHES = {"whole": {}, "ddp": {}, "fsdp2": FSDP2, "hsdp": HSDP}
PATIENCE = 600  # seconds of a job, after which its processes wait for each other for ever


class Killed(TrainerCallback):
    """Ends the process as a machine that loses its power does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def generate(trainer):
    """Samples of the model as it is now, split or not."""
    model = trainer.model.eval()
    inputs = trainer.processing_class(text=["a zero"], generate="joint", return_tensors="pt")
    samples = model.generate(
        **inputs,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        show_progress=False,
    )
    return {"words": samples.sequences.tolist(), "picture": samples.images.flatten().tolist()}


def gather(trainer, folder):
    """Write the weights in files of 20 kB, and say how much a process held of them at once."""
    held, most, real = [], [0], DTensor.full_tensor

    def full_tensor(self, **kwargs):
        whole = real(self, **kwargs)
        held.append(weakref.ref(whole))
        alive = [tensor() for tensor in held if tensor() is not None]
        most[0] = max(most[0], sum(tensor.nbytes for tensor in alive))
        return whole

    DTensor.full_tensor = full_tensor
    try:
        folder.mkdir(exist_ok=True)
        write_weights(trainer.model, folder, trainer.args.should_save, shard_size=20_000)
    finally:
        DTensor.full_tensor = real
    sizes = [p.numel() * p.element_size() for p in trainer.model.parameters()]
    return {"held": most[0], "largest": max(sizes), "all": sum(sizes), "tensors": len(held)}


def note_types(module, inputs, _, found):
    """Note the types that a scan is called with."""
    found.add(f"A_log {module.A_log.dtype}")
    found.add(f"delta_bias {module.delta_bias.dtype}")
    found.add(f"x {inputs[0].x.dtype}")


def train(folder, tasks, mesh="whole", resume=None, killed=None, checks=False, **arguments):
    """Train in the processes that were launched."""
    with launched_with(MESHES[mesh]):
        trainer = make_trainer(folder, tasks, **arguments)
        assert trainer._is_fsdp2 == (mesh in ("fsdp2", "hsdp"))
        types = set()
        for module in trainer.model.modules():
            if isinstance(module, SelectiveScan):
                module.register_forward_hook(partial(note_types, found=types))
        if killed is not None:
            trainer.add_callback(Killed(killed))
        CountingModel.lacking = 0
        trainer.train(resume)
        report = {**report_of(trainer), "types": sorted(types)}
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
        averages = trainer.average.averages.values()
        report["held"] = [sum(x.numel() for x in own) for own in (parts, averages)]
        trainer.save_model()
        if checks:
            report["generated"] = generate(trainer)
            if mesh != "whole":
                report["gathered"] = gather(trainer, Path(folder) / "small")
    return report


def frozen(trainer):
    """Norms of the weights that do not learn, gathered, by name."""
    weights = {n: p.detach() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in weights.items()}
    return {name: weight.double().norm().item() for name, weight in whole.items()}


def count_lacking(model, _, inputs):
    """Count the batches that lacked pictures."""
    CountingModel.lacking += "pixel_values" not in inputs


def finetune(folder, arguments, mesh="whole", resume=None, killed=None):
    """Run the script of instruction tuning in the processes that were launched."""
    script = load_script(ROOT / "examples" / "finetune.py")
    trainers, before = [], []

    def make(**kwargs):
        trainers.append(MDMTrainer(**kwargs))
        before.append(frozen(trainers[0]))
        trainers[0].model.register_forward_pre_hook(count_lacking, with_kwargs=True)
        if killed is not None:
            trainers[0].add_callback(Killed(killed))
        return trainers[0]

    script.MDMTrainer = make
    goes_on = ["--resume_from_checkpoint", "last"] if resume else []
    CountingModel.lacking = 0
    with launched_with(MESHES[mesh]):
        script.main([*arguments, "--output_dir", str(folder), *goes_on])
        (trainer,) = trainers
        assert trainer._is_fsdp2 == (mesh in ("fsdp2", "hsdp"))
        report = {**report_of(trainer), "frozen": [before[0], frozen(trainer)]}
        kinds = MDMBlock | MDMAttentionBlock
        blocks = [module for module in trainer.model.modules() if isinstance(module, kinds)]
        report["split_blocks"] = sum(isinstance(block, FSDPModule) for block in blocks)
        report["generated"] = generate(trainer)
        return report


def be(rank, folder, name, job):
    """Be one of a job's processes; all report."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(folder / f"{name}-{rank}.log", "w", buffering=1)  # noqa: SIM115
    try:
        do_job = finetune if "arguments" in job else train
        report = do_job(folder / name, **job)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(report))
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    os._exit(status)


def do(folder, name, processes, job):
    """Start a job's processes and wait: how each ended, None for one that did not."""
    if (cut := job.pop("goes_on", None)) is not None:
        shutil.copytree(folder / cut, folder / name)
        job["resume"] = True
    place = {key: str(value) for key, value in meeting_place(processes).items()}
    children = {}
    for rank in range(processes):
        if not (child := os.fork()):
            if processes > 1:
                os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            be(rank, folder, name, job)
        children[child] = rank
    ended, until = [None] * processes, time.monotonic() + PATIENCE
    while children and time.monotonic() < until:
        for child, rank in list(children.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ended[rank] = os.waitstatus_to_exitcode(status)
                del children[child]
        time.sleep(0.05)
    for child in children:
        os.kill(child, signal.SIGABRT)
        os.waitpid(child, 0)
    return ended


def main():
    """Do the jobs that the command line describes in JSON, and say how their processes ended."""
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, (processes, job) in jobs.items():
        ended = do(folder, name, processes, job)
        (folder / f"{name}.ended").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
