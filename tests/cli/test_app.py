# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The web page: its functions with a tiny model, and the page itself in a headless Chromium."""

import importlib.util
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import CAPTIONS, ROOT, load_script, make_config, make_processor

from modeling_mdm import MDMForJointGeneration, MDMProcessor
from modeling_mdm.generation_regions import GENERATION_MODES

SCRIPT = ROOT / "examples" / "app.py"
CHECKPOINT = ROOT / "examples" / "checkpoints" / "mdm-fashion"
BOOT = ROOT / "examples" / "pictures" / "fashion_mnist" / "9_ankle_boot.png"
STEPS = 4
AUTO = "As the model chooses"


@pytest.fixture(scope="module")
def app():
    return load_script(SCRIPT)


def save_checkpoint(folder, chosen_mode=None):
    """A tiny model, with a mode head if it is to choose one."""
    torch.manual_seed(0)
    processor = make_processor()
    processor.save_pretrained(folder)
    config = make_config(len(processor.tokenizer))
    config.use_mode_head = chosen_mode is not None
    model = MDMForJointGeneration(config)
    if chosen_mode is not None:
        set_choice(model, chosen_mode)
    model.save_pretrained(folder)


@torch.no_grad()
def set_choice(model, mode):
    """Let the mode head choose one mode, whatever it reads."""
    model.mode_head.out_proj.weight.zero_()
    choice = torch.tensor([float(name == mode) for name in GENERATION_MODES])
    model.mode_head.out_proj.bias.copy_(choice)


def open_studio(app, folder, chosen_mode=None):
    save_checkpoint(folder, chosen_mode)
    return app.Studio(app.AppArguments(checkpoint=str(folder), captions=str(CAPTIONS)))


