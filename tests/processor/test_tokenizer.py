# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The byte-level Unigram tokenizer and the script that trains it."""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "processing" / "train_tokenizer.py"
SPECIAL_TOKENS = ["<pad>", "<mask>", "<image>", "<end>"]
TABLE = {
    "labels": [["a dress", "a gown"], ["a t-shirt"], ["an ankle boot", "a short boot"]],
    "templates": ["a photo of {}", "this is {}", "{} on a black background", "{}"],
}


def load_script():
    spec = importlib.util.spec_from_file_location("train_tokenizer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # HfArgumentParser looks its dataclasses' module up
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope="module")
def tokenizer():
    return script.train_tokenizer(script.expand_captions(TABLE)[0], vocab_size=1000)


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Ordinary text is nearly never a special token, runs of spaces or a word of the corpus.
pieces_of_text = st.sampled_from(
    [*SPECIAL_TOKENS, " ", "  ", "\n", "\r\n", "\t", "dress", " dress"]
)
any_text = st.lists(st.text() | pieces_of_text).map("".join)


@given(any_text)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert tokenizer.decode(encode(tokenizer, text), skip_special_tokens=True) == text


@given(any_text)
def test_any_text_survives_after_loading(reloaded, text):
    assert reloaded.decode(encode(reloaded, text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  a",
        "a  ",
        "\n\na\n",
        "\x00",
        "é",
        "e\u0301",
        "ﬁ",
        "\u200b",
        "\ufeff",
        "👩‍👩‍👧",
        "\U0010ffff",
    ],
)
def test_awkward_text_survives(reloaded, text):
    assert reloaded.decode(encode(reloaded, text)) == text


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_characters_are_ordinary_text(reloaded, special):
    ids = encode(reloaded, f"a {special} of a{special}")
    assert not {0, 1, 2, 3} & set(ids)


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_never_win(tokenizer, special):
    """Even where nothing has split the text into words, as in a foreign pre-tokenizer."""
    pieces = tokenizer.backend_tokenizer.model.tokenize(special)
    assert "".join(piece.value for piece in pieces) == special
    assert not {0, 1, 2, 3} & {piece.id for piece in pieces}


def test_special_ids(reloaded):
    assert reloaded.convert_ids_to_tokens([0, 1, 2, 3]) == SPECIAL_TOKENS
    assert reloaded.pad_token_id == 0
    assert reloaded.mask_token_id == 1
    assert reloaded.image_token_id == 2
    assert reloaded.eos_token_id == 3
    assert reloaded.decode([0, 1, 2, 3], skip_special_tokens=True) == ""
    assert reloaded.decode([1, 3]) == "<mask><end>"


def test_loads_as_a_plain_fast_tokenizer(tokenizer, reloaded):
    assert type(reloaded) is PreTrainedTokenizerFast
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded.split_special_tokens


def test_vocabulary_holds_every_byte(tokenizer):
    # Latin-1's printable characters stand for themselves, the other 68 bytes for 256, 257, ...
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {chr(code) for code in [*printable, *range(256, 256 + 68)]}
    assert len(characters) == 256
    assert characters <= set(tokenizer.get_vocab())


