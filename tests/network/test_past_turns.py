# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Past turns: a call that goes on from an earlier one reads what is new, and changes no result."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import CLASSES, MIXERS, VOCABULARY, make_model
from tiny_turns import TALKS, assert_same, make_inputs

from modeling_mdm.past_turns import PastTurns, read_given, weights_fingerprint

WAYS = {**MIXERS, "placed": {"pooled_conditioning": True, "place_conditioning": True}}

FAST = ("cyclic-separate", "attention", "mode head")  # of the ways to build a model
OPTIONS = {
    "plain": {"guidance_scale": 1.0},
    "guided": {"guidance_scale": {"image": 3.0, "text": 1.5}},
    "jointly guided": {"guidance_scale": 2.0, "joint_guidance_scale": 1.5},
}


def run(model, inputs, mode="text", **options):
    opens_text = mode != "image" and bool(inputs.get("image_given", torch.ones(1)).all())
    length = {"max_new_tokens": 3} if opens_text else {}
    options = {"num_inference_steps": 3, "show_progress": False, **length, **options}
    generator = torch.Generator().manual_seed(7)
    return model.generate(
        **inputs, generation_mode=mode, generator=generator, output_trajectory=True, **options
    )


def check_going_on(model, inputs, past, mode="text", **options):
    """Go on from past turns, and check against the call that reads everything at every step."""
    out = run(model, inputs, mode, cache=past, **options)
    assert_same(out, run(model, inputs, mode, use_cache=False, **options))
    return out.cache


def newly_read(past, before):
    return (past.positions_read - before.positions_read).tolist()


def positions(talks, patches=4):
    return [sum(words + patches * pictures for words, pictures in talk) for talk in talks]


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        pytest.param(
            mixer, options, marks=[] if (i + j) % 3 == 0 else pytest.mark.slow, id=f"{mixer}-{name}"
        )
        for i, mixer in enumerate(WAYS)
        for j, (name, options) in enumerate(OPTIONS.items())
    ],
)
def test_going_on_equals_reading_everything_at_every_step(mixer, options):
    """Three calls, each with a reply and a message more; only these are read."""
    model, past, before = make_model(**WAYS[mixer]), None, 0
    tokens = 2  # a start token of each modality
    for first, stop in ((0, 1), (1, 3), (3, 5)):
        inputs = make_inputs([talk[:stop] for talk in TALKS])
        mode = "joint" if options.get("joint_guidance_scale") else "text"
        past = check_going_on(model, inputs, past, mode, **options)
        read = positions([talk[first:stop] for talk in TALKS])
        assert (past.positions_read - before).tolist() == [n + tokens * (first == 0) for n in read]
        before = past.positions_read
        assert past.stop.tolist() == [stop, stop]


@pytest.mark.parametrize("mixer", ["parallel", "attention"])
def test_what_was_read_turn_by_turn_gives_the_same_features(mixer):
    """The states themselves, not only what sampling makes of them."""
    model, past = make_model(**WAYS[mixer]), None
    for stop in (1, 3, 5):
        inputs = make_inputs([talk[:stop] for talk in TALKS])
        past = run(model, inputs, cache=past).cache
    at_once = run(model, inputs).cache
    assert at_once.positions_read.tolist() == [n + 2 for n in positions(TALKS)]
    for mine, theirs in zip(past.cache.layers, at_once.cache.layers, strict=True):
        for name, value in theirs.tensors.items():
            if mixer == "parallel":
                assert (mine.tensors[name] - value).abs().max() < 1e-10, name
            elif name == "readable":  # kept in the order of reading, with fillers of each call
                assert torch.equal(mine.tensors[name].sum(-1), value.sum(-1))


def test_one_past_serves_several_calls_and_stays_as_it_is():
    model = make_model()
    past = run(model, make_inputs([talk[:1] for talk in TALKS])).cache
    before = [layer.tensors["state"].clone() for layer in past.cache.layers]
    inputs = make_inputs([talk[:3] for talk in TALKS])
    first = run(model, inputs, cache=past, guidance_scale=2.0)
    assert_same(first, run(model, inputs, cache=past, guidance_scale=2.0), 0)
    for layer, state in zip(past.cache.layers, before, strict=True):
        assert torch.equal(layer.tensors["state"], state)
    # The same call again, for another sample of the reply: nothing is left to read.
    again = run(model, inputs, cache=first.cache, guidance_scale=2.0)
    assert_same(again, first)
    assert newly_read(again.cache, first.cache) == [0, 0]