@pytest.fixture(scope="module")
def studio(app, tmp_path_factory):
    return open_studio(app, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def choosing_studio(app, tmp_path_factory):
    """With a mode head."""
    return open_studio(app, tmp_path_factory.mktemp("choosing"), "joint")


def held(app, **changed):
    """What the page's controls hold, but for what a test changes."""
    return {
        "write": "Both",
        "text": "",
        "editor": None,
        "class": app.NO_CLASS,
        "steps": STEPS,
        "image_guidance": 1,
        "text_guidance": 1,
        "solver": app.OWN_SOLVER,
        "count": 1,
        "seed": 3,
        **changed,
    }


def noise_picture(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(pixels)


def painted(size, box):
    """A layer of the editor, transparent but for a box that the brush has painted."""
    layer = Image.new("RGBA", (size, size))
    layer.paste((99, 102, 241, 255), box)
    return layer


# --- without a browser ---


def test_every_step_is_shown_and_the_last_is_what_generate_writes(app, studio):
    frames = list(studio.frames(studio.read(held(app, text="a zero"))))
    assert [frame.step for frame in frames] == list(range(1, STEPS + 1))
    assert {frame.num_steps for frame in frames} == {STEPS}
    assert all(frame.sample.image.size == (8, 8) for frame in frames)
    assert len({frame.sample.image.tobytes() for frame in frames}) == STEPS
    inputs = studio.processor(text=["a zero"], generate="joint", return_tensors="pt")
    out = studio.model.generate(
        **inputs,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        show_progress=False,
    )
    (expected,) = studio.processor.post_process(out, inputs)
    assert frames[-1].sample.text == expected.text
    assert frames[-1].sample.image.tobytes() == expected.image.tobytes()


def test_who_stops_looking_stops_the_process(app, studio, monkeypatch):
    evaluations, denoise = [], type(studio.model).denoise

    def counted(*arguments, **keywords):
        evaluations.append(1)
        return denoise(*arguments, **keywords)

    monkeypatch.setattr(type(studio.model), "denoise", counted)
    frames = studio.frames(studio.read(held(app, steps=1000)))
    next(frames)
    frames.close()
    assert 0 < len(evaluations) < 500


def test_controls_become_a_wish(app, studio):
    controls = {"text": "a two", "solver": "ddim", "image_guidance": 3, "class": studio.classes[2]}
    wish = studio.read(held(app, write="A picture", **controls))
    assert wish.request() == {"generation_mode": "image", "text": ["a two"], "class_labels": [2]}
    assert wish.options == {
        "num_inference_steps": STEPS,
        "guidance_scale": {"image": 3, "text": 1},
        "solver": "ddim",
    }
    assert studio.read(held(app)).request() == {"generation_mode": "joint"}


def test_only_a_model_with_a_mode_head_is_asked_to_choose(app, studio, choosing_studio):
    assert studio.choices == ["A picture", "Words", "Both"]
    assert choosing_studio.choices == [*studio.choices, AUTO]
    wish = choosing_studio.read(held(app, write=AUTO, text="a two"))
    assert wish.request() == {"generation_mode": None, "text": ["a two"]}
    assert wish.options["generation_mode"] == "auto"


@pytest.mark.parametrize("mode", GENERATION_MODES)
def test_what_the_model_chooses_is_written(app, choosing_studio, mode):
    set_choice(choosing_studio.model, mode)
    asked = held(app, write=AUTO, text="a zero", editor={"background": noise_picture(8)})
    *frames, last = choosing_studio.frames(choosing_studio.read(asked))
    for frame in (*frames, last):
        assert (frame.sample.text is None) == (mode == "image")
        assert (frame.sample.image is None) == (mode == "text")
    assert len(frames) + 1 == STEPS
    # Words that are to be written in place leave nothing to choose.
    *_, infilled = choosing_studio.frames(
        choosing_studio.read(held(app, write=AUTO, text="a <mask>"))
    )
    assert infilled.sample.text and infilled.sample.image is None


def test_small_pictures_grow_in_the_editor_and_come_back_as_they_were(app, studio):
    picture = noise_picture(8)
    shown = app.enlarged({"background": picture, "layers": [], "composite": picture})["background"]
    assert shown.size == (app.CANVAS, app.CANVAS)
    assert app.enlarged({"background": shown})["background"] is shown  # large enough
    assert app.enlarged(None) is None
    back, mask = studio.read_editor({"background": shown.convert("RGBA"), "layers": []})
    assert back.convert("L").tobytes() == picture.tobytes() and mask is None
    photo = Image.new("RGB", (301, 277))
    assert studio.read_editor({"background": photo})[0].size == photo.size


def test_the_brush_says_what_is_repainted(app, studio):
    picture = noise_picture(8)
    side = app.CANVAS // 8
    # Two strokes: one over rows 4 to 7, one that only touches the pixel at row 0, column 2.
    layers = [
        painted(app.CANVAS, (0, 4 * side, app.CANVAS, app.CANVAS)),
        painted(app.CANVAS, (2 * side + 3, 3, 2 * side + 9, 9)),
    ]
    editor = app.enlarged({"background": picture, "layers": []}) | {"layers": layers}
    expected = np.zeros((8, 8), dtype=int)
    expected[4:], expected[0, 2] = 1, 1
    wish = studio.read(held(app, write="A picture", editor=editor))
    assert (wish.mask == expected).all()
    *_, last = studio.frames(wish)
    written = np.asarray(last.sample.image.convert("L"))
    assert ((written == np.asarray(picture)) | (expected == 1)).all()
    assert (written != np.asarray(picture)).any()


@pytest.mark.parametrize("editor", [None, {}, {"background": Image.new("RGBA", (9, 9))}])
def test_an_empty_editor_gives_nothing(studio, editor):
    assert studio.read_editor(editor) == (None, None)


def test_samples_follow_each_other_and_are_kept(app, studio):
    earlier = [(noise_picture(8), "earlier")]
    controls = held(app, text="a zero", write="A picture")
    changes = list(app.perform(studio, controls | {"count": 2}, earlier))
    assert len(changes) == 2 * (STEPS + 1)
    states = [change["state"] for change in changes if "state" in change]
    assert "Step 1 of 4, sample 1 of 2" in states[0] and "width: 25%" in states[0]
    assert "Done" in states[STEPS - 1] and "sample 2 of 2" in states[STEPS]
    finished = changes[-1]["gallery"]
    assert [caption for _, caption in finished] == ["a zero", "a zero", "earlier"]
    assert finished[0][0].tobytes() != finished[1][0].tobytes()  # another seed
    again = list(app.perform(studio, controls | {"seed": 4}, []))
    assert again[-1]["gallery"][0][0].tobytes() == finished[0][0].tobytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"write": "A picture", "text": "a <mask>"}, "text contains <mask>"),
        ({"editor": {"layers": [painted(280, (0, 0, 9, 9))]}}, "image_mask is given without"),
        ({"steps": 0}, "`num_inference_steps` is 0"),
    ],
)
def test_a_wish_that_makes_no_sense_gets_the_librarys_message(app, studio, changed, message):
    with pytest.raises(ValueError, match=message):
        list(app.perform(studio, held(app, **changed), []))


