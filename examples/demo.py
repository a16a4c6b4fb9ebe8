# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write pictures, captions, and both together with the shipped checkpoints.

    make demo

or, in an environment of your own::

    python examples/demo.py --output_dir outputs

Of several checkpoints each has a folder of its own, the colour one first. They write
`joint.png` (pictures and captions that one diffusion process made together), `together.png` (how
the first of them become clear), `text_to_image.png` (pictures for a few prompts), `captioning.png`
(captions for test pictures that the model has not seen); the colour one also `edits.png` (a picture
and a request in, a picture out) and answers to questions. The words are printed. `--checkpoint`
shows one model alone, directly in `output_dir`.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__)

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class Show:
    """What a checkpoint is asked.

    pictures: folder of PNG files. prompts: two pictures are drawn of each. edits, questions: about
    pictures, by the beginning of their file's name. columns: of the sheets.
    """

    checkpoint: str
    pictures: str
    prompts: tuple[str, ...]
    edits: tuple[tuple[str, str], ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    columns: int = 5


FASHION = Show(
    str(EXAMPLES / "checkpoints" / "mdm-fashion"),
    str(EXAMPLES / "pictures" / "fashion_mnist"),
    (
        "a photo of a dress",
        "this is an ankle boot",
        "a photo of a handbag",
        "here you can see a pair of trousers",
        "a photo of a sneaker",
    ),
)
EMOJI = Show(
    str(EXAMPLES / "checkpoints" / "mdm-emoji"),
    str(EXAMPLES / "pictures" / "emoji"),
    (
        "a fire engine on a yellow background",
        "three broken hearts",
        "a rocket to the left of a taxi",
        "two camels on a blue background",
        "a kissing face above a balloon, flat style",
    ),
    edits=(
        ("9", "change the background to blue"),
        ("4", "change the background to green"),
        ("3", "remove one woman's hat"),
        ("0", "swap the camel and the fire engine"),
        ("6", "replace the camels with balloons"),
    ),
    questions=(
        ("3", "how many women's hats are there?"),
        ("1", "which colour is the background?"),
        ("7", "is the broken heart above or below the face with steam from nose?"),
        ("5", "what are these?"),
        ("9", "are there two cows?"),
    ),
)
# Those whose weights are there, the colour one first.
SHOWS = tuple(show for show in (EMOJI, FASHION) if Path(show.checkpoint).is_dir())


@dataclass
class DemoArguments:
    """What `examples/demo.py` reads and writes."""

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder with a trained model and its processor; all shipped if None."},
    )
    pictures: str | None = field(
        default=None,
        metadata={"help": "Folder with PNG pictures to caption; the model's own if None."},
    )
    output_dir: str = field(default="outputs", metadata={"help": "Where the pictures go."})
    num_samples: int = field(default=20, metadata={"help": "How many joint samples."})
    num_inference_steps: int = field(default=36, metadata={"help": "Steps of the samplers."})
    guidance_scale: float = field(
        default=3.0, metadata={"help": "Guidance of text to image; 1 is off."}
    )
    seed: int = field(default=0, metadata={"help": "The same seed gives the same samples."})

    @property
    def shows(self) -> list[tuple[Show, Path]]:
        """What is shown, and the folder that it goes to."""
        output_dir = Path(self.output_dir)
        if self.checkpoint is not None:
            place = Path(self.checkpoint).resolve()
            known = next((one for one in SHOWS if Path(one.checkpoint) == place), FASHION)
            return [(self._own(replace(known, checkpoint=self.checkpoint)), output_dir)]
        if len(SHOWS) < 2:
            return [(self._own(show), output_dir) for show in SHOWS]
        return [(self._own(show), output_dir / Path(show.checkpoint).name) for show in SHOWS]

    def _own(self, show: Show) -> Show:
        if self.pictures is None:
            return show
        return replace(show, pictures=self.pictures, edits=(), questions=())


class Pair(NamedTuple):
    """A picture and the words that belong to it."""

    text: str
    image: Image.Image


