# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every adapter learns on every back-end, and so do words that the model never saw."""

import peft
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tiny_digits import ROOT, load_script
from tiny_model import MIXERS, make_model, mixed_batch
from tiny_processor import make_processor
from tiny_talks import TALK, make_config

import modeling_mdm.block
from modeling_mdm import MDMForJointGeneration, MDMProcessor
from modeling_mdm.data.conversations import (
    ConversationCollator,
    adapter_targets,
    draw_embeddings,
    unseen_words,
)
from modeling_mdm.ssd import BACKENDS, ssd_reference

# peft asks the model by transformers' old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
CPU_BACKENDS = [name for name in BACKENDS if name not in ("triton", "mamba_ssm")]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def adapted(model, seed=0):
    """Adapters that change something: as made, their second factor is zero."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=adapter_targets(model))
    tuned = peft.get_peft_model(model, config)
    fill(tuned, seed)
    return tuned


def fill(tuned, seed, adapter="default"):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if f".lora_B.{adapter}." in name:
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(0.2 * noise)


def without_gradient(tuned):
    """Names of the adapter tensors that a training step leaves without a gradient."""
    tuned.train()
    batch = mixed_batch(torch.float32)
    batch["drop_prompt"] = torch.zeros(8, dtype=torch.bool)
    tuned(**batch, keep=1.0, self_condition=True).loss.backward()
    adapters = {n: p for n, p in tuned.named_parameters() if "lora_" in n}
    assert adapters and all(p.requires_grad == (n in adapters) for n, p in tuned.named_parameters())
    return [n for n, p in adapters.items() if p.grad is None or not p.grad.any()]


def mixers_with_backends():
    """Every mixer with every back-end; in the fast lane with half of them."""
    for i, mixer in enumerate(MIXERS):
        for j, backend in enumerate(CPU_BACKENDS):
            marks = [] if (i + j) % 2 == 0 else [pytest.mark.slow]
            yield pytest.param(mixer, backend, id=f"{mixer}-{backend}", marks=marks)


@pytest.mark.parametrize(("mixer", "backend"), [*mixers_with_backends()])
def test_every_adapter_learns_on_every_back_end(mixer, backend):
    if mixer == "attention" and backend != CPU_BACKENDS[0]:
        pytest.skip("attention has no back-ends")
    model = make_model(torch.float32, **MIXERS[mixer], kernel_backend=backend)
    assert without_gradient(adapted(model)) == []


class FusedKernel(torch.autograd.Function):
    """Like a kernel on a GPU: autograd sees its inputs and outputs, and nothing inside."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return ssd_reference(*inputs)[0]

    @staticmethod
    def backward(ctx, gradient):
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(ssd_reference(*inputs)[0], inputs, gradient)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "attention"])
def test_every_adapter_learns_with_a_fused_kernel(mixer, monkeypatch):
    used = []

    def fused(x, input_scale, log_decay, B, C, *rest, needs_state):
        used.append(x.shape)
        return FusedKernel.apply(x, input_scale, log_decay, B, C), None

    monkeypatch.setattr(modeling_mdm.block, "ssd", fused)
    assert without_gradient(adapted(make_model(torch.float32, **MIXERS[mixer]))) == []
    assert used


def test_a_kernel_that_reads_the_projection_itself_would_be_caught(monkeypatch):
    """The trap: fused kernels that take `out_proj.weight` go around the adapter, silently."""
    tuned = adapted(make_model(torch.float32))
    mixer = modeling_mdm.block.MDMMamba2Mixer
    usual = mixer.forward

    def fused(self, *args, **kwargs):
        around = self.out_proj
        self.out_proj = lambda y: F.linear(y, around.base_layer.weight)
        try:
            return usual(self, *args, **kwargs)
        finally:
            self.out_proj = around

    monkeypatch.setattr(mixer, "forward", fused)
    monkeypatch.setattr(torch.nn.Module, "__setattr__", object.__setattr__)
    for module in tuned.modules():
        if isinstance(module, mixer):
            module.__dict__["out_proj"] = module._modules["out_proj"]
    names = without_gradient(tuned)
    assert len(names) == 4 and all(".out_proj.lora_" in name for name in names)


def outputs(model):
    sources = {
        "times": {g: torch.full((8,), 0.4) for g in ("text", "image")},
        "noise": noise(1),
        "posterior_noise": noise(2),
    }
    model.eval()
    with torch.no_grad():
        out = model(**mixed_batch(torch.float32), **sources, return_loss=False)
    return torch.cat([out.logits.flatten(), out.clean_estimates["image"].flatten()])


def noise(seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(8, 6, 6, generator=draw),
        "image": torch.randn(8, 4, 6, generator=draw),
    }


def test_adapters_are_saved_loaded_switched_and_merged(tmp_path):
    base = outputs(make_model(torch.float32))
    tuned = adapted(make_model(torch.float32), seed=1)
    first = outputs(tuned)
    assert (first - base).abs().max() > 0.05
    tuned.save_pretrained(tmp_path / "first")
    other = adapted(make_model(torch.float32), seed=2)
    second = outputs(other)
    other.save_pretrained(tmp_path / "second")
    saved = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "model.safetensors" not in saved and "adapter_model.safetensors" in saved

    loaded = peft.PeftModel.from_pretrained(make_model(torch.float32), tmp_path / "first")
    assert (outputs(loaded) - first).abs().max() < 1e-5
    loaded.load_adapter(tmp_path / "second", adapter_name="second")
    loaded.set_adapter("second")
    assert (outputs(loaded) - second).abs().max() < 1e-5
    loaded.set_adapter("default")
    assert (outputs(loaded) - first).abs().max() < 1e-5
    with loaded.disable_adapter():
        assert (outputs(loaded) - base).abs().max() < 1e-5
    merged = loaded.merge_and_unload()
    assert isinstance(merged, MDMForJointGeneration)
    assert (outputs(merged) - first).abs().max() < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    again = MDMForJointGeneration.from_pretrained(tmp_path / "merged")
    assert (outputs(again) - first).abs().max() < 1e-5