@pytest.mark.parametrize("mode", ["image", "joint"])
def test_special_tokens_alone_are_read_once(mode):
    """A class and nothing else is given: its token and the start tokens are all of turn 0."""
    model, inputs = make_model(), {"class_labels": torch.tensor([1, 3])}
    past = check_going_on(model, inputs, None, mode)
    tokens = 1 + (2 if mode == "joint" else 1)
    assert past.positions_read.tolist() == [tokens] * 2
    assert past.stop.tolist() == [1, 1] and not past.content
    again = check_going_on(model, inputs, past, mode)
    assert newly_read(again, past) == [0, 0]


def test_items_may_have_had_different_numbers_of_turns():
    model = make_model()
    past = check_going_on(model, make_inputs([TALKS[0][:3], TALKS[1][:1]]), None)
    assert past.stop.tolist() == [3, 1]
    more = check_going_on(model, make_inputs([TALKS[0][:5], TALKS[1][:3]]), past)
    assert newly_read(more, past) == positions([TALKS[0][3:], TALKS[1][1:3]])


def test_what_a_reply_may_hold_is_remembered_where_nothing_is_new():
    model = make_model(use_mode_head=True)
    past = run(model, make_inputs([TALKS[0][:1], TALKS[1][:3]])).cache
    inputs = make_inputs([TALKS[0][:3], TALKS[1][:3]])  # only the first goes on
    more = run(model, inputs, cache=past).cache
    fresh = run(model, inputs).cache.mode_logits
    assert (more.mode_logits - fresh).abs().max() < 1e-10
    assert (past.mode_logits - fresh)[0].abs().max() > 1e-3
    chosen = more.batch_select_indices(torch.tensor([1, 0]))
    assert torch.equal(chosen.mode_logits, more.mode_logits.flip(0))


@pytest.mark.parametrize("mixer", ["parallel", "attention"])
def test_samples_of_an_item_share_its_past_and_may_go_on_as_conversations(mixer):
    model = make_model(**WAYS[mixer])
    options = {"guidance_scale": 2.0, "num_return_sequences": 3}
    past = check_going_on(model, make_inputs([t[:1] for t in TALKS]), None, **options)
    assert len(past) == 2
    first, past = past, check_going_on(model, make_inputs([t[:3] for t in TALKS]), past, **options)
    assert newly_read(past, first) == positions([t[1:3] for t in TALKS])
    inputs = {
        name: value.repeat_interleave(3, dim=0)
        for name, value in make_inputs([t[:5] for t in TALKS]).items()
    }
    repeated = past.batch_repeat_interleave(3)
    more = check_going_on(model, inputs, repeated, guidance_scale=2.0)
    assert newly_read(more, repeated) == [
        n for n in positions([t[3:] for t in TALKS]) for _ in "abc"
    ]
    one = {name: value[4:5] for name, value in inputs.items()}
    chosen = past.batch_select_indices(torch.tensor([1]))
    more = check_going_on(model, one, chosen)
    assert newly_read(more, chosen) == positions([TALKS[1][3:]])


def change_word(inputs):
    inputs["input_ids"][0, 1] = (inputs["input_ids"][0, 1] + 1) % VOCABULARY


def change_pixel(inputs):
    inputs["pixel_values"][1, 0, 0, 2, 3] *= 0.5


def move_word(inputs):
    inputs["turn_ids"][0, 2] = 1


def drop_word(inputs):
    inputs["attention_mask"][0, 0] = 0


def name_class(inputs):
    inputs["class_labels"] = torch.tensor([-1, CLASSES - 1])


CHANGES = [change_word, change_pixel, move_word, drop_word, name_class]


@pytest.mark.parametrize("change", CHANGES)
def test_what_begins_otherwise_is_read_anew(change):
    model = make_model()
    past = run(model, make_inputs([talk[:1] for talk in TALKS])).cache
    inputs = make_inputs([talk[:3] for talk in TALKS])
    change(inputs)
    fresh = run(model, inputs).cache
    more = check_going_on(model, inputs, past, guidance_scale=2.0)
    assert newly_read(more, past) == fresh.positions_read.tolist()


