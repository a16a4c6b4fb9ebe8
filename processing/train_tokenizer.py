# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level Unigram tokenizer and write a complete processor folder.

From a caption table, for 28x28 grey pictures in patches of 4:

    python processing/train_tokenizer.py --captions examples/captions/fashion_mnist.json \
        --output_dir outputs/processor --image_size 28 --patch_size 4 --num_channels 1 \
        --max_text_length 12

From the captions of a data set: a folder of pictures with metadata.jsonl, Parquet files, an id on
the Hub, all that `mdm train --dataset` takes:

    python processing/train_tokenizer.py --dataset path/to/folder --vocab_size 8000 \
        --output_dir outputs/processor --image_size 64 --patch_size 8 --num_channels 3

Where a picture has a list of captions, all are read, and with `--talks` all that is said in
conversations. That of the emoji world (examples/data/emoji_world.py), of its training split:

    python processing/train_tokenizer.py --dataset runs/emoji-64 --columns text=captions \
        --talks runs/emoji-64/talks --vocab_size 2000 --max_text_length 24 \
        --image_size 32 --patch_size 8 --num_channels 3 --output_dir processing/mdm-emoji

From streams, which are not loaded whole: the sets of a recipe, or ids on the Hub. A vocabulary for
the large presets, of the first ten million texts or 4 GB of them, whichever end first:

    python processing/train_tokenizer.py --streams configuration/data/paper.yaml \
        --vocab_size 32000 --limit 10000000 --limit_bytes 4000000000 --max_text_length 256 \
        --image_size 256 --patch_size 16 --num_channels 3 --output_dir my-processor

From plain text, one text per line:

    python processing/train_tokenizer.py --text_files corpus.txt --vocab_size 8000 \
        --output_dir outputs/processor --image_size 64 --patch_size 8 --num_channels 3

With more words for a processor that a model was trained with: words keep their ids, captions that
`--captions` names keep their pieces, and each other word of the texts becomes one piece:

    python processing/train_tokenizer.py --extend processing/mdm-fashion \
        --captions examples/captions/fashion_mnist.json \
        --text_files examples/captions/fashion_talks.txt --output_dir outputs/processor

The same input gives the same bytes every time.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__)

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from mdm_cli.places import require_file, require_writable

SPECIAL_TOKENS = ("<pad>", "<mask>", "<image>", "<end>")
MAX_PIECE_LENGTH = 16  # bytes
MAX_WORD_LENGTH = 32  # bytes
EXTENSION_MARGIN = 0.01  # by which a new piece beats its own letters, in nats
# Of a corpus that is streamed: distinct words that are counted at once, and learned from. A piece
# that only rarer words have is not missed.
MOST_COUNTED, MOST_LEARNED = 20_000_000, 400_000
MEASURED = 10_000  # texts of a stream whose length is looked at
SPECIAL_SCORE = -1e6  # spelling a special token out in bytes always beats it


