# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several machines: the files that start them; two launchers that lose a process and a machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_digits import CAPTIONS, ROOT, save_config_folder
from torch.distributed.run import get_args_parser

from modeling_mdm.training import train
from modeling_mdm.training.checkpoints import list_checkpoints

FOLDER = ROOT / "configuration" / "slurm"
STEPS, EVERY = 40, 4


def executable(path, lines):
    path.write_text("#!/usr/bin/env bash\n" + lines)
    path.chmod(0o755)


def test_slurm_starts_a_launcher_on_each_machine(tmp_path):
    """With commands in Slurm's place that say what they were told."""
    # Names come one by one: who reads the first alone must not break the pipe for the others.
    names = "printf 'gpu07\\n'; sleep 0.2; printf 'gpu08\\n'; printf 'gpu09\\n'"
    executable(tmp_path / "scontrol", f'echo "$*" >&2; {names}\n')
    executable(tmp_path / "srun", 'exec "$@"\n')
    executable(tmp_path / "python", 'printf "%s\\n" "$@"\n')
    slurm = {"SLURM_JOB_NODELIST": "gpu[07-09]", "SLURM_NNODES": "3", "SLURM_GPUS_ON_NODE": "4"}
    own = {"SLURM_JOB_ID": "71", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    line = ["examples/configs/mdm_7b_64xh100.yaml", "--output_dir", "/shared/a b"]
    done = subprocess.run(
        ["bash", FOLDER / "train.sbatch", *line],
        cwd=ROOT, env={**os.environ, **slurm, **own}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "show hostnames gpu[07-09]" in done.stderr
    flag, module, *words = done.stdout.splitlines()
    assert (flag, module) == ("-m", "torch.distributed.run")
    chosen = get_args_parser().parse_args(words)
    assert (chosen.nnodes, chosen.nproc_per_node, chosen.max_restarts) == ("3", "4", 3)
    assert (chosen.rdzv_backend, chosen.rdzv_endpoint) == ("c10d", "gpu07:29500")
    assert chosen.rdzv_id == "71" and Path(chosen.training_script) == ROOT / "examples" / "train.py"
    assert chosen.training_script_args == [*line, "--resume_from_checkpoint", "last"]


def test_what_is_not_said_is_asked_for():
    environment = {name: value for name, value in os.environ.items() if name != "HEAD"}
    done = subprocess.run(
        ["bash", FOLDER / "machine.sh", "run.yaml"],
        env={**environment, "MACHINES": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "say which of the 2 machines is the first" in done.stderr


# --- two launchers


def run_line(config, folder):
    line = ["--config", str(config), "--dataset", "digits", "--captions", str(CAPTIONS)]
    line += ["--max_steps", str(STEPS), "--save_steps", str(EVERY), "--logging_steps", "1"]
    line += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--seed", "5"]
    line += ["--learning_rate", "1e-3", "--num_samples", "0", "--disable_tqdm", "true"]
    return [*line, "--limit", "80", "--output_dir", str(folder)]


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {h["step"]: h["loss"] for h in history if "loss" in h}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Machine:
    """A launcher as a machine of its own has it: `machine.sh`, with one process of training."""

    def __init__(self, config, folder, port, log):
        environment = {
            **os.environ,
            "HEAD": "127.0.0.1",
            "MACHINES": "2",
            "GPUS": "1",
            "PORT": str(port),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        words = [*run_line(config, folder), "--per_device_train_batch_size", "4"]
        with log.open("ab") as file:
            self.launcher = subprocess.Popen(
                ["bash", FOLDER / "machine.sh", *words],
                env=environment, stdout=file, stderr=file,
            )  # fmt: skip

    def workers(self):
        """The processes that train."""
        shown = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.launcher.pid)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [int(pid) for pid in shown.stdout.split()]

    def kill_worker(self):
        os.kill(self.workers()[0], signal.SIGKILL)

    def kill(self):
        """Lose the machine: everything on it at once."""
        for pid in [*self.workers(), self.launcher.pid]:
            os.kill(pid, signal.SIGKILL)
        self.launcher.wait()


def wait_for_store(port):
    """Wait until the first launcher lets others meet it."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens at port {port}")


def wait_for_step(folder, step, machines):
    """Wait for a checkpoint of this step or a later one."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        if any(int(path.name.split("-")[-1]) >= step for path in list_checkpoints(folder)):
            return
        assert all(one.launcher.poll() is None for one in machines), "a launcher has ended"
        time.sleep(0.2)
    raise TimeoutError(f"no checkpoint of step {step}")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_lost_process_and_a_lost_machine_change_no_loss(tmp_path):
    save_config_folder(tmp_path / "config")
    train.main([*run_line(tmp_path / "config", tmp_path / "one"),
                "--per_device_train_batch_size", "8"])  # fmt: skip
    expected = losses(tmp_path / "one")
    port, run = free_port(), tmp_path / "run"
    machines = [Machine(tmp_path / "config", run, port, tmp_path / "0.log")]
    wait_for_store(port)  # on one host, whoever comes first has it
    machines.append(Machine(tmp_path / "config", run, port, tmp_path / "1.log"))
    try:
        wait_for_step(run, EVERY, machines)
        machines[1].kill_worker()
        wait_for_step(run, 3 * EVERY, machines)
        assert machines[1].launcher.poll() is None and len(machines[1].workers()) == 1
        machines[1].kill()
        machines[1] = Machine(tmp_path / "config", run, port, tmp_path / "again.log")
        first, other = (machine.launcher.wait(1800) for machine in machines)
        assert first == 0
        # The first may be gone, and its store with it, before the other's process has ended.
        log = (tmp_path / "again.log").read_text()
        assert other == 0 or "The connection to the C10d store has failed" in log
    except BaseException:
        print(*(path.read_text()[-3000:] for path in tmp_path.glob("*.log")), sep="\n---\n")
        raise
    finally:
        for machine in machines:
            if machine.launcher.poll() is None:
                machine.kill()
    found = losses(run)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-4, abs=1e-5), step
