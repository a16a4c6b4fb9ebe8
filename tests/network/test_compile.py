# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One denoising step as a graph: torch.export and torch.compile without a break."""

import pytest
import torch
from tiny_model import LATENT, MIXERS, PATCHES, WORDS, make_model, mixed_batch
from torch import nn

from modeling_mdm.decoder import DecoderInputs
from modeling_mdm.draws import ItemKeys

pytestmark = pytest.mark.slow


class DenoisingStep(nn.Module):
    """Noisy latents and times to clean estimates; what is given is laid out once."""

    def __init__(self, model, keep):
        super().__init__()
        self.model, self.keep = model, keep
        encoded = model.encode_inputs(**mixed_batch(torch.float32))
        nothing = torch.zeros_like(encoded.has_class)
        self.content, self.labels = encoded.content, encoded.class_labels
        self.sequence = model.decoder.lay_out(
            encoded.content, encoded.has_class, nothing, encoded.grid
        )
        self.candidates = model.candidate_latents(encoded.content)

    def forward(self, text, image, times):
        z_t = {"text": text, "image": image}
        times = dict.fromkeys(z_t, times)
        inputs = DecoderInputs(self.sequence, self.content, z_t, times, self.labels, z_t, self.keep)
        denoised = self.model.denoise(inputs, self.candidates)
        return denoised.clean["text"], denoised.clean["image"]


@pytest.mark.filterwarnings("ignore")  # torch has several of its own while it compiles
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["export", "compile"])
@pytest.mark.parametrize("name", ["parallel", "cyclic", "separate", "attention"])
def test_a_denoising_step_is_one_graph(name, way):
    """The fastest scans on a CPU look at their values: the graph has the one that does not."""
    torch._dynamo.reset()
    model = make_model(torch.float32, **MIXERS[name])
    assert model.config.kernel_backend == "auto"
    step = DenoisingStep(model, 1.0).eval()
    first, second = (
        (torch.randn(8, WORDS, LATENT), torch.randn(8, PATCHES, LATENT), torch.rand(8))
        for _ in range(2)
    )
    with torch.no_grad():
        if way == "export":
            graph = torch.export.export(step, first).module()
        else:
            graph = torch.compile(step, fullgraph=True)
        for latents in (first, second):  # the second finds a constant that should not be one
            for ours, theirs in zip(graph(*latents), step(*latents), strict=True):
                assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
def test_a_compiled_model_trains_like_an_eager_one():
    """The latent statistics move at every step, while gradients need those from before it."""
    results = []
    for compiled in (False, True):
        model = make_model().train()
        run = torch.compile(model, backend="aot_eager") if compiled else model
        torch.manual_seed(1)
        losses = []
        for step in (None, None, 3, 4):  # from the random state, then by keys
            keys = None if step is None else ItemKeys(0, step, torch.arange(8))
            losses.append(run(**mixed_batch(), item_keys=keys).loss)
            losses[-1].backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and int(model.vae.statistics["image"].updates) == 4
        results.append([torch.stack(losses), *gradients])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