@dataclass
class ScriptArguments:
    """What to train on, and the shape of what the processor makes."""

    output_dir: str = field(metadata={"help": "Folder for the tokenizer and both configurations."})
    text_files: list[str] = field(
        default_factory=list, metadata={"help": "UTF-8 text files; each line is one text."}
    )
    captions: str | None = field(
        default=None,
        metadata={
            "help": 'JSON table {"labels": [[names of class 0], ...], "templates": ["a {}", ...]}; '
            "every template is filled with every name."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "A folder of pictures with captions, or the id of a set on the Hub."},
    )
    streams: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Recipes (YAML files such as configuration/data/paper.yaml), or ids of sets on "
            "the Hub or folders, whose texts are read as they come; nothing is loaded whole."
        },
    )
    text_column: str = field(
        default="text", metadata={"help": "Of streams that are no recipe: the column of texts."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Read so many texts of the streams at most, in all."}
    )
    limit_bytes: int | None = field(
        default=None, metadata={"help": "Read so many bytes of UTF-8 of the streams at most."}
    )
    talks: str | None = field(
        default=None,
        metadata={
            "help": "Conversations to read as well: a file, folder or Hub id with a column "
            "`messages`."
        },
    )
    extend: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a processor to go on from: its words keep their ids and scores, and "
            "the options of shape below are its own. Words of captions stay as they are cut."
        },
    )
    split: str = field(
        default="train", metadata={"help": "The split of dataset and talks to read."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns of dataset by role, as role=column: image, text, label."},
    )
    vocab_size: int = field(
        default=1024,
        metadata={"help": "Most entries the vocabulary may have: 4 special, 256 bytes, pieces."},
    )
    image_size: int = field(
        default=28, metadata={"help": "Side of the square pictures, in pixels."}
    )
    patch_size: int = field(default=4, metadata={"help": "Side of a patch; divides image_size."})
    num_channels: int = field(default=1, metadata={"help": "1 for grey pictures, 3 for RGB."})
    max_text_length: int = field(
        default=32, metadata={"help": "Longest text in pieces, <end> included."}
    )


def expand_captions(table: dict) -> tuple[list[str], int]:
    """Fill every template with every name.

    Returns:
        The captions, and the number of classes.

    Raises:
        ValueError: if a key is missing, a class has no name or a template has no "{}".
    """
    for key in ("labels", "templates"):
        if not table.get(key):
            raise ValueError(f"captions has no {key!r}; it needs both 'labels' and 'templates'.")
    unnamed = [index for index, names in enumerate(table["labels"]) if not names]
    if unnamed:
        raise ValueError(f"captions['labels'] has no name for class {unnamed[0]}; give it one.")
    unfilled = [template for template in table["templates"] if "{}" not in template]
    if unfilled:
        raise ValueError(f"captions['templates'] has {unfilled[0]!r} without a '{{}}' to fill.")
    names = [name for names in table["labels"] for name in names]
    captions = [template.replace("{}", name) for template in table["templates"] for name in names]
    return captions, len(table["labels"])


class Unigram:
    """A language model in which a word is a sequence of independent pieces (Kudo, 2018).

    The trainer of `tokenizers` is not used: it sums in the order of a random hash, so two runs
    differ, and it never learns a piece that only one distinct word contains, which would leave a
    small set of captions in fragments.

    Attributes:
        log_prob: log-probability of each piece.
    """

    def __init__(self, words: dict[str, int], max_seeds: int):
        self.words = dict(sorted(words.items()))
        counts: Counter[str] = Counter()
        for word, count in self.words.items():
            for start in range(len(word)):
                for end in range(start + 1, min(start + MAX_PIECE_LENGTH, len(word)) + 1):
                    counts[word[start:end]] += count
        longer = [piece for piece in counts if len(piece) > 1 and counts[piece] > 1]
        longer.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
        self.characters = {piece for piece in counts if len(piece) == 1}
        self.log_prob: dict[str, float] = {}
        self._normalise(
            {piece: counts[piece] for piece in (*sorted(self.characters), *longer[:max_seeds])}
        )

    def _normalise(self, counts: dict[str, float]) -> None:
        log_total = math.log(sum(counts.values()))
        self.log_prob = {piece: math.log(count) - log_total for piece, count in counts.items()}

    def _pieces(self, word: str) -> Iterator[tuple[int, int, float]]:
        """Every known piece of a word as (start, end, log_prob), by rising end."""
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - MAX_PIECE_LENGTH), end):
                log_prob = self.log_prob.get(word[start:end])
                if log_prob is not None:
                    yield start, end, log_prob

    def expectation_maximisation(self) -> None:
        """Re-estimate every piece from its expected count over all segmentations."""
        expected: defaultdict[str, float] = defaultdict(float)
        for word, count in self.words.items():
            pieces = list(self._pieces(word))
            forward = [1.0] + [0.0] * len(word)
            for start, end, log_prob in pieces:
                forward[end] += forward[start] * math.exp(log_prob)
            backward = [0.0] * len(word) + [1.0]
            for start, end, log_prob in reversed(pieces):
                backward[start] += backward[end] * math.exp(log_prob)
            for start, end, log_prob in pieces:
                share = forward[start] * math.exp(log_prob) * backward[end] / forward[-1]
                expected[word[start:end]] += count * share
        # A character stays, whatever its count: without it some word would have no segmentation.
        kept = {p: c for p, c in expected.items() if c >= 0.5 or p in self.characters}
        self._normalise({piece: max(count, 1e-3) for piece, count in kept.items()})

    def segment(self, word: str, whole: bool = True) -> tuple[float, list[str]]:
        """Best segmentation of a word and its log-probability; `whole=False` forbids one piece."""
        best: list[tuple[float, int]] = [(0.0, 0)] + [(-math.inf, 0)] * len(word)
        for start, end, log_prob in self._pieces(word):
            if whole or end - start < len(word):
                best[end] = max(best[end], (best[start][0] + log_prob, start))
        pieces, end = [], len(word)
        while end > 0:
            start = best[end][1]
            pieces.append(word[start:end])
            end = start
        return best[-1][0], pieces[::-1]

    def prune(self, size: int) -> None:
        """Keep the `size` pieces whose loss would cost the corpus most log-likelihood."""
        uses: Counter[str] = Counter()
        for word, count in self.words.items():
            for piece in self.segment(word)[1]:
                uses[piece] += count
        cost = {
            piece: uses[piece] * (log_prob - self.segment(piece, whole=False)[0])
            for piece, log_prob in self.log_prob.items()
            if piece not in self.characters
        }
        kept = sorted(cost, key=lambda piece: (-cost[piece], piece))[: size - len(self.characters)]
        self.log_prob = {piece: self.log_prob[piece] for piece in (*sorted(self.characters), *kept)}