def test_the_first_picture_of_a_conversation_has_all_read_anew():
    """Its start token comes before all turns."""
    model, talk = make_model(), [[(3, 0), (2, 0), (4, 1)]]
    past = run(model, make_inputs([talk[0][:1]])).cache
    assert past.positions_read.tolist() == [4]
    more = check_going_on(model, make_inputs(talk), past)
    assert newly_read(more, past) == [9 + 4 + 2]
    asked = check_going_on(model, make_inputs([talk[0][:1]]), past, "image")
    assert newly_read(asked, past) == [5]  # a picture to be written has one too
    drawn = check_going_on(model, make_inputs([[(3, 0), (0, 1), (2, 0)]]), asked)
    assert newly_read(drawn, asked) == [4 + 2]  # it is read once it is given


def test_known_parts_of_a_region_are_not_kept():
    """Half of the last picture is repainted; then it is a picture like any other."""
    model = make_model()
    inputs = make_inputs([[(3, 1), (2, 1)]])
    inputs["image_given"][0, 1, :4] = False
    options = {"guidance_scale": 2.0}
    past = run(model, inputs, **options).cache
    assert_same(run(model, inputs, **options), run(model, inputs, use_cache=False, **options))
    assert past.stop.tolist() == [1]  # the words beside that picture go with it
    assert past.positions_read.tolist() == [2 + 3 + 4 + 2 + 2]
    more = check_going_on(model, make_inputs([[(3, 1), (2, 1), (1, 0)]]), past)
    assert newly_read(more, past) == [2 + 4 + 1]
    # Nothing at all is kept where the region begins with the conversation.
    inputs = make_inputs([[(2, 1)]])
    inputs["image_given"][0, 0, :4] = False
    past = run(model, inputs, **options).cache
    assert past.stop.tolist() == [0] and not past.content
    more = check_going_on(model, make_inputs([[(2, 1), (1, 0), (1, 0)]]), past)
    assert newly_read(more, past) == [2 + 2 + 4 + 2]


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_words_that_go_ahead_are_not_kept_as_given(overlap):
    model, inputs = make_model(), make_inputs([talk[:3] for talk in TALKS])
    past = run(model, make_inputs([talk[:1] for talk in TALKS])).cache
    options = {"joint_overlap": overlap, "guidance_scale": 2.0, "num_inference_steps": 6}
    for samples in (1, 2):
        more = check_going_on(model, inputs, past, "joint", num_return_sequences=samples, **options)
        assert more.stop.tolist() == [3, 3]


def test_a_past_that_nothing_can_go_on_from_is_refused():
    model, inputs = make_model(), make_inputs([talk[:3] for talk in TALKS])
    past = run(model, make_inputs([talk[:1] for talk in TALKS])).cache
    assert isinstance(past, PastTurns)
    with pytest.raises(ValueError, match="holds 2 conversations, but the inputs hold 1"):
        run(model, {name: value[:1] for name, value in inputs.items()}, cache=past)
    with pytest.raises(ValueError, match="use_cache=False"):
        run(model, inputs, cache=past, use_cache=False)
    with pytest.raises(ValueError, match=r"`keep` = 0\.5"):
        run(model, inputs, cache=past, keep=0.5)
    with pytest.raises(ValueError, match=r"3 in torch\.float64"):
        run(make_model(num_hidden_layers=3), inputs, cache=past)
    with pytest.raises(ValueError, match=r"2 in torch\.float32"):
        run(make_model(torch.float32), inputs, cache=past)
    assert run(model, inputs, use_cache=False).cache is None
    assert run(model, inputs, keep=0.5).cache is None


# --- a past belongs to the weights that read it


