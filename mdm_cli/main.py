# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm`: write, score and talk about pictures and words, train, measure and export models.

Results go to standard output, progress and errors to standard error. The exit status is 0 where all
went well, 1 after a failure that one line names, 2 where the command was not understood, 130 after
Ctrl-C. Nothing that takes long is imported before a command is understood.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mdm_cli.endings import Steps, perform
from mdm_cli.places import require_file, require_place, require_writable

EXAMPLES = """examples:
  mdm generate --checkpoint FOLDER --write joint --num_samples 4 --output_dir outputs
  mdm generate --checkpoint FOLDER --write image --text "a photo of a dress" --guidance_scale 3
  mdm generate --checkpoint FOLDER --write text --image picture.png --json
  mdm generate --checkpoint FOLDER --write image --image picture.png --mask mask.png
  mdm score --checkpoint FOLDER --image picture.png --text "a photo of a bag" "a photo of a dress"
  mdm chat --checkpoint FOLDER --image picture.png
  mdm train run.yaml --max_steps 1000 --output_dir runs/mine
  mdm plan --config FOLDER --gpus 64 --gpu h100 --batch 512
  mdm encode --config FOLDER --vq_model NAME --dataset FOLDER --output_dir encoded/mine
  mdm evaluate --checkpoint FOLDER --judge FOLDER --captions captions.json --json
  mdm evaluate --checkpoint FOLDER --table 2 --data_root FOLDER --dry_run
  mdm export --checkpoint FOLDER --output_dir hub --push_to_hub me/mine
"""
# Commands with a module of their own, which the scripts in `examples/` share: what they do, the
# module, and the extra of this package that it needs, if any.
MODULES: dict[str, tuple[str, str, str | None]] = {
    "plan": ("say what a training run needs before it runs", "modeling_mdm.cli.plan", None),
    "encode": ("encode data once, before training", "modeling_mdm.cli.encode", "train"),
    "train": ("train a model end to end", "modeling_mdm.training.train", "train"),
    "evaluate": ("measure a model, told by a judge", "modeling_mdm.evaluation.evaluate", "eval"),
    "export": ("write a repository of the Hub", "modeling_mdm.cli.export", "train"),
}


def package_version() -> str:
    """Read the version of `modeling_mdm` without importing it, or what it imports."""
    package = find_spec("modeling_mdm")
    assert package is not None and package.origin is not None
    text = Path(package.origin).with_name("version.py").read_text(encoding="utf-8")
    assigned = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert assigned is not None
    return assigned[1]


def make_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="mdm",
        description="Images and text through one diffusion process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mdm {package_version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, title, add_options in (
        ("generate", "write pictures, words, or both", _generate_options),
        ("score", "rank texts by how well they fit a picture", _score_options),
        ("chat", "talk, about pictures if there are any", _chat_options),
    ):
        command = subparsers.add_parser(
            name, help=title, description=title.capitalize() + ".", allow_abbrev=False
        )
        command.add_argument("--checkpoint", required=True, help="folder or Hub id of a model")
        command.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
        command.add_argument(
            "--bf16",
            choices=("auto", "true", "false"),
            default="auto",
            help="compute in bfloat16; auto, the default: where the processor has it in hardware",
        )
        command.add_argument("--seed", type=int, default=0, help="of noise (default: 0)")
        command.add_argument("--json", action="store_true", help="print results as JSON")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
        add_options(command)
    for name, (title, *_) in MODULES.items():
        subparsers.add_parser(name, help=title, add_help=False)
    return parser


def _generate_options(command: argparse.ArgumentParser) -> None:
    _mode_option(command, ("image", "text", "joint"), "what is written", is_required=True)
    command.add_argument("--text", help="words that are given; each <mask> in them is written")
    command.add_argument("--image", help="file of a picture that is given")
    command.add_argument("--mask", help="picture of what to repaint in --image: white is repainted")
    command.add_argument("--class_label", type=int, help="class that is given")
    command.add_argument("--num_samples", type=_positive, default=1, help="(default: 1)")
    _sampler_options(command)
    command.add_argument("--guidance_scale", type=float, help="of both modalities; 1 is off")
    command.add_argument(
        "--guidance_window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="log-SNR in nats between which guidance acts",
    )
    command.add_argument("--joint_lead", type=float, help="log-SNR by which words lead a picture")
    command.add_argument(
        "--joint_overlap", type=float, help="share of time in common, in its place"
    )
    command.add_argument(
        "--num_restarts", type=int, help="how often to make noisy and denoise again"
    )
    command.add_argument("--restart_log_snr", type=float, help="log-SNR that a restart begins at")
    command.add_argument("--watch", action="store_true", help="show every step of one sample")
    command.add_argument("--output_dir", default="outputs", help="for pictures (default: outputs)")


def _score_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", nargs="+", required=True, help="texts to rank")
    command.add_argument("--image", help="file of the picture that they are to fit")
    command.add_argument("--num_evaluations", type=_positive, default=32, help="(default: 32)")


def _chat_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--image", help="file of a picture to begin with")
    command.add_argument("--system", help="what the model is told before the conversation")
    what = "what replies hold; the model's own choice (auto) if it has learned to choose"
    _mode_option(command, ("text", "image", "joint", "auto"), what, is_required=False)
    command.add_argument("--max_new_tokens", type=_positive, help="longest reply, in words")
    command.add_argument("--output_dir", default="outputs", help="for pictures (default: outputs)")
    _sampler_options(command)


def _mode_option(
    command: argparse.ArgumentParser, modes: tuple[str, ...], what: str, is_required: bool
) -> None:
    """Add `--generation_mode`, and `--write`, which is another name of it."""
    either = command.add_mutually_exclusive_group(required=is_required)
    either.add_argument("--generation_mode", choices=modes, help=what)
    either.add_argument(
        "--write", dest="generation_mode", choices=modes, help="another name of --generation_mode"
    )


def _sampler_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--num_inference_steps", type=_positive, default=30, help="(default: 30)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def check(chosen: argparse.Namespace) -> None:
    """Refuse what can be refused before seconds of imports.

    Raises:
        ValueError: if options do not belong together.
        FileNotFoundError: if a file or folder is missing.
        OSError: if pictures could not be written.
    """
    given = vars(chosen)
    if given.get("mask") and not chosen.image:
        raise ValueError("--mask says what to repaint in a picture: give one by --image.")
    if given.get("watch") and chosen.num_samples > 1:
        raise ValueError("--watch shows one sample: leave --num_samples out.")
    require_place("--checkpoint", chosen.checkpoint, owned=True)
    for name in ("image", "mask"):
        if given.get(name) is not None:
            require_file(f"--{name}", given[name])
    if "output_dir" in given:
        require_writable("--output_dir", chosen.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Raises:
        SystemExit: the command line was not understood, or help was asked for.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in MODULES:
        name, *words = argv
        _, module_name, extra = MODULES[name]

        def load_module() -> Steps:
            module = importlib.import_module(module_name)
            return partial(module.parse, prog=f"mdm {name}"), module.run

        return perform(f"mdm {name}", load_module, words, extra)
    chosen = make_parser().parse_args(argv)

    def run(chosen: argparse.Namespace) -> None:
        check(chosen)
        commands = importlib.import_module("modeling_mdm.cli.commands")
        getattr(commands, chosen.command)(chosen)

    return perform(f"mdm {chosen.command}", lambda: (lambda words: (chosen,), run), argv)