def test_tuning_leaves_the_latents_and_their_statistics_alone(processor):
    model = MDMForJointGeneration(make_config(processor))
    tuned = adapted(model).train()
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    batch = ConversationCollator(processor, 4)([{"messages": TALK, "seed": 0}] * 2)
    loss = tuned(**batch).loss
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.vae.state_dict().items())
    adapted_parts = [n for n in adapter_targets(make_model(torch.float32)) if n.startswith("vae.")]
    assert adapted_parts == ["vae.word_head"]  # which decodes words, and shapes no latent


# Words that the model never saw


def test_unseen_words_are_told_by_latents_that_are_too_large():
    model = make_model(torch.float32)
    statistics = model.vae.statistics["text"]
    seen = model.vae.encode(torch.arange(7), "text")[0].detach()
    statistics.mean.copy_(seen.mean(0))
    statistics.variance.copy_(seen.var(0))
    with torch.no_grad():
        model.vae.embed_tokens.weight[[8, 11]] *= 40
    found = unseen_words(model)
    assert {8, 11} <= set(found) and not set(found) & set(range(7))


def test_embeddings_are_drawn_like_those_of_the_other_words():
    model = make_model(torch.float64, vocab_size=4000)
    weight = model.vae.embed_tokens.weight
    words = list(range(1000, 4000))
    with torch.no_grad():
        weight[:1000] = 3 + torch.randn_like(weight[:1000]) @ torch.randn(16, 16).double()
        weight[1000:] = 1e6
    known = weight[:1000].detach().clone()
    torch.manual_seed(0)
    draw_embeddings(model, words)
    assert torch.equal(weight[:1000], known)
    drawn = weight[1000:].detach()
    spread = known.std(0).max()
    assert (drawn.mean(0) - known.mean(0)).abs().max() < 0.1 * spread
    assert (drawn.T.cov() - known.T.cov()).abs().max() < 0.15 * spread**2
    with pytest.raises(ValueError, match="words names all 4000 words"):
        draw_embeddings(model, range(4000))


def test_embeddings_of_unseen_words_learn_and_travel_with_the_adapter(tmp_path):
    script = load_script(ROOT / "examples" / "finetune.py")
    model = make_model(torch.float32)
    with torch.no_grad():
        model.vae.embed_tokens.weight[5] *= 1e3
    model.save_pretrained(tmp_path / "base")
    (word,) = [n for n in unseen_words(model) if n == 5]
    tuned = script.make_adapters(model, script.AdapterArguments(model="base", lora_rank=2))
    assert word not in unseen_words(model)
    tuned.train()
    batch = mixed_batch(torch.float32)
    batch["input_ids"][batch["input_ids"] == 4] = word
    batch["input_ids"][0, 0] = word
    tuned(**batch).loss.backward()
    (rows,) = [p for n, p in tuned.named_parameters() if "trainable_tokens" in n]
    assert rows.grad.any()
    with torch.no_grad():
        rows += 0.1
    latents = model.vae.word_latents().detach()
    tuned.save_pretrained(tmp_path / "adapter")
    base = MDMForJointGeneration.from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(merged.vae.word_latents(), latents)


def test_the_mode_head_learns_and_travels_with_the_adapter(tmp_path):
    script = load_script(ROOT / "examples" / "finetune.py")
    make_model(torch.float32).save_pretrained(tmp_path / "base")
    args = script.AdapterArguments(model=str(tmp_path / "base"), lora_rank=2, mode_head=True)
    model = script.load_model(args)
    tuned = script.make_adapters(model, args).train()
    tuned(**mixed_batch(torch.float32)).loss.backward()
    learned = [p for n, p in tuned.named_parameters() if "mode_head" in n and p.requires_grad]
    assert len(learned) == 4 and all(p.grad.any() for p in learned)
    with torch.no_grad():
        for parameter in learned:
            parameter += 0.1
    tuned.save_pretrained(tmp_path / "adapter")
    merged = peft.PeftModel.from_pretrained(script.load_model(args), tmp_path / "adapter")
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    again = MDMForJointGeneration.from_pretrained(tmp_path / "merged")
    assert torch.equal(again.mode_head.out_proj.bias, learned[-1])


def test_the_shipped_adapter_answers_on_the_shipped_checkpoint():
    """Every weight of it finds its place, and the reply to a picture of a boot names one."""
    folder = ROOT / "examples" / "checkpoints"
    base = MDMForJointGeneration.from_pretrained(folder / "mdm-fashion")
    model = peft.PeftModel.from_pretrained(base, folder / "fashion-questions-lora").eval()
    held = peft.get_peft_model_state_dict(model)
    saved = load_file(folder / "fashion-questions-lora" / "adapter_model.safetensors")
    assert held.keys() == saved.keys() and len(saved) > 50
    assert all(torch.equal(held[name], value) for name, value in saved.items())
    processor = MDMProcessor.from_pretrained(folder / "mdm-fashion")
    picture = Image.open(ROOT / "examples/pictures/fashion_mnist/9_ankle_boot.png")
    shown = {"type": "image", "image": picture}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [shown, {"type": "text", "text": "what is this?"}]}],
        generation_mode="text",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    draw = torch.Generator().manual_seed(0)
    out = model.generate(**inputs, num_inference_steps=8, generator=draw, show_progress=False)
    assert "boot" in processor.post_process(out, inputs)[0].text