class Demo:
    """The model, its processor, and one method for each task."""

    def __init__(self, arguments: DemoArguments, show: Show) -> None:
        self.arguments, self.show = arguments, show
        self.paths = sorted(Path(show.pictures).glob("*.png"))
        self.processor = MDMProcessor.from_pretrained(show.checkpoint)
        self.model = MDMForJointGeneration.from_pretrained(show.checkpoint).eval()

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
        prompts = list(self.show.prompts) * 2
        inputs = self.processor(text=prompts, generation_mode="image", return_tensors="pt")
        samples = self.generate(inputs, guidance_scale=self.arguments.guidance_scale)
        return [Pair(text, sample.image) for text, sample in zip(prompts, samples, strict=True)]

    def captioning(self) -> list[Pair]:
        """Write a caption for every picture."""
        images = [open_picture(path) for path in self.paths]
        inputs = self.processor(images=images, generation_mode="text", return_tensors="pt")
        samples = self.generate(inputs)
        return [Pair(sample.text, image) for sample, image in zip(samples, images, strict=True)]

    def ask(
        self, asked: Sequence[tuple[str, str]], mode: str, **options
    ) -> tuple[list[Image.Image], list]:
        """Say something about pictures, each named by the beginning of its file's name.

        Returns:
            the pictures, and a reply to each.
        """
        named = {path.stem.split("_")[0]: path for path in self.paths}
        images = [open_picture(named[name]) for name, _ in asked]
        talks = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": image}, {"type": "text", "text": words}],
                }
            ]
            for image, (_, words) in zip(images, asked, strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            talks,
            generation_mode=mode,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        return images, self.generate(inputs, **options)

    def edits(self) -> list[Pair]:
        """Change pictures as they are asked to be: what was given, then what came of it."""
        # Guidance moves away from the given picture, whose rest is to stay.
        images, samples = self.ask(self.show.edits, "image", guidance_scale={"image": 1.0})
        given = [Pair("given", image) for image in images]
        words = [request for _, request in self.show.edits]
        return [*given, *(Pair(w, s.image) for w, s in zip(words, samples, strict=True))]

    def questions(self) -> list[Pair]:
        """Answer questions about pictures."""
        images, samples = self.ask(self.show.questions, "text")
        said = zip(self.show.questions, samples, images, strict=True)
        return [Pair(f"{asked} - {sample.text}", image) for (_, asked), sample, image in said]

    @property
    def tasks(self) -> dict[str, tuple[str, Callable[[], list[Pair]]]]:
        """Name, title and work of what is written into sheets."""
        found = {
            "joint": ("Pictures and captions, written together", self.joint),
            "text_to_image": ("Pictures for prompts", self.text_to_image),
            "captioning": ("Captions for test pictures", self.captioning),
        }
        if self.show.edits:
            found["edits"] = ("Pictures, and what was asked to be changed", self.edits)
        if self.show.questions:
            found["questions"] = ("Questions about test pictures", self.questions)
        return found


def require_files(show: Show) -> None:
    """Let a show pass whose checkpoint and pictures are there.

    Raises:
        FileNotFoundError: otherwise.
    """
    if not (Path(show.checkpoint) / "config.json").is_file():
        raise FileNotFoundError(
            f"--checkpoint {show.checkpoint}: no model there (it has no config.json). Restore "
            "the one of the repository with `git checkout -- examples/checkpoints`, or train one "
            "with examples/train.py and name its folder."
        )
    if not any(Path(show.pictures).glob("*.png")):
        raise FileNotFoundError(
            f"--pictures {show.pictures}: no PNG file there. Restore those of the repository "
            "with `git checkout -- examples/pictures`, or name a folder that holds some."
        )


def parse(argv: Sequence[str]) -> tuple[DemoArguments]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    return read_command_line((DemoArguments,), argv, __doc__)


def present(demo: Demo, output_dir: Path) -> None:
    """Run the tasks, print their words and save one contact sheet of each."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, (title, write) in demo.tasks.items():
        pairs = write()
        path = output_dir / f"{name}.png"
        contact_sheet(pairs, columns=demo.show.columns).save(path)
        print(f"\n{title} -> {path}")
        for number, pair in enumerate(pairs, 1):
            print(f"  {number:2d}. {pair.text}")
    path = output_dir / "together.png"
    demo.together().save(path)
    print(f"\nThe first of them, step by step -> {path}")


def run(arguments: DemoArguments) -> None:
    """Show one checkpoint after the other."""
    require_writable("--output_dir", arguments.output_dir)
    start = time.perf_counter()
    for show, _ in arguments.shows:
        require_files(show)
    for show, output_dir in arguments.shows:
        print(f"\n{Path(show.checkpoint).name}")
        present(Demo(arguments, show), output_dir)
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")
