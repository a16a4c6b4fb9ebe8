# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compare the Triton kernels with float64 ground truths, in Triton's interpreter or on a GPU.

As a script it prints the relative errors of all cases as JSON. `TRITON_INTERPRET=1` is read when
Triton is imported, so the interpreter needs a process of its own.

Axes: g sequences, b batch, k scans, l positions, h heads, p head width, n state width, c channels.
"""

import json
import sys

import torch

float64 = torch.float64
SSD_GRADIENTS = ["x", "input_scale", "log_decay", "B", "C", "initial_state"]


def ssd_ground_truth(x, input_scale, log_decay, B, C, initial_state):
    """y and the last state by the whole (l, l) matrix of every head: no chunks, no recurrence."""
    cumulative = log_decay.cumsum(1).transpose(1, 2)  # (g, h, l)
    between = cumulative[..., :, None] - cumulative[..., None, :]
    future = torch.ones(between.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    decay = between.masked_fill(future, float("-inf")).exp()
    scaled = x * input_scale[..., None]
    y = torch.einsum("gin,gjn,ghij,gjhp->gihp", C, B, decay, scaled)
    y = y + torch.einsum("gin,ghi,ghnp->gihp", C, cumulative.exp(), initial_state)
    state = torch.einsum("gjn,ghj,gjhp->ghnp", B, decay[:, :, -1], scaled)
    return y, state + cumulative[..., -1].exp()[..., None, None] * initial_state


def draw_ssd(groups, length, heads, width, states, decay, device, dtype):
    """Inputs that the kernel's type represents exactly, slices where a projection gives slices."""
    x = torch.randn(groups, length, heads * width + 8, dtype=float64)[..., : heads * width]
    B, C = torch.randn(groups, length, 2 * states, dtype=float64).chunk(2, -1)
    scale, log_decay = torch.rand(2, groups, length, heads, dtype=float64)
    initial = torch.randn(groups, heads, states, width, dtype=float64)
    exact = [x.unflatten(-1, (heads, width)), scale, -decay * log_decay, B, C, initial]
    types = [dtype, torch.float32, torch.float32, dtype, dtype, torch.float32]
    return [tensor.to(device, kind) for tensor, kind in zip(exact, types, strict=True)]


def relative(value, expected):
    """Root mean square of the error over that of the truth."""
    error = (value.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return float(error)


def compare_ssd(
    length, groups=1, heads=2, width=16, states=16, chunk=16, decay=1.0, **options
) -> dict[str, float]:
    """Relative errors of y, the last state and all gradients.

    Options: initial (False: no initial state), final (False: no gradient from the last state),
    device, dtype.
    """
    from modeling_mdm.ssd_triton import ssd_triton

    device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)
    torch.manual_seed(length)
    inputs = draw_ssd(groups, length, heads, width, states, decay, device, dtype)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    if not options.get("initial", True):
        inputs[5] = None
        exact[5] = torch.zeros_like(exact[5])
    results, truths = ssd_triton(*inputs, chunk), ssd_ground_truth(*exact)
    assert results[0].dtype == dtype and results[1].dtype == torch.float32
    weights = [torch.randn_like(truth) for truth in truths]
    weights[0] = weights[0].to(dtype).double()
    weights[1] = weights[1] * options.get("final", True)

    def gradients(outputs, inputs):
        pairs = zip(outputs, weights, strict=True)
        total = sum((output * weight.to(output.dtype)).sum() for output, weight in pairs)
        return torch.autograd.grad(total, inputs)

    known = 6 if inputs[5] is not None else 5
    ours, true = gradients(results, inputs[:known]), gradients(truths, exact[:known])
    errors = {
        "y": relative(results[0], truths[0]),
        "state": relative(results[1], truths[1]),
    }
    for name, one, other in zip(SSD_GRADIENTS, ours, true, strict=False):
        errors[f"gradient of {name}"] = relative(one, other)
    return errors


def ssd_segments() -> dict[str, float]:
    """A sequence cut into segments, as on a GPU that is not full."""
    from modeling_mdm import ssd_triton

    assert ssd_triton._segments(2, 8) == 2
    return compare_ssd(length=123, heads=2)


def ssd_in_compiled_code() -> dict[str, float]:
    """Under `torch.compile`, with no graph break: the difference from eager code."""
    from modeling_mdm.ssd_triton import ssd_triton

    inputs = draw_ssd(1, 20, 2, 16, 16, 1.0, "cpu", torch.float32)
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def total(*inputs):
        y, state = ssd_triton(*inputs)
        return y.square().sum() + state.square().sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    values = [function(*inputs) for function in (compiled, total)]
    grads = [torch.autograd.grad(value, inputs) for value in values]
    errors = {"total": relative(values[0], values[1].double())}
    for name, one, other in zip(SSD_GRADIENTS, *grads, strict=True):
        errors[f"gradient of {name}"] = relative(one, other.double())
    return errors


def convolution_ground_truth(x, order, weight, bias, tail):
    """Gather, put the tail before, sum over shifted taps, SiLU."""
    scans, steps = order.shape[1:]
    source = x[:, None].expand(-1, scans, -1, -1) if x.dim() == 3 else x
    read = source.gather(2, order[..., None].expand(*order.shape, x.shape[-1]))
    padded = torch.cat([tail, read], 2)
    total = bias[None, :, None]
    for tap in range(weight.shape[-1]):
        total = total + weight[None, :, None, :, tap] * padded[:, :, tap : tap + steps]
    return total * torch.sigmoid(total)