def test_classes_have_names_where_they_are_known(app, studio):
    assert len(studio.classes) == 10 and "zero" in studio.classes[0]
    shipped = app.AppArguments(checkpoint=str(CHECKPOINT))
    assert shipped.captions.endswith("fashion_mnist.json")
    # The colour checkpoint knows no classes.
    assert app.AppArguments(checkpoint=str(app.COLOUR)).captions is None
    assert app.AppArguments(checkpoint="elsewhere").captions is None


def test_shipped_models_come_with_something_to_try(app, studio):
    """What is offered can be asked for: words that fit, pictures that are there."""
    assert not studio.prompts and not studio.pictures
    for place in filter(Path.is_dir, app.PROMPTS):
        shown = app.Studio(app.AppArguments(checkpoint=str(place)))
        assert len(shown.pictures) == 10
        inputs = shown.processor(text=shown.prompts, generate="image", return_tensors="pt")
        assert len(inputs["input_ids"]) == len(shown.prompts) > 2


# --- in a browser ---


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(tmp_path, *arguments):
    """Serve a checkpoint, the first shipped one if none is named; the address of the page."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('the page needs gradio: pip install -e ".[app]"')
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost"}
    environment["GRADIO_TEMP_DIR"] = str(tmp_path / "gradio")
    line = [sys.executable, str(SCRIPT), "--server_port", str(port), *arguments]
    with open(tmp_path / "app.log", "w") as log:
        server = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 120
        while "Running on" not in (tmp_path / "app.log").read_text():
            assert server.poll() is None, (tmp_path / "app.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "app.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page(tmp_path):
    with served(tmp_path, "--checkpoint", str(CHECKPOINT)) as address:
        yield address


@pytest.fixture
def first_page(tmp_path):
    with served(tmp_path) as address:
        yield address


@pytest.fixture
def choosing_page(tmp_path):
    """Of a tiny model that always chooses words."""
    save_checkpoint(tmp_path / "checkpoint", "text")
    with served(tmp_path, "--checkpoint", str(tmp_path / "checkpoint")) as address:
        yield address


@pytest.fixture
def browser():
    """A headless Chromium that finds no machine but this one."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium drives the browser: pip install selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium and chromedriver on the PATH (Debian: chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1120,1230",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


