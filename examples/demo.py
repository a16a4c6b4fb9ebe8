# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write pictures, captions, and both together with the shipped checkpoint.

    make demo

or, in an environment of your own::

    python examples/demo.py --output_dir outputs

It writes `joint.png` (pictures and captions that one diffusion process made together),
`text_to_image.png` (pictures for a few prompts) and `captioning.png` (captions for ten test
pictures that the model has not seen), and prints the words.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__)

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from mdm_cli.places import require_writable
from modeling_mdm import MDMForJointGeneration, MDMProcessor
from modeling_mdm.display.animation import trajectory_strip
from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.processor.image_processing_pil_mdm import open_picture
from modeling_mdm.training.command_line import read_command_line

EXAMPLES = Path(__file__).resolve().parent
STRIPS = 3
PROMPTS = (
    "a photo of a dress",
    "this is an ankle boot",
    "a photo of a handbag",
    "here you can see a pair of trousers",
    "a photo of a sneaker",
)


@dataclass
class DemoArguments:
    """What `examples/demo.py` reads and writes."""

    checkpoint: str = field(
        default=str(EXAMPLES / "checkpoints" / "mdm-fashion"),
        metadata={"help": "Folder with a trained model and its processor."},
    )
    pictures: str = field(
        default=str(EXAMPLES / "pictures" / "fashion_mnist"),
        metadata={"help": "Folder with the PNG pictures to caption."},
    )
    output_dir: str = field(default="outputs", metadata={"help": "Where the pictures go."})
    num_samples: int = field(default=20, metadata={"help": "How many joint samples."})
    num_inference_steps: int = field(default=36, metadata={"help": "Steps of the samplers."})
    guidance_scale: float = field(
        default=3.0, metadata={"help": "Guidance of text to image; 1 is off."}
    )
    seed: int = field(default=0, metadata={"help": "The same seed gives the same samples."})


class Pair(NamedTuple):
    """A picture and the words that belong to it."""

    text: str
    image: Image.Image


class Demo:
    """The model, its processor, and one method for each task."""

    def __init__(self, arguments: DemoArguments) -> None:
        self.arguments = arguments
        self.processor = MDMProcessor.from_pretrained(arguments.checkpoint)
        self.model = MDMForJointGeneration.from_pretrained(arguments.checkpoint).eval()

    def run(self, inputs, **options):
        """Run one diffusion process over `inputs`."""
        return self.model.generate(
            **inputs,
            num_inference_steps=self.arguments.num_inference_steps,
            generator=torch.Generator().manual_seed(self.arguments.seed),
            **options,
        )

    def generate(self, inputs, **options):
        """Run one diffusion process over `inputs` and decode what it wrote."""
        return self.processor.post_process(self.run(inputs, **options), inputs)

    def joint(self) -> list[Pair]:
        """Write pictures and their captions together, from nothing."""
        inputs = self.processor(generation_mode="joint", return_tensors="pt")
        samples = self.generate(inputs, num_return_sequences=self.arguments.num_samples)
        return [Pair(sample.text, sample.image) for sample in samples]

    def together(self) -> Image.Image:
        """Draw how the first joint samples become clear, picture and words side by side."""
        inputs = self.processor(generation_mode="joint", return_tensors="pt")
        out = self.run(inputs, num_return_sequences=STRIPS, output_trajectory=True)
        return trajectory_strip(out, self.processor, range(STRIPS))

    def text_to_image(self) -> list[Pair]:
        """Write two pictures for every prompt."""
        prompts = list(PROMPTS) * 2
        inputs = self.processor(text=prompts, generation_mode="image", return_tensors="pt")
        samples = self.generate(inputs, guidance_scale=self.arguments.guidance_scale)
        return [Pair(text, sample.image) for text, sample in zip(prompts, samples, strict=True)]

    def captioning(self, paths: list[Path]) -> list[Pair]:
        """Write a caption for every picture."""
        images = [open_picture(path) for path in paths]
        inputs = self.processor(images=images, generation_mode="text", return_tensors="pt")
        samples = self.generate(inputs)
        return [Pair(sample.text, image) for sample, image in zip(samples, images, strict=True)]


def require_files(arguments: DemoArguments) -> list[Path]:
    """List the pictures to caption.

    Raises:
        FileNotFoundError: the checkpoint or the pictures are not there.
    """
    if not (Path(arguments.checkpoint) / "config.json").is_file():
        raise FileNotFoundError(
            f"--checkpoint {arguments.checkpoint}: no model there (it has no config.json). Restore "
            "the one of the repository with `git checkout -- examples/checkpoints`, or train one "
            "with examples/train.py and name its folder."
        )
    paths = sorted(Path(arguments.pictures).glob("*.png"))
    if not paths:
        raise FileNotFoundError(
            f"--pictures {arguments.pictures}: no PNG file there. Restore those of the repository "
            "with `git checkout -- examples/pictures`, or name a folder that holds some."
        )
    return paths


def parse(argv: Sequence[str]) -> tuple[DemoArguments]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    return read_command_line((DemoArguments,), argv, __doc__)


def run(arguments: DemoArguments) -> None:
    """Run the three tasks, print their words and save one contact sheet of each."""
    require_writable("--output_dir", arguments.output_dir)
    paths = require_files(arguments)
    start = time.perf_counter()
    demo = Demo(arguments)
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tasks = {
        "joint": ("Pictures and captions, written together", demo.joint),
        "text_to_image": ("Pictures for prompts", demo.text_to_image),
        "captioning": ("Captions for test pictures", lambda: demo.captioning(paths)),
    }
    for name, (title, write) in tasks.items():
        pairs = write()
        path = output_dir / f"{name}.png"
        contact_sheet(pairs, columns=5).save(path)
        print(f"\n{title} -> {path}")
        for number, pair in enumerate(pairs, 1):
            print(f"  {number:2d}. {pair.text}")
    path = output_dir / "together.png"
    demo.together().save(path)
    print(f"\nThe first of them, step by step -> {path}")
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")