def learn_pieces(words: dict[str, int], size: int) -> dict[str, float]:
    """Learn at most `size` pieces of words, every character among them.

    Args:
        words: how often each word occurs.
        size: most pieces to keep.

    Returns:
        The log-probability of each piece.
    """
    model = Unigram(words, max_seeds=20 * size)
    with tqdm(desc="pieces", unit=" rounds") as progress:
        while True:
            for _ in range(4):
                model.expectation_maximisation()
            progress.update()
            progress.set_postfix(pieces=len(model.log_prob))
            if len(model.log_prob) <= size:
                return model.log_prob
            # Small bites: each piece's cost is only right while the others stay.
            model.prune(max(size, int(0.75 * len(model.log_prob))))


def count_words(
    texts: Iterable[str],
    split_words: pre_tokenizers.PreTokenizer,
    at_once: int = MOST_COUNTED,
    kept: int = MOST_LEARNED,
) -> Counter[str]:
    """Count the words of texts, in bytes, in bounded memory.

    Args:
        texts: the corpus.
        split_words: makes words of it.
        at_once: words that are counted at once; beyond it, those seen least often are forgotten.
        kept: most words to keep, the most frequent.
    """
    words: Counter[str] = Counter()
    least = 1
    for text in texts:
        # Cut: EM multiplies probabilities along a word, and some scripts write clauses as one word.
        words.update(
            word[start : start + MAX_WORD_LENGTH]
            for word, _ in split_words.pre_tokenize_str(text)
            for start in range(0, len(word), MAX_WORD_LENGTH)
        )
        while len(words) > at_once:
            words = Counter({word: count for word, count in words.items() if count > least})
            least += len(words) > at_once
    if len(words) <= kept:
        return words
    order = sorted(words, key=lambda word: (-words[word], word))
    return Counter({word: words[word] for word in order[:kept]})


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level Unigram tokenizer that gives back any Unicode string exactly.

    A piece is at most one word with the space before it. The vocabulary holds the special tokens
    (ids 0-3: `<pad>`, `<mask>`, `<image>`, `<end>`), all 256 bytes, and learned pieces; it stays
    below `vocab_size` where the texts have too few words to fill it. The characters of a special
    token within a text are ordinary characters.

    Args:
        texts: the corpus.
        vocab_size: most entries of the vocabulary.

    Raises:
        ValueError: if `vocab_size` has no room for special tokens and bytes, or `texts` is empty.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} has no room for {len(SPECIAL_TOKENS)} special tokens and "
            f"{len(alphabet)} bytes; give at least {smallest}."
        )
    split_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = count_words(texts, split_words)
    if not words:
        raise ValueError("texts holds no words; give at least one text that is not empty.")

    unseen = [byte for byte in alphabet if not any(byte in word for word in words)]
    scores = learn_pieces(words, size=vocab_size - len(SPECIAL_TOKENS) - len(unseen))
    floor = min(scores.values()) - 1.0
    scores.update(dict.fromkeys(unseen, floor))
    vocabulary = [(token, SPECIAL_SCORE) for token in SPECIAL_TOKENS]
    vocabulary += sorted(
        ((piece, round(score, 6)) for piece, score in scores.items()),
        key=lambda entry: (-entry[1], entry[0]),
    )

    return _unigram(vocabulary, split_words)


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    kept: Iterable[str] = (),
    vocab_size: int | None = None,
) -> PreTrainedTokenizerFast:
    """Make each word of some texts one piece of a tokenizer that `train_tokenizer` has made.

    Old pieces keep their ids and scores. A new one beats the pieces that it is made of by a hair,
    so a word that holds it is cut otherwise only where it was cut at both of its ends before.

    Args:
        tokenizer: to go on from.
        texts: whose words, of 16 bytes at most, become pieces, the most frequent first.
        kept: texts whose words stay as they are cut.
        vocab_size: most entries of the vocabulary; None for no limit.

    Raises:
        ValueError: if no word is new, or a text of `kept` would be cut otherwise, by a word that
            it holds.
    """
    kept, model = list(kept), json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    split_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def count(some: Iterable[str]) -> Counter[str]:
        return Counter(word for text in some for word, _ in split_words.pre_tokenize_str(text))

    old = dict(model["vocab"][len(SPECIAL_TOKENS) :])
    staying = set(old) | set(count(kept))
    words = {
        word: n
        for word, n in count(texts).items()
        if word not in staying and len(word) <= MAX_PIECE_LENGTH
    }
    if not words:
        raise ValueError("texts holds no word that is not one piece already: leave out --extend.")
    known = Unigram(words, max_seeds=0)
    known.log_prob = dict(old)
    room = len(words) if vocab_size is None else vocab_size - len(model["vocab"])
    chosen = sorted(words, key=lambda word: (-words[word], word))[: max(0, room)]
    for word in sorted(chosen, key=lambda word: (len(word), word)):  # a part of another one first
        known.log_prob[word] = round(known.segment(word)[0] + EXTENSION_MARGIN, 6)
    vocabulary = [(piece, score) for piece, score in model["vocab"]]
    vocabulary += [(word, known.log_prob[word]) for word in chosen]
    extended = _unigram(vocabulary, split_words)
    before, after = (list(t(kept)["input_ids"]) if kept else [] for t in (tokenizer, extended))
    if changed := [text for text, a, b in zip(kept, before, after, strict=True) if a != b]:
        raise ValueError(
            f"captions has {changed[0]!r}, which the new words cut otherwise: leave out of "
            "--text_files the word that it holds a part of."
        )
    return extended


