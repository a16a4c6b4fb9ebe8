# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Both back-ends of the image processor: any picture to pixels in [-1, 1], and back."""

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.image_processing_pil_mdm import MDMImageProcessorPil

BACKENDS = [MDMImageProcessor, MDMImageProcessorPil]
GREY_LEVEL = 2 / 255


@pytest.fixture(params=BACKENDS, ids=["torchvision", "pil"])
def backend(request):
    return request.param


def prepare(backend, image, num_channels=3, size=None, **kwargs):
    """Pixels as uint8 levels (C, H, W); by default at the picture's own size."""
    if size is None:
        kwargs["do_resize"] = False
    else:
        kwargs["size"] = dict(zip(("height", "width"), size, strict=True))
    processor = backend(num_channels=num_channels)
    (pixels,) = processor(image, return_tensors="pt", **kwargs)["pixel_values"]
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    return ((pixels.double() + 1) * 127.5).numpy()


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_uint8_to_minus_one_to_one(backend):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (pixels,) = backend(num_channels=1)(image, do_resize=False, return_tensors="pt").pixel_values
    expected = torch.from_numpy(image).double() / 127.5 - 1
    torch.testing.assert_close(pixels[0].double(), expected, rtol=0, atol=1e-6)


# From size 2: torch's own resizing fails or errs where the result is one pixel wide.
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    num_channels=st.sampled_from([1, 3]),
    sharp=st.booleans(),
    seed=st.integers(0, 9),
)
def test_backends_agree(height, width, size, num_channels, sharp, seed):
    image = random_pixels(height, width, 3, seed=seed)
    if sharp:
        image = (image > 127).astype(np.uint8) * 255
    torchvision, pil = (prepare(backend, image, num_channels, size) for backend in BACKENDS)
    assert torchvision.shape == pil.shape == (num_channels, *size)
    assert np.abs(torchvision - pil).max() <= 1 + 1e-3


@given(height=st.integers(1, 50), width=st.integers(1, 50), size=st.integers(2, 30))
def test_backends_agree_on_floats(height, width, size):
    image = np.random.default_rng(0).random((height, width, 3), dtype=np.float32)
    torchvision, pil = (prepare(backend, image, 3, (size, size)) for backend in BACKENDS)
    np.testing.assert_allclose(torchvision, pil, rtol=0, atol=1e-2)


# A picture of each PIL mode, and the RGB levels that it means.

PURPLE = (200, 30, 90)


def solid(mode, colour):
    return Image.new(mode, (3, 2), colour)


def palette(transparent):
    image = solid("P", 1)
    image.putpalette([0, 0, 0, *PURPLE])
    if transparent:
        image.info["transparency"] = 1
    return image


def sixteen_bits(level, dtype="<u2"):
    return Image.fromarray(np.full((2, 3), level, dtype=dtype))


def transparent_rgb():
    image = solid("RGB", PURPLE)
    image.info["transparency"] = PURPLE
    return image