def add_adapters(model):
    """Two adapters of the layers that the model has, neither of which is idle."""
    config = LoraConfig(r=2, target_modules=["in_proj", "out_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config, adapter_name="first")
    wrapped.add_adapter("second", config)
    wrapped.set_adapter("first")
    return wrapped


def train_in_place(model):
    """One step of an optimizer, which moves every weight by a millionth."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def change_data(model):
    model.decoder.layers[-1].mixer.in_proj.weight.data[0, 0] += 0.01


OTHER_WEIGHTS = {
    "another adapter": (add_adapters, lambda wrapped: wrapped.set_adapter("second")),
    "both": (add_adapters, lambda wrapped: wrapped.base_model.set_adapter(["first", "second"])),
    "no adapter": (add_adapters, lambda wrapped: wrapped.base_model.disable_adapter_layers()),
    "merged in place": (add_adapters, lambda wrapped: wrapped.merge_adapter()),
    "trained in place": (lambda model: model, train_in_place),
    "one weight, past autograd": (lambda model: model, change_data),
    "another state": (
        lambda model: model,
        lambda model: model.load_state_dict(make_model(seed=1).state_dict()),
    ),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
@pytest.mark.parametrize("case", OTHER_WEIGHTS)
def test_what_other_weights_have_read_is_read_anew(case):
    prepare, change = OTHER_WEIGHTS[case]
    model = make_model()
    handle = prepare(model)
    first, inputs = make_inputs([t[:1] for t in TALKS]), make_inputs([t[:3] for t in TALKS])
    past = run(model, first).cache
    change(handle)
    fresh = run(model, inputs, "joint", guidance_scale=2.0)
    more = run(model, inputs, "joint", cache=past, guidance_scale=2.0)
    assert_same(more, fresh)
    if case != "merged in place":  # the same weights to rounding: either is right
        assert newly_read(more.cache, past) == fresh.cache.positions_read.tolist()


def test_another_model_of_the_same_kind_reads_anew_and_a_copy_goes_on():
    model = make_model()
    past = run(model, make_inputs([t[:1] for t in TALKS])).cache
    inputs = make_inputs([t[:3] for t in TALKS])
    other = make_model(seed=1)
    assert_same(run(other, inputs, cache=past), run(other, inputs))
    twin = copy.deepcopy(model)
    state = make_model(seed=1)
    state.load_state_dict(model.state_dict())
    stored = pickle.loads(pickle.dumps(past))
    for same, kept in ((twin, past), (state, past), (model, stored)):
        more = run(same, inputs, cache=kept)
        assert newly_read(more.cache, past) == positions([t[1:3] for t in TALKS])
    back = copy.deepcopy(model).bfloat16().double()  # rounded on the way
    assert_same(run(back, inputs, cache=past), run(back, inputs))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, changes in {
            **WAYS,
            "mode head": {"use_mode_head": True},
            "no self-conditioning": {"self_conditioning": False},
        }.items()
    ],
)
def test_every_weight_that_changes_what_is_read_is_told(changes):
    """Each in turn is moved a little; where the states of a conversation move, the digest does."""
    model = make_model(**changes)
    inputs = make_inputs(TALKS) | {"class_labels": torch.tensor([CLASSES - 1, 2])}

    @torch.no_grad()
    def read():
        encoded = model.encode_inputs(**inputs)
        absent = torch.zeros_like(encoded.has_class)
        args = (encoded.content, encoded.has_class, absent, encoded.grid)
        past, _ = read_given(model, encoded, model.decoder.lay_out(*args), b"")
        tensors = [t for layer in past.cache.layers for t in layer.tensors.values()]
        return [*tensors, *([past.mode_logits] if model.config.use_mode_head else [])]

    before, digest = read(), weights_fingerprint(model)
    assert weights_fingerprint(model) == digest
    told = set()
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if not weight.is_floating_point() or not weight.numel():
                continue
            kept = weight.clone()
            weight.mul_(1 + 1e-6).add_(1e-7)
            moved = any(not torch.equal(a, b) for a, b in zip(before, read(), strict=True))
            if moved:
                told.add(name)
                assert weights_fingerprint(model) != digest, name
            weight.copy_(kept)
    assert len(told) > 20
    assert weights_fingerprint(model) == digest


def test_one_word_or_class_that_learned_is_told():
    model = make_model()
    digest = weights_fingerprint(model)
    for embedding in (model.vae.embed_tokens, model.decoder.class_embedding):
        for row in range(len(embedding.weight)):
            embedding.weight.data[row] *= 1 + 1e-6
            assert weights_fingerprint(model) != digest
            digest = weights_fingerprint(model)


def test_weights_that_cannot_be_seen_are_never_taken_for_the_same():
    model = make_model().to("meta")  # as offloaded weights are between two calls
    assert weights_fingerprint(model) != weights_fingerprint(model)


def test_a_part_of_another_tensor_is_told_too():
    """Weights may lie anywhere in a flat one, and end within a whole number."""
    flat = torch.arange(70001, dtype=torch.float32).to(torch.bfloat16)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(flat[1:])
    digest = weights_fingerprint(module)
    for place in (1, 2, 35000, 70000):
        flat[place] += 1000
        assert weights_fingerprint(module) != digest
        digest = weights_fingerprint(module)
    flat[[5, 60000]] = flat[[60000, 5]]  # the same numbers in other places
    assert weights_fingerprint(module) != digest