def test_a_word_of_the_corpus_is_one_piece(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(encode(tokenizer, "a photo of an ankle boot"))
    assert tokens == ["a", "Ġphoto", "Ġof", "Ġan", "Ġankle", "Ġboot"]


def test_no_piece_crosses_a_word_boundary(tokenizer):
    pieces = [piece for piece in tokenizer.get_vocab() if piece not in SPECIAL_TOKENS]
    assert not [piece for piece in pieces if "Ġ" in piece[1:]]


@pytest.mark.parametrize("vocab_size", [260, 261, 268, 275])
def test_vocabulary_is_as_large_as_asked(vocab_size):
    texts = script.expand_captions(TABLE)[0]
    tokenizer = script.train_tokenizer(texts, vocab_size)
    assert len(tokenizer) == tokenizer.vocab_size == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    for text in texts:
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_a_larger_vocabulary_shortens_the_corpus():
    texts = script.expand_captions(TABLE)[0]
    lengths = [
        sum(len(encode(script.train_tokenizer(texts, size), text)) for text in texts)
        for size in (260, 264, 268, 276)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 4


def test_order_of_texts_does_not_matter():
    texts = script.expand_captions(TABLE)[0]
    shuffled = random.Random(0).sample(texts, len(texts))
    first, second = (script.train_tokenizer(t, 270).backend_tokenizer for t in (texts, shuffled))
    assert first.to_str() == second.to_str()


def test_long_words_do_not_underflow():
    word = "".join(chr(0x4E00 + n) for n in range(400))  # 1200 bytes without a space
    tokenizer = script.train_tokenizer([word, word[::-1]], 300)
    assert tokenizer.decode(encode(tokenizer, word)) == word


def test_vocabulary_too_small():
    with pytest.raises(ValueError, match=r"vocab_size=259 .*at least 260"):
        script.train_tokenizer(["a"], 259)


def test_no_words():
    with pytest.raises(ValueError, match="texts holds no words"):
        script.train_tokenizer([""], 300)


# Ground truth by listing every segmentation of every word.


def segmentations(word):
    if not word:
        return [[]]
    return [
        [word[:end], *rest] for end in range(1, len(word) + 1) for rest in segmentations(word[end:])
    ]


WORDS = {"Ġabab": 3, "abc": 5, "Ġcab": 2, "bb": 7}


def make_model(seed):
    model = script.Unigram(WORDS, max_seeds=100)
    rng = random.Random(seed)
    weights = {piece: rng.uniform(0.1, 1) for piece in model.log_prob}
    total = sum(weights.values())
    model.log_prob = {piece: math.log(weight / total) for piece, weight in weights.items()}
    return model


def scored(model, word):
    """(log-probability, pieces) of each segmentation of a word into known pieces."""
    return [
        (sum(model.log_prob[piece] for piece in pieces), pieces)
        for pieces in segmentations(word)
        if all(piece in model.log_prob for piece in pieces)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_expectation_maximisation(seed):
    model = make_model(seed)
    expected = Counter()
    for word, count in WORDS.items():
        ways = scored(model, word)
        total = sum(math.exp(log_prob) for log_prob, _ in ways)
        for log_prob, pieces in ways:
            for piece in pieces:
                expected[piece] += count * math.exp(log_prob) / total
    kept = {piece: count for piece, count in expected.items() if count >= 0.5 or len(piece) == 1}
    log_total = math.log(sum(kept.values()))
    model.expectation_maximisation()
    assert model.log_prob.keys() == kept.keys()
    for piece, count in kept.items():
        assert model.log_prob[piece] == pytest.approx(math.log(count) - log_total, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("word", WORDS)
def test_segmentation_is_the_best_one(seed, word):
    model = make_model(seed)
    log_prob, pieces = model.segment(word)
    best_log_prob, best = max(scored(model, word))
    assert pieces == best
    assert log_prob == pytest.approx(best_log_prob, abs=1e-12)
    several = [way for way in scored(model, word) if len(way[1]) > 1]
    assert model.segment(word, whole=False)[1] == max(several)[1]


@pytest.mark.parametrize("seed", range(5))
def test_pruning_drops_the_cheapest_piece(seed):
    model = make_model(seed)
    used = Counter()
    for word, count in WORDS.items():
        for piece in max(scored(model, word))[1]:
            used[piece] += count
    cost = {
        piece: used[piece]
        * (log_prob - max(way[0] for way in scored(model, piece) if len(way[1]) > 1))
        for piece, log_prob in model.log_prob.items()
        if len(piece) > 1
    }
    # Pieces that nothing uses are equally cheap: the last in the alphabet goes first.
    cheapest = max(p for p in cost if cost[p] == min(cost.values()))
    before = set(model.log_prob)
    model.prune(len(before) - 1)
    assert before - set(model.log_prob) == {cheapest}


def test_caption_table():
    captions, num_classes = script.expand_captions(
        {"labels": [["a", "b"], ["c"]], "templates": ["{} x", "y {}"]}
    )
    assert captions == ["a x", "b x", "c x", "y a", "y b", "y c"]
    assert num_classes == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"labels": [["a"]]}, "no 'templates'"),
        ({"templates": ["{}"]}, "no 'labels'"),
        ({"labels": [["a"], []], "templates": ["{}"]}, "no name for class 1"),
        ({"labels": [["a"]], "templates": ["{}", "a photo"]}, "'a photo' without"),
    ],
)
def test_faulty_caption_table(table, message):
    with pytest.raises(ValueError, match=message):
        script.expand_captions(table)


