# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A web page: words, a picture, a mask and a class in, in any combination; picture and words out.

    pip install -e ".[app]"
    python examples/app.py  # or --checkpoint examples/checkpoints/mdm-fashion, or your own

Every step of the diffusion process is shown. A picture that is given is continued by new words or
another picture, or repainted where the brush has touched it; each `<mask>` in a text is one word to
be written. The page needs no other server: neither fonts nor scripts come from the internet.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="app")

import html
import io
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from modeling_mdm import MDMForJointGeneration, MDMProcessor, MDMSample, MDMStreamer
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.matching import check_processor
from modeling_mdm.processor.image_processing_pil_mdm import upright
from modeling_mdm.solvers import SOLVERS
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained, require_device

EXAMPLES = Path(__file__).resolve().parent
COLOUR, GREY = (EXAMPLES / "checkpoints" / name for name in ("mdm-emoji", "mdm-fashion"))
CANVAS = 280  # pixels; smaller pictures are shown enlarged, so that a brush can paint on them
WRITE = {"A picture": "image", "Words": "text", "Both": "joint", "As the model chooses": "auto"}
OWN_SOLVER, NO_CLASS = "the model's own", "none"
OUTPUTS = ("picture", "words", "state", "gallery", "finished")
TITLE = """# Multi-Modal Diffusion Mamba
Picture and words, written together in one diffusion process."""
SHIPPED = COLOUR if COLOUR.is_dir() else GREY
# What to try: words that a shipped model knows, and pictures that it has not seen.
PROMPTS = {
    COLOUR: ("a fire engine on a yellow background", "three broken hearts", "two camels"),
    GREY: ("a photo of a dress", "this is an ankle boot", "a handbag from the shop"),
}
PICTURES = {COLOUR: "emoji", GREY: "fashion_mnist"}
CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
#title {text-align: center; padding: 0.6rem 0 0.2rem}
#title h1 {font-size: 2rem; margin: 0}
#picture img, #finished img {image-rendering: pixelated; background: #000}
#picture img {width: 100% !important; height: 100% !important; object-fit: contain}
#words textarea {font-size: 1.25rem; text-align: center}
#finished .caption-label {font-size: 0.75rem; max-width: 94%; left: 3%; white-space: normal}
.progress {height: 6px; border-radius: 3px; background: var(--border-color-primary)}
.progress div {height: 100%; border-radius: 3px; background: var(--color-accent)}
.steps {font-size: 0.85rem; color: var(--body-text-color-subdued); min-height: 1.4em}
"""


@dataclass
class AppArguments:
    """Which model is served, and where."""

    checkpoint: str = field(
        default=str(SHIPPED), metadata={"help": "Folder or Hub id of a model and its processor."}
    )
    captions: str | None = field(
        default=None,
        metadata={
            "help": "JSON table that names the classes, such as examples/captions/digits.json; "
            "None: numbers, or for the shipped grey checkpoint its own."
        },
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    server_name: str = field(
        default="127.0.0.1", metadata={"help": "Address to serve; 0.0.0.0 lets other machines in."}
    )
    server_port: int = field(default=7860, metadata={"help": "Port to serve."})

    def __post_init__(self) -> None:
        if self.captions is None and Path(self.checkpoint).resolve() == GREY:
            self.captions = str(EXAMPLES / "captions" / "fashion_mnist.json")


@dataclass
class Wish:
    """What one press of the button asks for.

    generation_mode: image, text or joint; None where the model chooses. mask: 1 where the picture
    is repainted, at the size that the model sees. The rest is as in `MDMProcessor` and `generate`.
    """

    generation_mode: str | None
    text: str | None = None
    picture: Image.Image | None = None
    mask: np.ndarray | None = None
    class_label: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """Arguments of the processor: what is there."""
        passed = {
            "text": self.text,
            "images": self.picture,
            "image_mask": self.mask,
            "class_labels": self.class_label,
        }
        given = {name: [value] for name, value in passed.items() if value is not None}
        return {"generation_mode": self.generation_mode, **given}


@dataclass
class Frame:
    """A sample as it is after `step` of `num_steps` steps; finished where they are equal."""

    step: int
    num_steps: int
    sample: MDMSample


class Drafts(MDMStreamer):
    """Keeps the latest draft instead of drawing it."""

    def __init__(self, processor: MDMProcessor) -> None:
        super().__init__(processor, skip_prompt=True, file=io.StringIO())
        self.latest = MDMSample()

    def show(self, sample: MDMSample) -> None:
        """Take the place of drawing."""
        self.latest = sample


class Studio:
    """A model and its processor, as the page uses them."""

    def __init__(self, arguments: AppArguments) -> None:
        self.place = Path(arguments.checkpoint).resolve()
        require_device("--device", arguments.device)
        self.processor = load_pretrained(MDMProcessor, "--checkpoint", arguments.checkpoint)
        model = load_pretrained(MDMForJointGeneration, "--checkpoint", arguments.checkpoint)
        check_processor(self.processor, model.config)
        self.model = model.to(arguments.device).eval()
        if arguments.captions is None:
            self.classes = [f"class {n}" for n in range(model.config.num_classes or 0)]
        else:
            table = CaptionTable.from_json(arguments.captions)
            self.classes = [names[0] for names in table.labels]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures that the model sees."""
        size = self.processor.image_processor.size
        return size.width, size.height

    @property
    def prompts(self) -> list[str]:
        """Words to try."""
        return [*PROMPTS.get(self.place, ())]

    @property
    def pictures(self) -> list[Path]:
        """Pictures to try."""
        if self.place not in PICTURES:
            return []
        return sorted((EXAMPLES / "pictures" / PICTURES[self.place]).glob("*.png"))

    @property
    def choices(self) -> list[str]:
        """What may be asked to be written; only a model with a mode head can choose by itself."""
        chooses = self.model.config.use_mode_head
        return [name for name, mode in WRITE.items() if chooses or mode != "auto"]

    def frames(self, wish: Wish) -> Iterator[Frame]:
        """Write one sample, step by step; who stops iterating stops the process.

        Raises:
            ValueError: what is wished contradicts itself, or does not fit the model.
        """
        inputs = self.processor(**wish.request(), return_tensors="pt").to(self.model.device)
        drafts, steps, stopped = Drafts(self.processor), queue.SimpleQueue(), threading.Event()

        def on_step(info: Any) -> bool:
            # The last step's draft is left out: the finished sample is to follow at once.
            if info.step + 1 < info.num_steps:
                steps.put(Frame(info.step + 1, info.num_steps, drafts.latest))
            return stopped.is_set()

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                self.model.generate,
                **inputs,
                **wish.options,
                generator=torch.Generator().manual_seed(wish.seed),
                streamer=drafts,
                callback_on_step_end=on_step,
                show_progress=False,
            )
            running.add_done_callback(lambda _: steps.put(None))
            last = 0
            try:
                for frame in iter(steps.get, None):
                    last = frame.step
                    yield frame
                sample = self.processor.post_process(running.result(), inputs)[0]
                yield Frame(last + 1, last + 1, sample)
            finally:
                stopped.set()

    def read(self, asked: dict[str, Any]) -> Wish:
        """Turn what the page's controls hold, by name, into a wish."""
        picture, mask = self.read_editor(asked["editor"])
        options = {
            "num_inference_steps": int(asked["steps"]),
            "guidance_scale": {"image": asked["image_guidance"], "text": asked["text_guidance"]},
        }
        if asked["solver"] != OWN_SOLVER:
            options["solver"] = asked["solver"]
        mode, label = WRITE[asked["write"]], asked["class"]
        if mode == "auto":
            mode, options["generation_mode"] = None, "auto"
        return Wish(
            generation_mode=mode,
            text=asked["text"] or None,
            picture=picture,
            mask=mask,
            class_label=None if label == NO_CLASS else self.classes.index(label),
            seed=int(asked["seed"] or 0),
            options=options,
        )

    def read_editor(
        self, editor: dict[str, Any] | None
    ) -> tuple[Image.Image | None, np.ndarray | None]:
        """Take the picture and the painted mask from what Gradio's editor holds.

        Returns:
            the picture, None if there is none; 1 where a brush has touched (height, width), None
            if it has touched nothing.
        """
        editor = editor or {}
        picture, mask = editor.get("background"), None
        if picture is not None:
            picture = upright(picture)
            is_blank = picture.mode == "RGBA" and not picture.getchannel("A").getbbox()
            picture = None if is_blank else self._shrunk(picture.convert("RGB"))
        for layer in editor.get("layers") or []:
            alpha = layer.convert("RGBA").getchannel("A")
            touched = np.asarray(ImageOps.fit(alpha, self.size, Image.Resampling.BOX)) > 0
            mask = touched if mask is None else mask | touched
        return picture, None if mask is None or not mask.any() else mask.astype(np.int64)

    def _shrunk(self, picture: Image.Image) -> Image.Image:
        """Undo `enlarged` exactly; the processor fits pictures of other sizes."""
        width, height = self.size
        if picture.width % width or picture.height % height:
            return picture
        return ImageOps.fit(picture, self.size, Image.Resampling.BOX)