class Visitor:
    """Someone at the page."""

    def __init__(self, browser, address, example=None):
        self.browser, self.example = browser, example
        browser.get(address)
        self.find("#editor canvas")
        # What is typed before the page is alive is lost, so it is tried until it answers.
        self.until(self.takes_an_example if example else self.takes_words)

    def until(self, check, seconds=60):
        deadline = time.monotonic() + seconds
        while not (found := check()):
            assert time.monotonic() < deadline, self.browser.page_source[-2000:]
            time.sleep(0.02)
        return found

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def find(self, selector):
        return self.until(lambda: [found for found in self.all(selector) if found.is_displayed()])[
            0
        ]

    def takes_an_example(self):
        for button in [one for one in self.all("button") if one.text == self.example]:
            button.click()
        return self.prompt.get_attribute("value") == self.example

    def takes_words(self):
        self.type("words")
        return self.prompt.get_attribute("value") == "words"

    @property
    def prompt(self):
        return self.find("#prompt textarea, #prompt input")

    def type(self, text):
        from selenium.webdriver.common.keys import Keys

        for keys in (Keys.CONTROL + "a", Keys.DELETE, text):  # Control is held for one call
            self.prompt.send_keys(keys)

    def choose(self, name):
        (button,) = [label for label in self.all("#write label") if label.text == name]
        button.click()

    def press(self):
        """Press the button and wait for the sample: the states and pictures that were shown."""
        before, states, pictures = len(self.all("#finished img")), [], []
        self.find("#go").click()

        def is_done():
            state, shown = self.find("#state").text, self.all("#picture img")
            states.append(state)
            pictures.extend(picture.get_attribute("src") for picture in shown)
            return len(self.all("#finished img")) > before

        self.until(is_done)
        self.until(lambda: self.find("#state").text == "Done")
        return states, pictures

    def sees_no_change(self):
        before = self.find("#state").text
        time.sleep(3)  # many steps
        return self.find("#state").text == before

    @property
    def picture(self):
        with urllib.request.urlopen(self.find("#picture img").get_attribute("src")) as answer:
            return Image.open(io.BytesIO(answer.read())).convert("L")

    @property
    def caption(self):
        """Of the newest finished sample."""
        return self.find("#finished .caption-label").text

    @property
    def words(self):
        return self.find("#words textarea, #words input").get_attribute("value")

    def paint(self, rows):
        """Upload a boot, and draw the brush along some rows of the 28 that it has."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.browser.find_element("css selector", "#editor input[type=file]").send_keys(str(BOOT))
        canvas = self.find("#editor canvas")
        time.sleep(2)  # the editor draws the picture when it likes
        self.find("#editor button[aria-label=Brush]").click()
        for row in rows:
            stroke = ActionChains(self.browser)
            stroke.move_to_element_with_offset(canvas, -120, 10 * (row - 14) + 5).click_and_hold()
            for _ in range(12):
                stroke.move_by_offset(20, 0)
            stroke.release().perform()
        time.sleep(1)


def shipped_sample(**request):
    """What the library writes with the settings that the page opens with."""
    processor = MDMProcessor.from_pretrained(CHECKPOINT)
    model = MDMForJointGeneration.from_pretrained(CHECKPOINT).eval()
    inputs = processor(**request, return_tensors="pt")
    out = model.generate(**inputs, generator=torch.Generator().manual_seed(0), show_progress=False)
    return processor.post_process(out, inputs)[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_in_a_browser(page, browser, tmp_path):
    visitor = Visitor(browser, page, "this is an ankle boot")
    names = [label.text for label in visitor.all("#write label")]
    assert names == ["A picture", "Words", "Both", AUTO]
    # Who changes their mind stops the process, and can start another.
    visitor.find("#go").click()
    visitor.until(lambda: visitor.find("#state").text.startswith("Step "))
    visitor.find("#stop").click()
    visitor.until(visitor.sees_no_change)
    assert visitor.find("#state").text != "Done" and not visitor.all("#finished img")
    # Picture for a prompt, step by step, and the same as the library writes.
    visitor.type("a photo of a dress")
    states, pictures = visitor.press()
    assert len({state for state in states if state.startswith("Step ")}) > 3
    assert len(set(pictures)) > 3
    assert visitor.caption == "a photo of a dress"
    dress = visitor.picture
    assert dress.size == (28, 28)
    expected = shipped_sample(text="a photo of a dress", generate="image").image
    difference = np.asarray(dress, int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 2 < np.asarray(dress).std()
    # Picture and words from nothing.
    for prompt in ("this is an ankle boot", "a handbag from the shop", "a pair of trousers"):
        visitor.type(prompt)
        visitor.press()
    visitor.type("")
    visitor.choose("Both")
    visitor.press()
    assert visitor.words == shipped_sample(generate="joint").text != ""
    # Repainting what the brush has touched; the rest comes back as it was.
    visitor.paint(rows=(19, 22))
    visitor.press()
    boot, repainted = np.asarray(Image.open(BOOT).convert("L")), np.asarray(visitor.picture)
    assert (repainted[:17] == boot[:17]).all() and (repainted[17:25] != boot[17:25]).sum() > 20
    assert visitor.words
    browser.execute_script("document.activeElement.blur()")
    picture = tmp_path / "app.png"
    assert browser.save_screenshot(str(picture))
    if os.environ.get("MDM_WRITE_SCREENSHOT"):
        shutil.copy(picture, ROOT / "docs" / "app.png")
    # A wish that makes no sense gets the library's own message.
    visitor.choose("A picture")
    visitor.type("a <mask>")
    visitor.find("#go").click()
    message = "text contains <mask>, which asks for words, but generation_mode='image' writes none"
    visitor.until(lambda: any(message in toast.text for toast in visitor.all(".toast-body")))
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []  # among them would be what the page looks for on the internet


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_page_has_something_to_try(first_page, browser, app):
    """Words by a click, then a picture by a click, and words for it."""
    prompt = app.PROMPTS[app.SHIPPED][0]
    visitor = Visitor(browser, first_page, prompt)
    visitor.press()
    assert visitor.caption == prompt and np.asarray(visitor.picture).std() > 2
    visitor.type("")
    visitor.choose("Words")
    visitor.all("#pictures button img, #pictures .gallery-item, #pictures td")[0].click()
    visitor.until(lambda: visitor.all("#editor canvas"))
    time.sleep(2)  # the editor draws the picture when it likes
    visitor.press()
    assert visitor.words
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_with_a_mode_head_chooses_on_the_page(choosing_page, browser):
    visitor = Visitor(browser, choosing_page)
    assert [label.text for label in visitor.all("#write label")][-1] == AUTO
    visitor.choose(AUTO)
    visitor.type("a zero")
    visitor.find("#go").click()
    visitor.until(lambda: visitor.find("#state").text == "Done")
    assert visitor.words and not visitor.all("#picture img")