def run_here(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    script.main()
    return capsys.readouterr().out


def run_elsewhere(arguments, monkeypatch, capsys):
    result = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "run",
    [run_here, pytest.param(run_elsewhere, marks=pytest.mark.slow)],
    ids=["here", "elsewhere"],
)
def test_script_writes_a_whole_processor(run, tmp_path, monkeypatch, capsys):
    """The folder is complete, and its bytes do not depend on the process that wrote it."""
    table, lines = tmp_path / "table.json", tmp_path / "lines.txt"
    table.write_text(json.dumps(TABLE))
    lines.write_text("a grey dress\na grey boot\n", encoding="utf-8")
    folder = tmp_path / "processor"
    arguments = ["--captions", table, "--text_files", lines, "--vocab_size", "270"]
    arguments += ["--image_size", "16", "--patch_size", "8", "--num_channels", "3"]
    arguments += ["--max_text_length", "9", "--output_dir", folder]
    assert "270 tokens" in run(arguments, monkeypatch, capsys)

    config = json.loads((folder / "processor_config.json").read_text())
    assert (config["patch_size"], config["max_text_length"], config["num_classes"]) == (8, 9, 3)
    assert config["image_processor"]["size"] == {"height": 16, "width": 16}
    assert config["image_processor"]["num_channels"] == 3
    texts = [*script.expand_captions(TABLE)[0], "a grey dress", "a grey boot"]
    script.train_tokenizer(texts, 270).save_pretrained(tmp_path / "here")
    ours = (tmp_path / "here" / "tokenizer.json").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == ours


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ValueError, "Nothing to train on: give --text_files"),
        (["--vocab_sise", "300"], ValueError, "--vocab_sise"),
        (["--text_files", "absent.txt"], FileNotFoundError, "absent.txt"),
    ],
)
def test_script_refuses(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", str(tmp_path), *arguments])
    with pytest.raises(error, match=message):
        script.main()


# Going on from a vocabulary


OLD_TEXTS = script.expand_captions(TABLE)[0]
NEW_TEXTS = ["which of these two is a dress?", "draw a coat", "draw a drawing", "draw one"]


def single(tokenizer, word):
    return len(encode(tokenizer, word)) == 1


@given(text=any_text)
def test_an_extended_vocabulary_keeps_ids_and_gives_any_text_back(tokenizer, text):
    extended = script.extend_tokenizer(tokenizer, NEW_TEXTS, OLD_TEXTS)
    assert extended.decode(encode(extended, text)) == text


def test_new_words_are_single_pieces_and_old_texts_are_cut_as_before(tokenizer):
    extended = script.extend_tokenizer(tokenizer, NEW_TEXTS, OLD_TEXTS)
    old, new = (
        json.loads(t.backend_tokenizer.to_str())["model"]["vocab"] for t in (tokenizer, extended)
    )
    assert new[: len(old)] == old
    words = {"which", " these", " two", "draw", " drawing", " one", " coat"}
    assert words <= {extended.decode([n]) for n in range(len(old), len(new))}
    assert all(single(extended, word) and not single(tokenizer, word) for word in words)
    for text in OLD_TEXTS:
        assert encode(extended, text) == encode(tokenizer, text)
    again = script.extend_tokenizer(tokenizer, NEW_TEXTS, OLD_TEXTS)
    assert again.backend_tokenizer.to_str() == extended.backend_tokenizer.to_str()


def test_words_of_texts_that_are_kept_stay_cut(tokenizer):
    kept = ["zebra crossing"]
    extended = script.extend_tokenizer(tokenizer, ["zebra yak", "zebra crossings"], kept)
    assert encode(extended, kept[0]) == encode(tokenizer, kept[0])
    assert single(extended, " yak") and single(extended, " crossings")
    with pytest.raises(ValueError, match="'zebras', which the new words cut otherwise"):
        script.extend_tokenizer(tokenizer, ["zebra"], ["zebras"])


def test_the_most_frequent_words_come_first_where_there_is_little_room(tokenizer):
    texts = ["yak lynx lynx", "lynx yak heron"]
    extended = script.extend_tokenizer(tokenizer, texts, vocab_size=len(tokenizer) + 1)
    assert single(extended, " lynx") and not single(extended, " heron")
    assert len(extended) == len(tokenizer) + 1


def test_going_on_without_new_words_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no word that is not one piece"):
        script.extend_tokenizer(tokenizer, OLD_TEXTS)
    arguments = script.ScriptArguments(output_dir=str(tmp_path), extend="x", captions="y")
    with pytest.raises(ValueError, match="extend has no new words"):
        script.run(arguments)
    arguments.text_files = [__file__]
    with pytest.raises(OSError, match="extend='x'"):
        script.run(arguments)


# Conversations


def conversation(question, answer):
    roles = zip(("user", "assistant"), (question, answer), strict=True)
    return {"messages": [{"role": role, "content": words} for role, words in roles]}


def test_words_of_conversations_are_learned_and_answers_measured(tmp_path, monkeypatch, capsys):
    talks = [conversation("which xylophone is it, and whose?", "mauve"), conversation("why?", "so")]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks * 3))
    words = ["--talks", str(tmp_path / "talks.jsonl"), "--output_dir", str(tmp_path / "made")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--max_text_length", "2"])
    script.main()
    made = PreTrainedTokenizerFast.from_pretrained(tmp_path / "made")
    assert all(single(made, word) for word in (" xylophone", "mauve", "so"))
    assert not capsys.readouterr().err.count("max_text_length")  # of answers, not of questions
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--max_text_length", "1"])
    script.main()
    assert "6 of 6 texts have more than max_text_length=1" in capsys.readouterr().err
    (tmp_path / "more.jsonl").write_text(json.dumps(conversation("a zither?", "ochre")) + "\n")
    words = ["--extend", str(tmp_path / "made"), "--talks", str(tmp_path / "more.jsonl")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--output_dir", str(tmp_path / "more")])
    script.main()
    more = PreTrainedTokenizerFast.from_pretrained(tmp_path / "more")
    assert single(more, " zither") and single(more, "ochre")


def test_words_of_streams_make_a_processor(tmp_path, monkeypatch, capsys):
    """From a recipe of captions and conversations, with a limit, end to end."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    captions = [[f"a {c} dress", f"{c} gown"] for c in ("grey", "red", "blue") for _ in range(5)]
    rows = [{"image": b"no picture", "caption": said} for said in captions]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "captions.parquet")
    talk = [("user", "which one"), ("assistant", "this zebra"), ("user", "thanks, giraffe")]
    messages = [{"role": role, "content": said} for role, said in talk]
    datasets.Dataset.from_list([{"messages": messages}] * 20).to_parquet(tmp_path / "t.parquet")
    recipe = [
        {"path": "parquet", "columns": {"image": "image", "text": "caption"},
         "data_files": {"train": str(tmp_path / "captions.parquet")}},
        {"path": "parquet", "columns": {"messages": "messages"},
         "data_files": {"train": str(tmp_path / "t.parquet")}},
        {"path": "no/such", "columns": {"image": "image", "label": "label"}},
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    shape = ["--image_size", "16", "--patch_size", "8", "--num_channels", "3"]
    shape += ["--max_text_length", "9", "--vocab_size", "320"]
    streams = ["--streams", tmp_path / "recipe.yaml", *shape]
    run_here([*streams, "--output_dir", tmp_path / "made"], monkeypatch, capsys)
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    for word in (" dress", " gown", " zebra", " giraffe"):
        assert len(made(word)["input_ids"]) == 1, word
    assert made.decode(made("any text, 3 ✓")["input_ids"]) == "any text, 3 ✓"
    run_here([*streams, "--output_dir", tmp_path / "again"], monkeypatch, capsys)
    both = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("made", "again")]
    assert both[0] == both[1]

    found = list(script.read_streams(script.parse(list(map(str, [
        *streams, "--output_dir", tmp_path / "x", "--limit", "7"])))[0]))  # fmt: skip
    assert len(found) == 7
    few = list(map(str, [*streams, "--output_dir", tmp_path / "x", "--limit_bytes", "30"]))
    told = list(script.read_streams(script.parse(few)[0]))
    assert told == found[: len(told)] and 0 < sum(map(len, told)) <= 30

    for line, message in (
        ([*streams, "--limit", "0"], "limit=0 must be at least 1"),
        (["--streams", "none.yaml"], "none.yaml"),
        ([*streams, "--extend", "examples/checkpoints/mdm-fashion"], "streams cannot extend"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_here([*line, "--output_dir", tmp_path / "x"], monkeypatch, capsys)


def test_rare_words_are_forgotten_and_frequent_ones_kept():
    split = script.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    texts = [f"common {n} often" for n in range(50)] + ["often"] * 5
    expected = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    assert script.count_words(texts, split) == expected
    bounded = script.count_words(texts, split, at_once=10)
    frequent = [word for word, count in expected.items() if count > 4]
    assert len(bounded) <= 10 + 3 and all(bounded[word] == expected[word] for word in frequent)
    assert script.count_words(texts, split, kept=2) == dict(expected.most_common(2))
