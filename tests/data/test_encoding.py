# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm encode`: training on what it writes gives the losses of training on the data themselves."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from tiny_digits import ROOT
from tiny_vq import (
    EMU3,
    JANUS,
    fitting_processor,
    make_batch,
    make_model,
    save_new_model,
    whole_model,
)

from mdm_cli.main import main
from modeling_mdm import MDMForJointGeneration
from modeling_mdm.cli import encode
from modeling_mdm.data.augmentation import AugmentsGiven
from modeling_mdm.data.damage import TooManySkippedError
from modeling_mdm.data.encoded import MANIFEST, encoded_rows, is_encoded, open_encoding
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.shards import CodedPicture, TokenizedText
from modeling_mdm.data.stream_sources import StreamSource
from modeling_mdm.data.streams import MixedStream
from modeling_mdm.data.tasks import MDMDataCollator
from modeling_mdm.training import train

PICTURES, DAMAGED = 22, (4, 13)
COLOURS = ("red", "green", "blue", "white")


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of pictures with several captions, a recipe of two streams, configs, a Janus."""
    folder = tmp_path_factory.mktemp("encode")
    (folder / "pictures").mkdir()
    rows = []
    for number in range(PICTURES):
        name = f"{number:03}.png"
        content = b"damaged" if number in DAMAGED else png(number)
        (folder / "pictures" / name).write_bytes(content)
        texts = [f"a photo of {COLOURS[number % 4]}", f"the digit {number}", "nine"]
        rows.append({"file_name": name, "text": texts[: 1 + number % 3]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pictures" / "metadata.jsonl").write_text(lines)
    shards = []
    for start in range(0, PICTURES, 8):
        shards.append(str(folder / f"{start}.tar"))
        with tarfile.open(shards[-1], "w") as tar:
            for number in range(start, min(start + 8, PICTURES)):
                image = b"damaged" if number in DAMAGED else png(number)
                for suffix, content in (("png", image), ("cls", f"{number % 10}".encode())):
                    info = tarfile.TarInfo(f"{number:03}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    talks = [
        [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a" * (n % 7)}]
        for n in range(30)
    ]
    datasets.Dataset.from_dict({"messages": talks}).to_parquet(folder / "talks.parquet")
    recipe = [
        {"path": "webdataset", "weight": 0.6, "columns": {"image": "png", "label": "cls"},
         "data_files": {"train": shards}},
        {"path": "parquet", "weight": 0.4, "columns": {"messages": "messages"},
         "data_files": {"train": str(folder / "talks.parquet")}},
    ]  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    save_new_model(folder / "codes", JANUS, num_classes=10)
    save_new_model(folder / "pixels", None, num_classes=10)
    whole_model(JANUS).save_pretrained(folder / "janus")
    return folder


def words(place, kind):
    """The options that name a model of codes or of pixels."""
    vq = ["--vq_model", str(place / "janus")] if kind == "codes" else []
    return ["--config", str(place / kind), *vq]


def run_encode(place, kind, dataset, out, *options):
    dataset = str(place / dataset) if (place / dataset).exists() else dataset
    line = [*words(place, kind), "--dataset", dataset, "--output_dir", str(out)]
    encode.main([*line, "--max_skipped", "0.5", "--device", "cpu", *options])


TASKS = ("joint=1", "captioning=1", "inpainting=1", "class_to_image=1", "class_to_joint=1")
TASKS += ("text_to_text=1", "inpainting_without_text=1", "infill_without_image=1", "image=1")


def losses(place, kind, dataset, out, *options):
    line = [*words(place, kind), "--dataset", str(dataset), "--output_dir", str(out)]
    line += ["--max_steps", "8", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
    line += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--seed", "1"]
    line += ["--max_skipped", "0.5", "--disable_tqdm", "true", "--save_steps", "1000"]
    train.main([*line, "--tasks", *TASKS, *options])
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [{n: h[n] for n in h if "loss" in n or n in SAME} for h in history if "loss" in h]


SAME = ("grad_norm", "skipped_samples")


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        ("recipe.yaml", "codes"),
        ("pictures", "codes"),
        ("digits", "codes"),
        pytest.param("recipe.yaml", "pixels", marks=pytest.mark.slow),
        ("pictures", "pixels"),
    ],
)
def test_training_gives_the_same_losses(place, tmp_path, kind, dataset, monkeypatch):
    run_encode(place, kind, dataset, tmp_path / "encoded", "--shard_size", "5", "--batch_size", "3")
    cuts = [] if dataset == "recipe.yaml" else ["--truncation", "true"]  # streams skip long texts
    source = dataset if dataset == "digits" else place / dataset
    plain = losses(place, kind, source, tmp_path / "plain", *cuts)
    encoded = (tmp_path / "encoded").rename(tmp_path / "moved")
    encoded = encoded / "recipe.yaml" if dataset.endswith("yaml") else encoded

    def never(*args):
        raise AssertionError("the VQ-VAE ran")

    monkeypatch.setattr("modeling_mdm.vae.VQFrontEnd.forward", never)
    again = losses(place, kind, encoded, tmp_path / "again", *cuts)
    assert len(plain) == 8 and again == plain
    skipped = [step.get("skipped_samples", 0) for step in plain]
    assert (skipped[-1] > 0) == (dataset != "digits")


def test_what_is_held_are_codes_and_ids(place, tmp_path):
    """Held against the VQ-VAE of transformers itself, and against the tokenizer."""
    run_encode(place, "codes", "pictures", tmp_path, "--shard_size", "8")
    assert is_encoded(tmp_path) and not is_encoded(place / "pictures")
    rows = [row for file in open_encoding(tmp_path, "train").files for row in encoded_rows(file)]
    assert len(rows) == PICTURES
    assert [n for n, row in enumerate(rows) if row.fault] == list(DAMAGED)
    processor = fitting_processor()
    janus = whole_model(JANUS).model.vqmodel.eval()
    for number, row in enumerate(rows):
        texts = row.values["text"]
        said = [f"a photo of {COLOURS[number % 4]}", f"the digit {number}", "nine"]
        if number in DAMAGED:
            assert row.values["image"] is None and f"{number:03}.png" in row.name
            continue
        assert texts == said[: 1 + number % 3]
        for text in texts:
            assert text.ids == processor.tokenizer(text)["input_ids"]
        pixels = processor(images=picture(number), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            codes = janus.encode(pixels, return_dict=True).image_tokens
        assert row.values["image"].codes.flatten().tolist() == codes.flatten().tolist()
    found = json.loads((tmp_path / "train" / MANIFEST).read_text())
    assert (found["samples"], found["damaged"], found["shards"]) == (PICTURES, 2, 3)


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("*.parquet"))}


@pytest.mark.parametrize("dataset", ["pictures", "recipe.yaml"])
def test_what_was_cut_off_goes_on(place, tmp_path, dataset, monkeypatch):
    run_encode(place, "codes", dataset, tmp_path / "whole", "--shard_size", "4")
    write, count = parquet.write_table, []

    def dies(table, file, **options):
        count.append(1)
        if len(count) == 3:
            file.write(b"half a shard")
            raise KeyboardInterrupt
        write(table, file, **options)

    encoded = []
    real = encode.Encoder.encode
    monkeypatch.setattr(
        encode.Encoder, "encode", lambda self, s: encoded.extend(s) or real(self, s)
    )
    monkeypatch.setattr(parquet, "write_table", dies)
    with pytest.raises(KeyboardInterrupt):
        run_encode(place, "codes", dataset, tmp_path / "cut", "--shard_size", "4")
    monkeypatch.setattr(parquet, "write_table", write)
    (first,) = (path.parent for path in (tmp_path / "cut").rglob(MANIFEST))
    assert sorted(path.name for path in first.glob("shard*.parquet")) == [
        *("shard-00000.parquet", "shard-00001.parquet")
    ]
    with pytest.raises(ValueError, match="not finished"):
        open_encoding(first.parent, "train")
    encoded.clear()
    run_encode(place, "codes", dataset, tmp_path / "cut", "--shard_size", "4")
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    assert not any("00" + str(n) in s.name for s in encoded for n in range(8)), "read twice"
    encoded.clear()
    run_encode(place, "codes", dataset, tmp_path / "cut", "--shard_size", "4")
    assert not encoded and shards(tmp_path / "cut") == shards(tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_leaves_whole_shards(place, tmp_path):
    """SIGKILL, in the middle of it, from outside."""
    line = [*words(place, "codes"), "--dataset", str(place / "pictures")]
    line += ["--output_dir", str(tmp_path / "cut"), "--shard_size", "2", "--max_skipped", "0.5"]
    slow = (
        "import sys, time\nfrom modeling_mdm.cli import encode\nreal = encode.Encoder.encode\n"
        "encode.Encoder.encode = lambda self, s: time.sleep(0.2) or real(self, s)\n"
        "encode.main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", slow, *line], env=environment)
    while len(shards(tmp_path / "cut")) < 2 and child.poll() is None:
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 2 <= len(shards(tmp_path / "cut")) < 11
    encode.main(line)
    run_encode(place, "codes", "pictures", tmp_path / "whole", "--shard_size", "2")
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")


def test_another_setting_is_refused_by_name(place, tmp_path):
    run_encode(place, "codes", "pictures", tmp_path / "encoded")
    with pytest.raises(ValueError, match="shard_size is 4096 there and 7 here"):
        run_encode(place, "codes", "pictures", tmp_path / "encoded", "--shard_size", "7")
    with pytest.raises(ValueError, match=r"pictures is 'codes' there and 'pixels' here"):
        run_encode(place, "pixels", "pictures", tmp_path / "encoded")
    whole_model(JANUS, seed=8).save_pretrained(tmp_path / "other")
    line = ["--config", str(place / "codes"), "--vq_model", str(tmp_path / "other")]
    data = ["--dataset", str(place / "pictures"), "--output_dir", str(tmp_path / "encoded")]
    with pytest.raises(ValueError, match="vq_model is"):
        encode.main([*line, *data])
    data = ["--dataset", str(tmp_path / "encoded"), "--output_dir", str(tmp_path / "run")]
    steps = ["--max_steps", "1", "--use_cpu", "true", "--report_to", "none", "--truncation", "true"]
    with pytest.raises(ValueError, match=r"encoded for another model .*vq_model is"):
        train.main([*line, *data, *steps])
    with pytest.raises(ValueError, match=r"encoded for another model .*pictures is 'codes' there"):
        train.main(["--config", str(place / "pixels"), *data, *steps])
    with pytest.raises(ValueError, match="encoded already"):
        run_encode(place, "codes", tmp_path / "encoded", tmp_path / "twice")


def test_codes_are_not_mirrored(place, tmp_path):
    run_encode(place, "codes", "pictures", tmp_path / "encoded")
    with pytest.raises(ValueError, match="augment=True cannot mirror"):
        load_training_data(str(tmp_path / "encoded"), augment=True)
    item = load_training_data(str(tmp_path / "encoded"))[0]
    with pytest.raises(ValueError, match="augment_given=True cannot mirror"):
        AugmentsGiven(MDMDataCollator(fitting_processor(), truncation=True))([item])
    line = [*words(place, "codes"), "--dataset", str(tmp_path / "encoded"), "--max_steps", "1"]
    line += ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--augment_given", "true"]
    line += ["--truncation", "true"]
    with pytest.raises(ValueError, match="augment_given=True cannot mirror"):
        train.main(line)
    run_encode(place, "pixels", "pictures", tmp_path / "pixels")
    assert load_training_data(str(tmp_path / "pixels"), augment=True)[0]["image"].size == (8, 8)


def test_codes_and_pixels_do_not_mix(place, tmp_path):
    run_encode(place, "codes", "pictures", tmp_path / "encoded")
    item = load_training_data(str(tmp_path / "encoded"))[0]
    assert isinstance(item["image"], CodedPicture) and isinstance(item["text"], TokenizedText)
    with pytest.raises(ValueError, match="pictures as codes and others as pixels"):
        MDMDataCollator(fitting_processor())([item, {**item, "image": picture(0)}])
    plain = {"path": str(place / "pictures"), "columns": {"image": "image", "text": "text"}}
    recipe = [plain, {**plain, "path": str(tmp_path / "encoded")}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line = [*words(place, "codes"), "--dataset", str(tmp_path / "recipe.yaml"), "--max_steps", "1"]
    with pytest.raises(ValueError, match="names pictures as codes, and of"):
        train.main([*line, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"])


def test_a_stream_reads_an_encoded_set(place, tmp_path):
    run_encode(place, "codes", "pictures", tmp_path)
    stream = MixedStream([StreamSource(str(tmp_path))], (8, 8))
    items = list(stream)
    assert len(items) == PICTURES - 2 and stream.skipped == {str(tmp_path): 2}
    assert all(item["image"].codes.shape == (4, 4) for item in items)
    with pytest.raises(ValueError, match=r"split='test' .* use one of \['train'\]"):
        load_training_data(str(tmp_path), split="test")
    (tmp_path / "train" / "shard-00000.parquet").unlink()
    with pytest.raises(ValueError, match="lacks 1 of its 1 shards"):
        load_training_data(str(tmp_path))


def test_damage_beyond_the_share_stops_it(place, tmp_path):
    line = [*words(place, "codes"), "--dataset", str(place / "pictures")]
    with pytest.raises(TooManySkippedError, match="013"):
        encode.main([*line, "--output_dir", str(tmp_path), "--max_skipped", "0.01"])


def test_a_model_takes_codes_in_the_place_of_pixels():
    model = make_model(JANUS).eval()
    batch = make_batch()
    codes = model.vq(batch["pixel_values"]).view(3, 4, 4)
    given = torch.rand(3, 8, 8) < 0.7
    torch.manual_seed(0)
    expected = model(**batch, image_given=given)
    torch.manual_seed(0)
    found = model(input_ids=batch["input_ids"], image_codes=codes.int(), image_given=given)
    assert found.loss == expected.loss
    with pytest.raises(ValueError, match="pass one"):
        model(**batch, image_codes=codes)
    with pytest.raises(ValueError, match=r"outside the codebook of 24"):
        model(image_codes=codes + 24)
    with pytest.raises(ValueError, match=r"integers of shape"):
        model(image_codes=codes[0])
    with pytest.raises(ValueError, match="without `vq_config`, has none"):
        make_model(None, trained=False)(image_codes=codes)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("codes", ["--vq_model", "none"], None),
        ("codes", [], "say by --vq_model NAME"),
        ("pixels", ["--vq_model", "x/y"], "reads pixels. Leave it out"),
        ("pixels", ["--shard_size", "0"], "shard_size=0"),
        ("pixels", ["--max_skipped", "2"], "max_skipped=2"),
    ],
)
def test_faults_of_the_command_line(place, tmp_path, kind, options, message):
    line = ["--config", str(place / kind), "--dataset", str(place / "pictures")]
    with pytest.raises((ValueError, OSError), match=message):
        encode.main([*line, "--output_dir", str(tmp_path), *options])


@pytest.mark.parametrize("vq_config", [JANUS, EMU3], ids=["janus", "emu3"])
def test_a_whole_repository_is_trained_with_encoded_by_and_written_with(
    place, tmp_path, vq_config, capsys
):
    """A VQ-VAE by the name of a repository on disk, as transformers saves it, from end to end."""
    source = whole_model(vq_config)
    source.save_pretrained(tmp_path / "whole", max_shard_size="60KB")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1
    save_new_model(tmp_path / "new", vq_config, num_classes=10)
    name = ["--config", str(tmp_path / "new"), "--vq_model", str(tmp_path / "whole")]
    data = ["--dataset", str(place / "pictures"), "--max_skipped", "0.5"]
    line = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true"]
    line += ["--bf16", "false", "--report_to", "none", "--truncation", "true", "--seed", "1"]
    train.main([*name, *data, *line, "--output_dir", str(tmp_path / "trained")])
    trained = MDMForJointGeneration.from_pretrained(tmp_path / "trained")
    expected = source.model.vqmodel.state_dict()
    assert trained.vq.is_loaded and trained.vq.model.state_dict().keys() == expected.keys()
    for key, value in trained.vq.model.state_dict().items():
        assert torch.equal(value, expected[key]), key

    encode.main([*name, *data, "--output_dir", str(tmp_path / "before"), "--device", "cpu"])
    own = ["--config", str(tmp_path / "trained"), *data]  # whose VQ-VAE comes along
    encode.main([*own, "--output_dir", str(tmp_path / "after"), "--device", "cpu"])
    assert shards(tmp_path / "before") == shards(tmp_path / "after")
    with pytest.raises(ValueError, match="has a trained VQ-VAE already"):
        encode.main([*own, *name[2:], "--output_dir", str(tmp_path / "x")])
    losses = [*line, "--dataset", str(tmp_path / "after"), "--output_dir", str(tmp_path / "more")]
    train.main(["--config", str(tmp_path / "trained"), *losses, "--max_skipped", "0.5"])

    capsys.readouterr()
    asked = ["generate", "--checkpoint", str(tmp_path / "trained"), "--write", "joint"]
    asked += ["--num_inference_steps", "2", "--output_dir", str(tmp_path / "written"), "--json"]
    assert main([*asked, "--bf16", "false", "--quiet"]) == 0
    (written,) = json.loads(capsys.readouterr().out)
    with Image.open(written["image"]) as shown:
        assert shown.size == (8, 8)
    check_written_by(trained.eval(), source.model.vqmodel.eval())


def check_written_by(trained, source):
    """Hold a written picture against what the source's own decoder makes of its codes."""
    chosen, decode = [], trained.vq.decode
    trained.vq.decode = lambda codes, grid: chosen.append(codes) or decode(codes, grid)
    out = trained.generate(generation_mode="image", num_inference_steps=2, show_progress=False)
    (codes,) = chosen
    if trained.vq.model_type == "janus_vqgan":
        source.quantize.quant_state_dims = [4, 4]
    else:
        codes = codes.view(-1, 4, 4)
    with torch.no_grad():
        assert torch.equal(out.images, source.decode(codes).clamp(-1, 1))