def enlarged(editor: dict[str, Any] | None) -> dict[str, Any] | None:
    """Enlarge a small picture in the editor by a whole factor."""
    picture = (editor or {}).get("background")
    picture = None if picture is None else upright(picture)
    if picture is None or (factor := CANVAS // max(picture.size)) < 2:
        return editor
    size = (picture.width * factor, picture.height * factor)
    picture = picture.resize(size, Image.Resampling.NEAREST)
    return {"background": picture, "layers": [], "composite": picture}


def progress(frame: Frame, number: int, count: int) -> str:
    """Draw how far a sample has come."""
    is_done = frame.step == frame.num_steps
    words = "Done" if is_done else f"Step {frame.step} of {frame.num_steps}"
    which = f", sample {number} of {count}" if count > 1 and not is_done else ""
    share = 100 * frame.step / frame.num_steps
    bar = f'<div class="progress"><div style="width: {share:.0f}%"></div></div>'
    return f'{bar}<div class="steps">{words}{which}</div>'


def perform(
    studio: Studio, asked: dict[str, Any], finished: list[tuple[Image.Image, str]]
) -> Iterator[dict[str, Any]]:
    """Write the samples that the page asks for, one after another.

    Args:
        studio: writes them. asked: what each control of the page holds, by name.
        finished: earlier samples, which the new ones are put before.

    Returns:
        after each step what changes on the page, by name.
    """
    wish, count = studio.read(asked), int(asked["count"])
    for number in range(1, count + 1):
        for frame in studio.frames(wish):
            state = progress(frame, number, count)
            yield {"picture": frame.sample.image, "words": frame.sample.text, "state": state}
        if (image := frame.sample.image or wish.picture) is not None:
            finished = [(image, frame.sample.text or wish.text or ""), *finished]
        yield {"finished": finished, "gallery": finished}
        wish.seed += 1


def make_controls(gr: Any, studio: Studio) -> dict[str, Any]:
    """Lay out what is given, and the settings."""
    own = studio.model.generation_config
    usual = own.guidance_scale or {}
    usual = usual if isinstance(usual, dict) else dict.fromkeys(("image", "text"), usual)
    write = gr.Radio(studio.choices, value="A picture", label="To write", elem_id="write")
    text = gr.Textbox(
        label="Given words",
        placeholder="<mask> in them is a word to be written",
        elem_id="prompt",
    )
    if studio.prompts:
        gr.Examples([[prompt] for prompt in studio.prompts], text, label="For example")
    editor = gr.ImageEditor(
        type="pil",
        label="Given picture",
        placeholder="Drop a picture here,\nthen paint over\nwhat is to be repainted",
        sources=["upload", "clipboard"],
        brush=gr.Brush(20, colors=["#6366f1"], color_mode="fixed"),
        transforms=[],
        layers=False,
        canvas_size=(CANVAS, CANVAS),
        height=CANVAS + 64,
        format="png",
        elem_id="editor",
    )
    if studio.pictures:
        shown = [[enlarged({"background": Image.open(path)})] for path in studio.pictures]
        with gr.Column(elem_id="pictures"):
            gr.Examples(shown, editor, label="Pictures to try", examples_per_page=10)
    label = gr.Dropdown(
        [NO_CLASS, *studio.classes],
        value=NO_CLASS,
        label="Given class",
        visible=bool(studio.classes),
    )
    with gr.Accordion("Settings", open=False):
        return {
            "write": write,
            "text": text,
            "editor": editor,
            "class": label,
            "steps": gr.Slider(1, 100, own.num_inference_steps or 30, step=1, label="Steps"),
            "image_guidance": gr.Slider(
                1, 10, usual.get("image", 1), step=0.5, label="Guidance of the picture"
            ),
            "text_guidance": gr.Slider(
                1, 10, usual.get("text", 1), step=0.5, label="Guidance of the words"
            ),
            "solver": gr.Dropdown([OWN_SOLVER, *SOLVERS], value=OWN_SOLVER, label="Solver"),
            "count": gr.Slider(1, 12, 1, step=1, label="Samples"),
            "seed": gr.Number(0, label="Seed", precision=0, minimum=0),
        }


def make_results(gr: Any) -> dict[str, Any]:
    """Lay out the sample as it becomes clear, the buttons, and what is finished."""
    shown = {
        "picture": gr.Image(
            label="Picture",
            format="png",
            height=336,
            buttons=["download"],
            interactive=False,
            elem_id="picture",
        ),
        "words": gr.Textbox(label="Words", interactive=False, elem_id="words"),
        "state": gr.HTML(elem_id="state"),
    }
    with gr.Row():
        shown["go"] = gr.Button("Write", variant="primary", elem_id="go")
        shown["stop"] = gr.Button("Stop", elem_id="stop")
    shown["gallery"] = gr.Gallery(
        label="Finished",
        columns=3,
        fit_columns=False,
        height=CANVAS + 64,
        object_fit="contain",
        format="png",
        buttons=["download"],
        elem_id="finished",
    )
    return shown


def make_page(studio: Studio) -> Any:
    """Lay the page out and connect it; returns Gradio's Blocks."""
    import gradio as gr

    with gr.Blocks(title="MDM", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column():
                controls = make_controls(gr, studio)
            with gr.Column():
                shown = make_results(gr)
        shown["finished"] = gr.State([])
        outputs = {name: shown[name] for name in OUTPUTS}

        def press(*values: Any) -> Iterator[dict[Any, Any]]:
            *held, finished = values
            try:
                for changes in perform(studio, dict(zip(controls, held, strict=True)), finished):
                    yield {outputs[name]: value for name, value in changes.items()}
            except ValueError as error:
                # Gradio shows HTML, and a message may name `<mask>`.
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        running = gr.on(
            [shown["go"].click, controls["text"].submit],
            press,
            [*controls.values(), shown["finished"]],
            list(outputs.values()),
            **quiet,
        )
        shown["stop"].click(None, cancels=[running], **quiet)
        controls["editor"].upload(enlarged, controls["editor"], controls["editor"], **quiet)
    return page


def parse(argv: Sequence[str]) -> tuple[AppArguments]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    return read_command_line((AppArguments,), argv, __doc__)


def run(arguments: AppArguments) -> None:
    """Serve the page until the process is interrupted."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read while gradio is imported
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    make_page(Studio(arguments)).launch(
        server_name=arguments.server_name,
        server_port=arguments.server_port,
        theme=gr.themes.Soft(primary_hue="indigo", **fonts),
        css=CSS,
        footer_links=[],
        ssr_mode=False,
    )