def compare_convolution(length, steps=None, shared=True, tail=True, **options) -> dict[str, float]:
    """Relative errors of y and all gradients; `steps` < length: scans that leave positions out.

    Options: batch, scans, channels, taps, device, dtype.
    """
    from modeling_mdm.convolution_triton import convolution_triton

    device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)
    batch, scans = options.get("batch", 2), options.get("scans", 2)
    channels, taps = options.get("channels", 20), options.get("taps", 4)
    torch.manual_seed(length)
    inverse = torch.rand(batch, scans, length).argsort(-1)
    first = length - (steps or length)  # steps before it are left out: they read the given part
    order = inverse.argsort(-1)[:, :, first:].to(device)
    inverse = (inverse - first).to(device)
    shape = (batch, length, channels) if shared else (batch, scans, length, channels)
    wide = torch.randn(*shape[:-1], channels + 8, dtype=float64)[..., :channels]
    exact = [
        wide,
        torch.randn(scans, channels, taps, dtype=float64),
        torch.randn(scans, channels, dtype=float64),
        torch.randn(batch, scans, taps - 1, channels, dtype=float64) * tail,
    ]
    inputs = [tensor.to(device, dtype).requires_grad_() for tensor in exact]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    x, weight, bias, before = inputs
    result = convolution_triton(x, order, inverse, weight, bias, before if tail else None)
    truth = convolution_ground_truth(exact[0], order, *exact[1:])
    factor = torch.randn_like(truth).to(dtype)
    known = 4 if tail else 3
    ours = torch.autograd.grad((result * factor).sum(), inputs[:known])
    true = torch.autograd.grad((truth * factor.double()).sum(), exact[:known])
    errors = {"y": relative(result, truth)}
    for name, one, other in zip(["x", "weight", "bias", "tail"], ours, true, strict=False):
        errors[f"gradient of {name}"] = relative(one, other)
    return errors


def convolution_in_compiled_code() -> dict[str, float]:
    """Under `torch.compile`, with no graph break: the difference from eager code."""
    from modeling_mdm.convolution_triton import convolution_triton

    order = torch.rand(1, 2, 9).argsort(-1)
    inverse = order.argsort(-1)
    inputs = [torch.randn(1, 9, 4), torch.randn(2, 4, 3), torch.randn(2, 4)]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def total(x, weight, bias):
        return convolution_triton(x, order, inverse, weight, bias).square().sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    values = [function(*inputs) for function in (compiled, total)]
    grads = [torch.autograd.grad(value, inputs) for value in values]
    errors = {"total": relative(values[0], values[1].double())}
    for name, one, other in zip(["x", "weight", "bias"], *grads, strict=True):
        errors[f"gradient of {name}"] = relative(one, other.double())
    return errors


def decoder_with_kernels() -> dict[str, float]:
    """A whole model by the kernels and by plain torch: the loss, gradients, cached generation."""
    from tiny_model import every_random_source, make_model, mixed_batch

    outputs = {}
    for backend in ("torch", "triton"):
        sizes = {"num_hidden_layers": 1, "image_scans": [1, 4], "text_scans": [1, 2]}
        model = make_model(torch.float32, kernel_backend=backend, **sizes)
        batch = {name: value[[5, 7]] for name, value in mixed_batch(torch.float32).items()}
        loss = model.train()(**batch, **every_random_source(2, torch.float32)).loss
        loss.backward()
        scan = model.decoder.layers[0].mixer.scan
        grads = {name: value.grad for name, value in scan.named_parameters()}
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "num_inference_steps": 1, "show_progress": False}
        one = {name: value[1:] for name, value in batch.items()}
        images = model.eval().generate(**one, guidance_scale=2.0, **options).images
        outputs[backend] = {"loss": loss.detach(), "images": images, **grads}
    expected = outputs["torch"]
    return {name: relative(v, expected[name].double()) for name, v in outputs["triton"].items()}


CASES = {
    "decoder": decoder_with_kernels,
    "ssd, length 1": lambda: compare_ssd(1),
    "ssd, odd length": lambda: compare_ssd(37, groups=2),
    "ssd, no states": lambda: compare_ssd(48, initial=False, final=False),
    "ssd, larger chunk": lambda: compare_ssd(100, heads=1, chunk=48, states=32, width=32),
    "ssd, sizes that are no powers of two": lambda: compare_ssd(40, heads=3, width=6, states=20),
    "ssd, strong decay": lambda: compare_ssd(64, heads=1, chunk=64, decay=25.0),
    "ssd, segments": ssd_segments,
    "ssd, compiled": ssd_in_compiled_code,
    "convolution, shared": lambda: compare_convolution(37),
    "convolution, separate": lambda: compare_convolution(40, shared=False, tail=False, batch=1),
    "convolution, shorter than its taps": lambda: compare_convolution(2, batch=1),
    "convolution, of a part": lambda: compare_convolution(45, steps=20, batch=1),
    "convolution, many channels": lambda: compare_convolution(
        9, channels=131, taps=7, batch=1, scans=1
    ),
    "convolution, many steps": lambda: compare_convolution(300, batch=1, scans=1, channels=3),
    "convolution, compiled": convolution_in_compiled_code,
}

# What takes seconds in the interpreter; the others go through the same lines of the kernels.
SLOW = ("decoder", "ssd, compiled", "convolution, compiled", "convolution, many channels")

if __name__ == "__main__":
    # Uninitialised memory then holds NaN: what is read before it is written shows.
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(8).isnan().all()
    chosen = [name for name in CASES if (name in SLOW) == (sys.argv[1] == "slow")]
    print(json.dumps({name: CASES[name]() for name in chosen}))