def _unigram(
    vocabulary: list[tuple[str, float]], split_words: pre_tokenizers.PreTokenizer
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of a vocabulary: pieces and their scores."""
    tokenizer = Tokenizer(models.Unigram(vocabulary))
    tokenizer.pre_tokenizer = split_words
    tokenizer.decoder = decoders.ByteLevel()
    pad, mask, image, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        mask_token=mask,
        eos_token=end,
        extra_special_tokens={"image_token": image},
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def read_texts(arguments: ScriptArguments) -> tuple[list[str], list[str], int | None]:
    """Gather the corpus that the arguments name.

    Returns:
        The texts that are to be written, captions and answers; those that are only read, the rest
        of conversations; and the number of classes if a caption table tells it.
    """
    a = arguments
    if not (a.text_files or a.captions or a.dataset or a.streams or a.talks):
        raise ValueError(
            "Nothing to train on: give --text_files, --captions, --dataset, --streams or --talks."
        )
    texts, requests, num_classes = [], [], None
    for path in arguments.text_files:
        require_file("text_files", path)
        texts += Path(path).read_text(encoding="utf-8").splitlines()
    if arguments.captions is not None:
        require_file("captions", arguments.captions)
        captions, num_classes = expand_captions(
            json.loads(Path(arguments.captions).read_text(encoding="utf-8"))
        )
        texts += captions
    if arguments.dataset is not None:
        found, classes = read_captions(arguments)
        texts, num_classes = texts + found, num_classes or classes
    if arguments.talks is not None:
        from modeling_mdm.data.talks import load_talks

        talks = load_talks(arguments.talks, arguments.split)
        texts += [words for _, words in talks.answers()]
        requests = [words for _, words in talks.texts(("system", "user"))]
    return texts, requests, num_classes


def read_streams(arguments: ScriptArguments) -> Iterator[str]:
    """Give what is said in the streams that are named, up to the limits.

    Raises:
        ValueError: if a limit is below 1, or no stream has words.
        FileNotFoundError: if a recipe is missing.
    """
    from modeling_mdm.data.stream_sources import StreamSource, read_recipe
    from modeling_mdm.data.streams import said_in

    for name in ("limit", "limit_bytes"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1, or left out.")
    sources = []
    for name in arguments.streams:
        if name.endswith((".yaml", ".yml")):
            require_file("streams", name)
            sources += read_recipe(name)
        else:
            columns = {"text": arguments.text_column}
            sources.append(StreamSource(name, columns=columns, split=arguments.split))
    if not sources:
        return
    left = math.inf if arguments.limit_bytes is None else arguments.limit_bytes
    with tqdm(desc="texts", unit=" texts", total=arguments.limit) as progress:
        for text in islice(said_in(sources), arguments.limit):
            left -= len(text.encode())
            if left < 0:
                return
            progress.update()
            yield text


def read_captions(arguments: ScriptArguments) -> tuple[list[str], int | None]:
    """Gather the captions of a data set, and of a labelled one those made of its class names.

    Returns:
        The texts, and the number of classes if items have labels.

    Raises:
        ValueError: if it holds neither.
    """
    from modeling_mdm.data.pictures import load_training_data
    from modeling_mdm.training.command_line import pairs

    columns = pairs("columns", arguments.columns)
    data = load_training_data(arguments.dataset, arguments.split, columns=columns)
    texts = [text for _, text in data.texts() if text]
    if data.captions is not None:
        texts += data.captions.all_captions()
    if not texts:
        raise ValueError(
            f"dataset={arguments.dataset!r} holds no captions: give --text_files, or name their "
            "column, as --columns text=column."
        )
    return texts, data.num_classes


def say_what_is_too_long(texts: list[str], tokenizer: PreTrainedTokenizerFast, most: int) -> None:
    """Tell of texts that have more pieces than the processor takes, the longest first."""
    lengths = [len(pieces) + 1 for pieces in tokenizer(texts)["input_ids"]]  # with <end>
    if too_many := sum(length > most for length in lengths):
        longest = max(lengths)
        print(
            f"{too_many} of {len(texts)} texts have more than max_text_length={most} pieces, the "
            f"longest {longest}: give --max_text_length {longest}, or --truncation in training.",
            file=sys.stderr,
        )


def parse(argv: Sequence[str]) -> tuple[ScriptArguments]:
    """Read the command line.

    Raises:
        ValueError: if it has an unknown argument.
    """
    (arguments,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(list(argv))
    return (arguments,)


def extend(arguments: ScriptArguments) -> None:
    """Save the processor of `extend` with more words.

    Raises:
        ValueError: if nothing but captions is named: their words stay as they are.
    """
    from modeling_mdm.processor.processing_mdm import MDMProcessor
    from modeling_mdm.training.loading import load_pretrained

    if arguments.streams:
        raise ValueError("streams cannot extend a processor: give --text_files or --dataset.")
    if not (arguments.text_files or arguments.dataset or arguments.talks):
        raise ValueError("extend has no new words: give --text_files, --dataset or --talks.")
    processor = load_pretrained(MDMProcessor, "extend", arguments.extend)
    kept = (
        read_texts(replace(arguments, text_files=[], dataset=None, talks=None))[0]
        if arguments.captions
        else []
    )
    texts, requests, _ = read_texts(replace(arguments, captions=None))
    before = len(processor.tokenizer)
    processor.tokenizer = extend_tokenizer(
        processor.tokenizer, texts + requests, kept, arguments.vocab_size
    )
    processor.save_pretrained(arguments.output_dir)
    print(
        f"{len(processor.tokenizer)} tokens, {len(processor.tokenizer) - before} of them new; "
        f"processor saved to {arguments.output_dir}"
    )


def run(arguments: ScriptArguments) -> None:
    """Train the tokenizer, or go on from one, and save the processor."""
    from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
    from modeling_mdm.processor.processing_mdm import MDMProcessor

    require_writable("output_dir", arguments.output_dir)
    if arguments.extend is not None:
        extend(arguments)
        return
    texts, requests, num_classes = read_texts(arguments)
    streamed: list[str] = []

    def read() -> Iterator[str]:
        yield from texts + requests
        for text in read_streams(arguments):
            if len(streamed) < MEASURED:
                streamed.append(text)
            yield text

    tokenizer = train_tokenizer(read(), arguments.vocab_size)
    texts += streamed
    say_what_is_too_long(texts, tokenizer, arguments.max_text_length)
    side = arguments.image_size
    processor = MDMProcessor(
        MDMImageProcessor(
            size={"height": side, "width": side}, num_channels=arguments.num_channels
        ),
        tokenizer,
        patch_size=arguments.patch_size,
        max_text_length=arguments.max_text_length,
        num_classes=num_classes,
    )
    processor.save_pretrained(arguments.output_dir)
    print(f"{len(tokenizer)} tokens; processor saved to {arguments.output_dir}")


def main() -> None:
    """Do what the command line says."""
    run(*parse(sys.argv[1:]))
