# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small copies of the vision data sets in their real formats, of the pictures that are shipped."""

import json
import shutil
from pathlib import Path

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "pictures" / "fashion_mnist"
FILES = sorted(PICTURES.glob("*.png"))
NAMES = ("a t-shirt", "a pair of trousers", "a pullover", "a dress", "a coat", "a sandal")
NAMES += ("a shirt", "a sneaker", "a bag", "an ankle boot")


def coco_name(picture):
    return f"COCO_val2014_{picture:012d}.jpg"


def write_imagenet(root, num_classes=10, count=1):
    """Folders of classes, each with the same picture a few times."""
    for label in range(num_classes):
        folder = root / "imagenet" / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for n in range(count):
            shutil.copy(FILES[(label + n) % len(FILES)], folder / f"n{label:08d}_{n}.png")


def write_coco(root, count=10):
    """COCO's caption annotations, Karpathy's split, and the pictures that both name."""
    pictures = root / "coco" / "val2014"
    pictures.mkdir(parents=True)
    for n in range(count):
        shutil.copy(FILES[n], pictures / coco_name(n + 1))
    images = [{"id": n + 1, "file_name": coco_name(n + 1)} for n in range(count)]
    captions = [
        {"id": 10 * n + k, "image_id": n + 1, "caption": caption}
        for n in range(count)
        for k, caption in enumerate((f"a photo of {NAMES[n]}", f"this is {NAMES[n]}"))
    ]
    folder = root / "coco" / "annotations"
    folder.mkdir()
    content = {"info": {}, "licenses": [], "images": images, "annotations": captions}
    (folder / "captions_val2014.json").write_text(json.dumps(content))
    karpathy = [
        {
            "filepath": "val2014",
            "filename": image["file_name"],
            "cocoid": image["id"],
            "split": "test" if n else "val",
            "sentences": [{"raw": one["caption"]} for one in captions if one["image_id"] == n + 1],
        }
        for n, image in enumerate(images)
    ]
    (root / "coco" / "dataset_coco.json").write_text(
        json.dumps({"images": karpathy, "dataset": "coco"})
    )


def write_flickr(root, count=10):
    """Flickr30K's split of Karpathy's, and its pictures."""
    pictures = root / "flickr30k" / "flickr30k-images"
    pictures.mkdir(parents=True)
    images = []
    for n in range(count):
        shutil.copy(FILES[n], pictures / f"{1000 + n}.jpg")
        sentences = [{"raw": f"A photo of {NAMES[n]}."}, {"raw": f"{NAMES[n]} from the shop"}]
        images.append({"filename": f"{1000 + n}.jpg", "split": "test", "sentences": sentences})
    content = {"images": images, "dataset": "flickr30k"}
    (root / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps(content))


def write_questions(root, name="vqav2", count=10):
    """VQAv2's or OKVQA's files; the pictures are COCO's."""
    prefix = "v2_" if name == "vqav2" else ""
    folder = root / name
    folder.mkdir()
    questions = [
        {"image_id": n + 1, "question": "What is this?", "question_id": 1000 * (n + 1)}
        for n in range(count)
    ]
    annotations = [
        {
            "question_type": "what is this",
            "multiple_choice_answer": NAMES[n],
            "answers": [
                {
                    "answer": NAMES[n] if k < 8 else "thing",
                    "answer_confidence": "yes",
                    "answer_id": k + 1,
                }
                for k in range(10)
            ],
            "image_id": n + 1,
            "answer_type": "other",
            "question_id": 1000 * (n + 1),
        }
        for n in range(count)
    ]
    (folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({"task_type": "Open-Ended", "data_type": "mscoco", "questions": questions})
    )
    (folder / f"{prefix}mscoco_val2014_annotations.json").write_text(
        json.dumps({"data_type": "mscoco", "annotations": annotations})
    )


def write_vizwiz(root, count=10):
    """VizWiz's annotations and pictures."""
    pictures = root / "vizwiz" / "val"
    pictures.mkdir(parents=True)
    items = []
    for n in range(count):
        name = f"VizWiz_val_{n:08d}.jpg"
        shutil.copy(FILES[n], pictures / name)
        answers = [{"answer": NAMES[n], "answer_confidence": "yes"}] * 10
        items.append({"image": name, "question": "What is this?", "answers": answers})
        items[-1] |= {"answer_type": "other", "answerable": 1}
    (root / "vizwiz" / "val.json").write_text(json.dumps(items))


def write_geneval(root):
    """A prompt of each of GenEval's categories."""
    dog, cup = {"class": "dog", "count": 1}, {"class": "cup", "count": 1}
    prompts = [
        ("single_object", [dog], "a photo of a dog"),
        ("two_object", [dog, cup], "a photo of a dog and a cup"),
        ("counting", [dog | {"count": 2}], "a photo of two dogs"),
        ("colors", [dog | {"color": "red"}], "a photo of a red dog"),
        ("position", [cup, dog | {"position": ["left of", 0]}], "a photo of a dog left of a cup"),
        ("color_attr", [dog | {"color": "red"}, cup | {"color": "blue"}], "a red dog, a blue cup"),
    ]
    folder = root / "geneval"
    folder.mkdir()
    lines = [json.dumps({"tag": t, "include": i, "prompt": p}) for t, i, p in prompts]
    (folder / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_all(root):
    """Write every set."""
    write_imagenet(root)
    write_coco(root)
    write_flickr(root)
    write_questions(root, "vqav2")
    write_questions(root, "okvqa")
    write_vizwiz(root)
    write_geneval(root)