PICTURES = {
    "1": (solid("1", 1), (255, 255, 255)),
    "1-black": (solid("1", 0), (0, 0, 0)),
    "L": (solid("L", 77), (77, 77, 77)),
    "LA": (solid("LA", (77, 255)), (77, 77, 77)),
    "LA-half": (solid("LA", (55, 51)), (215, 215, 215)),  # 55 / 5 + 255 * 4 / 5
    "P": (palette(False), PURPLE),
    "P-transparent": (palette(True), (255, 255, 255)),
    "RGB": (solid("RGB", PURPLE), PURPLE),
    "RGB-transparent": (transparent_rgb(), (255, 255, 255)),
    "RGBA": (solid("RGBA", (*PURPLE, 255)), PURPLE),
    "RGBA-transparent": (solid("RGBA", (*PURPLE, 0)), (255, 255, 255)),
    "RGBA-half": (solid("RGBA", (0, 100, 255, 102)), (153, 193, 255)),  # 2 / 5 and 3 / 5
    "I;16": (sixteen_bits(77 * 257), (77, 77, 77)),
    "I;16-white": (sixteen_bits(65535), (255, 255, 255)),
    "I;16B": (sixteen_bits(77 * 257, ">u2"), (77, 77, 77)),
    "I": (sixteen_bits(77 * 257, "<i4"), (77, 77, 77)),
    "F": (sixteen_bits(76.6, "<f4"), (77, 77, 77)),
    "CMYK": (solid("CMYK", (0, 255, 0, 0)), (255, 0, 255)),
    "YCbCr": (solid("YCbCr", (77, 128, 128)), (77, 77, 77)),
    "HSV": (solid("HSV", (0, 0, 77)), (77, 77, 77)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_modes(backend, name):
    image, colour = PICTURES[name]
    assert image.mode == name.split("-")[0]
    expected = np.broadcast_to(np.array(colour)[:, None, None], (3, 2, 3))
    np.testing.assert_allclose(prepare(backend, image), expected, rtol=0, atol=1e-4)
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    np.testing.assert_allclose(prepare(backend, image, 1), round(luma), rtol=0, atol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(backend, orientation):
    upright = random_pixels(5, 7)
    # What a camera stores for each orientation tag (EXIF 2.3), so that turning it gives `upright`.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright.T, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    image.save(file, "PNG", exif=exif)
    pixels = prepare(backend, Image.open(file), num_channels=1)
    np.testing.assert_allclose(pixels[0], upright, rtol=0, atol=1e-4)


def test_layouts(backend):
    pixels = random_pixels(5, 6, 3)
    expected = prepare(backend, Image.fromarray(pixels))
    forms = [
        pixels,
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        pixels.astype(np.int64),
        torch.from_numpy(pixels).int(),
        (pixels / 255).astype(np.float64),
        torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
        pixels.astype(np.uint16) * 257,
    ]
    for form in forms:
        np.testing.assert_allclose(prepare(backend, form), expected, rtol=0, atol=1e-3)


def test_grey_layouts(backend):
    pixels = random_pixels(5, 6)
    for form in (pixels, pixels[None], pixels[..., None], torch.from_numpy(pixels)):
        np.testing.assert_allclose(prepare(backend, form, 1)[0], pixels, rtol=0, atol=1e-4)
    boolean = pixels > 100
    np.testing.assert_allclose(prepare(backend, boolean, 1)[0], boolean * 255, rtol=0, atol=1e-4)


def test_ambiguous_layout(backend):
    """(3, 4, 3) is channels-last for an array, channels-first for a tensor, as each usually is."""
    pixels = random_pixels(3, 4, 3)
    last, first = pixels.transpose(2, 0, 1), pixels
    tensor = torch.from_numpy(pixels)
    for form, kwargs, expected in (
        (pixels, {}, last),
        (tensor, {}, first),
        (pixels, {"input_data_format": "channels_first"}, first),
        (tensor, {"input_data_format": "channels_last"}, last),
    ):
        np.testing.assert_allclose(prepare(backend, form, **kwargs), expected, rtol=0, atol=1e-4)


def test_batches(backend):
    images = [random_pixels(5, 5, 3, seed=seed) for seed in range(3)]
    processor = backend(size={"height": 5, "width": 5})
    expected = processor(images, return_tensors="pt").pixel_values
    assert expected.shape == (3, 3, 5, 5)
    for batch in (np.stack(images), torch.from_numpy(np.stack(images)), tuple(images)):
        assert torch.equal(processor(batch, return_tensors="pt").pixel_values, expected)
    mixed = [images[0], images[1] / 255, Image.fromarray(images[2])]
    torch.testing.assert_close(processor(mixed, return_tensors="pt").pixel_values, expected)


def test_sizes_and_order_in_a_mixed_batch(backend):
    images = [random_pixels(6, 9, seed=0), random_pixels(4, 4, seed=1), random_pixels(6, 9, seed=2)]
    processor = backend(num_channels=1, size={"height": 4, "width": 4})
    together = processor(images, return_tensors="pt").pixel_values
    for image, pixels in zip(images, together, strict=True):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], pixels)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_centre_is_kept(backend, axis):
    """A picture of three squares in a row becomes its middle square."""
    squares = np.concatenate([np.full((8, 8), level, np.uint8) for level in (0, 100, 255)], axis)
    np.testing.assert_allclose(prepare(backend, squares, 1, (8, 8)), 100, rtol=0, atol=1e-4)


def test_proportions_are_kept(backend):
    """A circle in a wide picture stays as wide as high when the picture is halved and cropped."""
    rows, columns = np.mgrid[:64, :128]
    disc = ((rows - 31.5) ** 2 + (columns - 63.5) ** 2 < 24**2).astype(np.uint8) * 255
    pixels = prepare(backend, disc, 1, (32, 32))[0] > 127
    assert pixels.any(0).sum() == pixels.any(1).sum() == 24


def test_enlarging(backend):
    np.testing.assert_allclose(
        prepare(backend, np.array([[40]], np.uint8), 1, (3, 5)), 40, rtol=0, atol=1e-4
    )


def test_pixels_in_minus_one_to_one_pass(backend):
    image = torch.rand(3, 4, 4) * 2 - 1
    processor = backend(size={"height": 4, "width": 4})
    (pixels,) = processor(image, do_normalize=False, return_tensors="pt").pixel_values
    assert torch.equal(pixels, image)


def test_files(backend, tmp_path):
    pixels = random_pixels(4, 5, 4)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = prepare(backend, Image.fromarray(pixels))
    for form in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(prepare(backend, form), expected)


def test_a_camera_preview_is_no_animation(backend, tmp_path):
    """MPO, what many phones write, is a JPEG with further pictures behind it."""
    first, second = (Image.new("L", (8, 8), level) for level in (50, 200))
    path = tmp_path / "a.mpo"
    first.save(path, "MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    np.testing.assert_allclose(prepare(backend, path, 1), 50, rtol=0, atol=1e-4)


# Faults


def animation():
    file = BytesIO()
    frames = [Image.new("L", (4, 4), level) for level in (0, 90, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return Image.open(file)


def truncated(form):
    file = BytesIO()
    Image.fromarray(random_pixels(64, 64, 3)).save(file, form)
    return file.getvalue()[: len(file.getvalue()) // 2]


def test_animated(backend):
    with pytest.raises(ValueError, match=r"images has an animated GIF of 3 frames.*image\.seek"):
        prepare(backend, animation())


def test_one_frame_of_an_animation(backend):
    image = animation()
    image.seek(1)
    np.testing.assert_allclose(prepare(backend, image.copy(), 1), 90, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF"])
def test_truncated(backend, form):
    with pytest.raises(ValueError, match=r"images has .*(truncated|cannot be read).*pass"):
        prepare(backend, truncated(form))


def test_unreadable(backend, tmp_path):
    with pytest.raises(ValueError, match="images has '11 bytes', which cannot be read as an image"):
        prepare(backend, b"not a image")
    path = tmp_path / "text.png"
    path.write_text("not an image")
    with pytest.raises(ValueError, match=r"images has '.*text\.png', which cannot be read"):
        prepare(backend, path)
    with pytest.raises(ValueError, match=r"images has 'absent\.png', which cannot be read"):
        prepare(backend, "absent.png")
    with pytest.raises(ValueError, match="images has a dict; pass PIL images"):
        prepare(backend, {})


@pytest.mark.parametrize(
    "image",
    [Image.new("L", (0, 4)), Image.new("RGB", (4, 0)), np.zeros((0, 4)), torch.zeros(3, 0, 0)],
    ids=["PIL", "PIL-RGB", "array", "tensor"],
)
def test_zero_sized(backend, image):
    with pytest.raises(ValueError, match=r"images has an image of zero size.*at least 1 pixel"):
        prepare(backend, image)


@pytest.mark.parametrize("level", [float("nan"), -0.1, 1.5, 255.0, float("inf")])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_float_pixels_out_of_range(backend, level, as_tensor):
    image = np.full((3, 4, 4), 0.5, np.float32)
    image[1, 2, 3] = level
    image = torch.from_numpy(image) if as_tensor else image
    with pytest.raises(
        ValueError, match=r"images has float pixels.*NaN and give floats in \[0, 1\]"
    ):
        prepare(backend, image)


def test_normalised_pixels_out_of_range(backend):
    with pytest.raises(ValueError, match=r"float pixels in \[-1\.5.*floats in \[-1, 1\]"):
        prepare(backend, np.full((4, 4), -1.5), do_normalize=False)


def test_integer_pixels_out_of_range(backend):
    with pytest.raises(ValueError, match=r"images has pixels of int64 in \[-3, 9\]; scale them to"):
        prepare(backend, np.array([[-3, 9]]))
    with pytest.raises(ValueError, match=r"mode F in \[nan, nan\]; scale them to 0\.\.255"):
        prepare(backend, Image.fromarray(np.full((2, 2), np.nan, np.float32)))


@pytest.mark.parametrize("shape", [(16, 16, 16), (5, 8, 8), (2,)])
def test_not_one_image(backend, shape):
    with pytest.raises(ValueError, match="images has an array of shape"):
        prepare(backend, np.zeros(shape, np.uint8))


def test_wrong_number_of_channels(backend):
    with pytest.raises(ValueError, match=r"num_channels=2 must be 1 \(grey\) or 3 \(RGB\)"):
        backend(num_channels=2)


# The way back


@pytest.mark.parametrize("num_channels", [1, 3])
def test_round_trip(backend, num_channels):
    processor = backend(num_channels=num_channels, size={"height": 16, "width": 16})
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = pixels if num_channels == 1 else np.stack([pixels, pixels[::-1], pixels.T], -1)
    (prepared,) = processor(pixels, return_tensors="pt").pixel_values
    for image in (prepared, prepared.numpy(), prepared.requires_grad_()):
        picture = processor.post_process(image)
        assert picture.mode == ("L" if num_channels == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_post_process_clips(backend):
    picture = backend().post_process(torch.tensor([[[-3.0, -1.0, 0.0, 1.0, 7.0]]]))
    assert np.asarray(picture).tolist() == [[0, 0, 128, 255, 255]]


def test_post_process_faults(backend):
    with pytest.raises(ValueError, match=r"image has shape \(2, 3, 4, 4\); pass \(1, H, W\)"):
        backend().post_process(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="image has NaN values"):
        backend().post_process(torch.full((1, 2, 2), float("nan")))


def test_save_and_load(backend, tmp_path):
    processor = backend(num_channels=1, size={"height": 8, "width": 12})
    processor.save_pretrained(tmp_path)
    loaded = backend.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = random_pixels(20, 20, 3)
    assert torch.equal(
        loaded(image, return_tensors="pt").pixel_values,
        processor(image, return_tensors="pt").pixel_values,
    )
