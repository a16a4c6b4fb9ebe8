# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm`: write, score and talk about pictures and words from the command line.

Results go to standard output, progress and errors to standard error. The exit status is 0 where all
went well, 1 after a failure that one line names, 2 where the command was not understood.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from modeling_mdm.cli import commands
from modeling_mdm.version import __version__

EXAMPLES = """examples:
  mdm generate --checkpoint FOLDER --write joint --num_samples 4 --output_dir outputs
  mdm generate --checkpoint FOLDER --write image --text "a photo of a dress" --guidance_scale 3
  mdm generate --checkpoint FOLDER --write text --image picture.png --json
  mdm generate --checkpoint FOLDER --write image --image picture.png --mask mask.png
  mdm score --checkpoint FOLDER --image picture.png --text "a photo of a bag" "a photo of a dress"
  mdm chat --checkpoint FOLDER --image picture.png
"""


def make_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="mdm",
        description="Images and text through one diffusion process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mdm {__version__}")
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
        command.add_argument("--seed", type=int, default=0, help="of noise (default: 0)")
        command.add_argument("--json", action="store_true", help="print results as JSON")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
        add_options(command)
    return parser


def _generate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--write", required=True, choices=("image", "text", "joint"))
    command.add_argument("--text", help="words that are given; each <mask> in them is written")
    command.add_argument("--image", help="file of a picture that is given")
    command.add_argument("--mask", help="picture of what to repaint in --image: white is repainted")
    command.add_argument("--class_label", type=int, help="class that is given")
    command.add_argument("--num_samples", type=_positive, default=1, help="(default: 1)")
    _sampler_options(command)
    command.add_argument("--guidance_scale", type=float, help="of both modalities; 1 is off")
    command.add_argument("--watch", action="store_true", help="show every step of one sample")
    command.add_argument("--output_dir", default="outputs", help="for pictures (default: outputs)")


def _score_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", nargs="+", required=True, help="texts to rank")
    command.add_argument("--image", help="file of the picture that they are to fit")
    command.add_argument("--num_evaluations", type=_positive, default=32, help="(default: 32)")


def _chat_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--image", help="file of a picture to begin with")
    command.add_argument("--system", help="what the model is told before the conversation")
    command.add_argument("--max_new_tokens", type=_positive, help="longest reply, in words")
    _sampler_options(command)


def _sampler_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--num_inference_steps", type=_positive, default=30, help="(default: 30)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    chosen = make_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = getattr(commands, chosen.command)
    try:
        run(chosen)
    except KeyboardInterrupt:
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mdm {chosen.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
