# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draw the ladder of rooms, `docs/architecture.svg`: `python docs/draw_rooms.py` writes it anew.

A room imports from the rooms below and beside it, and never from one above;
`tests/project/test_architecture.py` says so too.
"""

from html import escape
from pathlib import Path

# From the top: for each floor its rooms, as (name, what is in it, files).
FLOORS = [
    [
        ("examples/", "scripts", "train evaluate finetune app demo inpainting export"),
        ("benchmarks/", "speed and memory", "run report roofline gpu"),
        ("cli/", "what `mdm` does", "main commands plan export"),
    ],
    [
        ("training/", "stays at home", "train trainer ema checkpoints"),
        ("evaluation/", "stays at home", "evaluate judge ranking questions"),
        ("planning/", "stays at home", "plan flops rehearsal states"),
        ("data/", "stays at home", "pictures streams talks tasks captions"),
        ("display/", "stays at home", "streamer animation pictures selection"),
        ("mdm_cli/", "needs Python alone", "main endings places"),
    ],
    [
        ("the model", "its output, and a training step in six lines", "modeling_mdm"),
        ("pipelines", "one call for a task", "pipeline_mdm"),
        ("processor/", "from words and pictures to tensors and back", "processing_mdm chat"),
    ],
    [
        ("a training step", "what is drawn, losses", "training_step draws loss"),
        (
            "generation",
            "generate() in numbered stages",
            "generation_mdm _settings _regions _steps _sampling _guidance _outputs",
        ),
        ("scoring", "a bound on log p", "scoring"),
    ],
    [
        ("the network", "the weights; one evaluation", "network decoder block attention scan_pass"),
        (
            "content",
            "what a batch holds, what was read",
            "inputs content sequence cache past_turns",
        ),
        ("latents", "words and patches", "vae"),
    ],
    [
        ("diffusion", "Eq. 1-9", "diffusion score_entropy solvers likelihood"),
        (
            "recurrence",
            "Eq. 10-13, all back-ends",
            "ssd ssd_factored ssd_mamba ssd_triton convolution matmul",
        ),
        ("scans", "orders and selection", "scan_orders selection"),
        ("ground", "settings and checks", "configuration_mdm version hub precision checks"),
    ],
]
WIDTH, HEIGHT, GAP, TOP = 960, 92, 14, 46
COLOURS = ["#f3f0e6", "#e9eef5", "#dbe6f3", "#d3ebe0", "#c3e0d3", "#e8dcef"]


def wrapped(words: str, width: int) -> list[str]:
    """Break names into lines of at most `width` letters."""
    lines = [""]
    for word in words.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def text(x: float, y: float, words: str, size: int, weight: str = "normal") -> str:
    """One line of words, centred."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="middle">{escape(words)}</text>'
    )


def draw() -> str:
    """All floors from the top, an arrow between each and the next."""
    height = TOP + len(FLOORS) * (HEIGHT + 2 * GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" fill="#222">',
        "<title>The rooms of modeling_mdm; none imports from one above it</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(
            WIDTH / 2, 26, "a room imports from rooms below and beside it, never from one above", 14
        ),
    ]
    for floor, rooms in enumerate(FLOORS):
        y = TOP + floor * (HEIGHT + 2 * GAP)
        width = (WIDTH - GAP * (len(rooms) + 1)) / len(rooms)
        for number, (name, what, files) in enumerate(rooms):
            x = GAP + number * (width + GAP)
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="6" '
                f'fill="{COLOURS[floor]}" stroke="#777"/>'
            )
            middle = x + width / 2
            parts.append(text(middle, y + 20, name, 15, "bold"))
            parts.append(text(middle, y + 38, what, 12))
            for line, names in enumerate(wrapped(files, int(width / 6.4))):
                parts.append(text(middle, y + 58 + 15 * line, names, 11))
        if floor + 1 < len(FLOORS):
            below = y + HEIGHT
            parts.append(
                f'<path d="M{WIDTH / 2:.0f} {below + 4} v{2 * GAP - 12} m-5 -6 l5 6 l5 -6" '
                'fill="none" stroke="#444" stroke-width="2"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
