# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Complete what is missing: the lower half of pictures, and one word of a caption.

    python examples/inpainting.py --output_dir outputs

It writes `inpainting.png` (a test picture, what the model sees of it, what it makes of that) and
`infill.png` (test pictures under a caption with one word of the model's), and prints the words.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__)

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from mdm_cli.places import require_folder, require_writable
from modeling_mdm import MDMForJointGeneration, MDMProcessor, MDMSample
from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.processor.image_processing_pil_mdm import open_picture
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained

EXAMPLES = Path(__file__).resolve().parent
RESTART_LOG_SNR = -2.0


@dataclass
class InpaintingArguments:
    """What `examples/inpainting.py` reads and writes."""

    checkpoint: str = field(
        default=str(EXAMPLES / "checkpoints" / "mdm-fashion"),
        metadata={"help": "Folder with a trained model and its processor."},
    )
    pictures: str = field(
        default=str(EXAMPLES / "pictures" / "fashion_mnist"),
        metadata={"help": "Folder with PNG pictures."},
    )
    text: str = field(
        default="here you can see a <mask>",
        metadata={"help": "A caption; every <mask> in it is one word to be written."},
    )
    output_dir: str = field(default="outputs", metadata={"help": "Where the pictures go."})
    num_inference_steps: int = field(default=36, metadata={"help": "Steps of the samplers."})
    num_restarts: int = field(
        default=3, metadata={"help": "How often repainted pictures become noisy again."}
    )
    seed: int = field(default=0, metadata={"help": "The same seed gives the same samples."})


def parse(argv: Sequence[str]) -> tuple[InpaintingArguments]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    return read_command_line((InpaintingArguments,), argv, __doc__)


def read_pictures(folder: str) -> list[Image.Image]:
    """Read the PNG pictures of a folder in grey.

    Raises:
        FileNotFoundError: if there are none.
    """
    require_folder("--pictures", folder)
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"--pictures={folder!r} holds no PNG file: name another folder.")
    return [open_picture(path).convert("L") for path in paths]


def run(arguments: InpaintingArguments) -> None:
    """Repaint half of every picture, and fill in one word for each."""
    require_writable("--output_dir", arguments.output_dir)
    images = read_pictures(arguments.pictures)
    processor = load_pretrained(MDMProcessor, "--checkpoint", arguments.checkpoint)
    model = load_pretrained(MDMForJointGeneration, "--checkpoint", arguments.checkpoint).eval()
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    def complete(options=None, **content) -> list[MDMSample]:
        inputs = processor(**content, return_tensors="pt")
        out = model.generate(
            **inputs,
            num_inference_steps=arguments.num_inference_steps,
            generator=torch.Generator().manual_seed(arguments.seed),
            **(options or {}),
        )
        return processor.post_process(out, inputs)

    masks, seen = [], []
    for image in images:
        width, height = image.size
        mask = torch.zeros(height, width)
        mask[height // 2 :] = 1
        masks.append(mask)
        hidden = image.copy()
        hidden.paste(128, (0, height // 2, width, height))
        seen.append(hidden)
    options = {"num_restarts": arguments.num_restarts}
    if arguments.num_restarts:
        options["restart_log_snr"] = {"image": RESTART_LOG_SNR}
    repainted = complete(options, images=images, image_mask=masks, generation_mode="image")
    rows = [(images, "test picture"), (seen, "given"), ([s.image for s in repainted], "completed")]
    cells = [MDMSample(text=title, image=image) for row, title in rows for image in row]
    contact_sheet(cells, columns=len(images), picture_size=84).save(output_dir / "inpainting.png")

    texts = [arguments.text] * len(images)
    filled = complete(text=texts, images=images, generation_mode="text")
    cells = [MDMSample(text=s.text, image=image) for s, image in zip(filled, images, strict=True)]
    contact_sheet(cells, columns=5).save(output_dir / "infill.png")
    print(f"{output_dir / 'inpainting.png'} and {output_dir / 'infill.png'} written")
    for number, sample in enumerate(filled, 1):
        print(f"  {number:2d}. {sample.text}")
