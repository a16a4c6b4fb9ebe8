# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ten items of each text set, in its own schema, as JSON lines."""

import json
from pathlib import Path

from modeling_mdm.evaluation.tables.text_columns import MATH_KINDS, SUBJECTS

GARMENTS = ("a dress", "a coat", "a bag", "a shirt")


def _choices(n):
    """Four things, of which the true one takes turns."""
    return list(GARMENTS[-n % 4 :] + GARMENTS[: -n % 4])


def _hellaswag(n):
    endings = _choices(n)
    return {
        "ind": n,
        "activity_label": "Photos",
        "ctx_a": f"Photo {n} shows",
        "ctx_b": "it is",
        "ctx": f"Photo {n} shows it is",
        "endings": endings,
        "source_id": f"x~{n}",
        "label": str(endings.index("a dress")),
        "split": "val",
        "split_type": "indomain",
    }


def _openbookqa(n):
    choices = {"text": _choices(n), "label": list("ABCD")}
    key = "ABCD"[choices["text"].index("a dress")]
    return {"id": str(n), "question_stem": f"photo {n} is", "choices": choices, "answerKey": key}


def _winogrande(n):
    options = ("dress", "coat") if n % 2 else ("coat", "dress")
    sentence = f"Photo {n} is not of the coat but of the dress, so you see a _ ."
    key = str(options.index("dress") + 1)
    return {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": key}


def _arc(n):
    choices = {"text": _choices(n), "label": list("ABCD")}
    key = "ABCD"[choices["text"].index("a dress")]
    return {"id": str(n), "question": f"What is photo {n}?", "choices": choices, "answerKey": key}


def _boolq(n):
    return {
        "question": f"is photo {n} grey",
        "passage": "Photos are grey.",
        "idx": n,
        "label": n % 2,
    }


def _piqa(n):
    return {"goal": f"photo {n}", "sol1": "a dress", "sol2": "a bag", "label": n % 2}


def _gsm8k(n):
    return {"question": f"{n} and 1 coats?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"}


def _math(n):
    answer = f"So it is $\\boxed{{{n}}}$."
    return {"problem": f"What is {n}?", "level": "Level 1", "type": "Algebra", "solution": answer}


def _mmlu(n):
    choices = _choices(n)
    answer = choices.index("a dress")
    return {"question": f"Photo {n}?", "subject": "x", "choices": choices, "answer": answer}


SETS = {
    "hellaswag": (_hellaswag, {"validation": 10}),
    "openbookqa": (_openbookqa, {"test": 10}),
    "winogrande": (_winogrande, {"validation": 10}),
    "arc_easy": (_arc, {"test": 10}),
    "arc_challenge": (_arc, {"test": 10}),
    "boolq": (_boolq, {"validation": 10}),
    "piqa": (_piqa, {"validation": 10}),
    "gsm8k": (_gsm8k, {"test": 10, "train": 5}),
    **{f"math/{kind}": (_math, {"test": 2}) for kind in MATH_KINDS.values()},
    **{f"mmlu/{subject}": (_mmlu, {"test": 1, "dev": 5}) for subject in SUBJECTS},
}


def write_sets(root, *names):
    """Write some sets (all of them if none is named) into their folders."""
    for name, (make, splits) in SETS.items():
        if names and name.split("/")[0] not in names:
            continue
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in splits.items():
            lines = [json.dumps(make(n)) + "\n" for n in range(count)]
            (folder / f"{split}.jsonl").write_text("".join(lines))
