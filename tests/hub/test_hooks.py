# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods of the libraries that our classes replace or call: a renamed one would go unnoticed.

An override that its parent no longer has is never called, and no error says so. So each is written
down here, and must still be there with arguments that ours takes.
"""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from transformers import GenerationMixin
from transformers.modeling_outputs import ModelOutput

import modeling_mdm
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.trainer import MDMTrainer

# By class, what it replaces of a library's class. Modules of torch have `forward` and `train`
# alone, which nobody renames.
OVERRIDES = {
    "MDMConfig": {"validate_architecture"},
    "MDMGenerationConfig": {"from_model_config", "validate"},
    "MDMImageProcessor": {"_preprocess", "process_image"},
    "MDMImageProcessorPil": {"_preprocess", "process_image", "resize"},
    "MDMPreTrainedModel": {"_init_weights"},
    "MDMForJointGeneration": {"save_pretrained"},
    "MDMNetwork": {
        *("get_input_embeddings", "set_input_embeddings"),
        *("get_output_embeddings", "set_output_embeddings", "resize_token_embeddings"),
    },
    "MDMJointGenerationPipeline": {
        *("_sanitize_parameters", "_forward", "preprocess", "postprocess", "save_pretrained"),
    },
    "MDMProcessor": {"apply_chat_template", "to_dict"},
    "SampleReader": {"post_process_image_text_to_text", "post_process_multimodal_output"},
    "MDMStreamer": {"put", "end"},
    "MDMLanguageModel": {"loglikelihood", "loglikelihood_rolling", "generate_until"},
    "SavesWhole": {
        *("save_model", "_get_output_dir", "_push_from_checkpoint", "_save_checkpoint"),
    },
    "SplitsWeights": {
        *("compute_loss_context_manager", "_prepare_for_training", "_load_best_model"),
        *("_save_optimizer_and_scheduler", "_load_from_checkpoint"),
        "_load_optimizer_and_scheduler",
    },
    "SharesSequences": {"training_step"},
    "GoesOn": {"train", "get_batch_samples", "get_train_dataloader", "_load_rng_state"},
    "MDMTrainer": {
        *("get_batch_samples", "compute_loss", "log", "evaluate", "evaluation_loop"),
        *("_load_best_model", "get_decay_parameter_names", "training_step"),
        *("get_eval_dataloader", "_get_train_sampler"),
    },
    "_TrainingEvents": {
        *("on_train_begin", "on_epoch_begin", "on_pre_optimizer_step", "on_step_end"),
    },
}
OTHERS = (
    "modeling_mdm",
    "torch",
    "tarfile",
    "builtins",
    "collections",
    "abc",
    "argparse",
    "typing",
)


def own_classes():
    """Every class of the package, its optional parts included."""
    for module in pkgutil.walk_packages(modeling_mdm.__path__, "modeling_mdm."):
        if module.name.endswith("__main__"):  # runs when it is imported
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:  # kernels
            continue
        for value in vars(loaded).values():
            if inspect.isclass(value) and value.__module__ == loaded.__name__:
                yield value


def library_parent(cls, name):
    """The first class of a library from which `cls` would have a method."""
    for parent in cls.__mro__[1:]:
        if parent.__module__.split(".")[0] not in OTHERS and inspect.isroutine(
            inspect.getattr_static(parent, name, None) if name in vars(parent) else None
        ):
            return parent
    return None


def overrides(cls):
    """Methods that a class replaces, without those that Python itself calls."""
    return {
        name
        for name, value in vars(cls).items()
        if not name.startswith("__")
        and inspect.isroutine(value)
        and value.__module__ == cls.__module__  # not what a decorator put there
        and library_parent(cls, name) is not None
    }


# An output is a dictionary, whose methods are Python's own or transformers' by version.
CLASSES = {cls.__name__: cls for cls in own_classes() if not issubclass(cls, ModelOutput)}
PAIRS = [(name, method) for name, methods in OVERRIDES.items() for method in sorted(methods)]


def test_every_override_is_written_down_and_still_one():
    """A renamed parent's method leaves this list too long, a new override too short."""
    found = {name: overrides(cls) for name, cls in CLASSES.items()}
    assert {name: methods for name, methods in found.items() if methods} == OVERRIDES


def parameters(function):
    """Names by position and by keyword alone, and whether any others are taken."""
    kinds = {kind: [] for kind in inspect._ParameterKind}
    for parameter in inspect.signature(function).parameters.values():
        kinds[parameter.kind].append(parameter)
    return kinds


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_an_override_takes_what_its_parent_is_passed(name, method):
    """All that the parent's signature names fits ours, which needs nothing more."""
    cls = CLASSES[name]
    ours, theirs = getattr(cls, method), getattr(library_parent(cls, method), method)
    mine, their = parameters(ours), parameters(theirs)
    plain, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    takes_any = mine[inspect.Parameter.VAR_KEYWORD]
    known = {p.name for p in mine[plain] + mine[named]}
    # Positional ones may have another name; keywords may not, unless ours takes any.
    places = len(mine[plain]) if not mine[inspect.Parameter.VAR_POSITIONAL] else 10**6
    required = [p.name for p in mine[plain] + mine[named] if p.default is inspect.Parameter.empty]
    for index, parameter in enumerate(their[plain]):
        assert parameter.name in known or takes_any or index < places, parameter
    for parameter in their[named]:
        assert parameter.name in known or takes_any, parameter
    names = {p.name for p in their[plain] + their[named]}
    passes_any = their[inspect.Parameter.VAR_KEYWORD] or their[inspect.Parameter.VAR_POSITIONAL]
    assert len(required) <= len(their[plain]) or set(required) <= names or passes_any


# --- methods that ours call by a private name


def private_calls():
    """(class, name, call) of every `self._name(...)` that the package itself does not define."""
    root, defined, calls = Path(modeling_mdm.__path__[0]), set(), []
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {t.attr for t in targets if isinstance(t, ast.Attribute)}
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(cls):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                        if name.startswith("_") and not name.startswith("__"):
                            calls.append((cls.name, name, node))
    return [call for call in calls if call[1] not in defined]


CALLED = {"_merge_kwargs", "_get_resized_lm_head", "_save", "_prepare_inputs"}


def test_private_methods_that_are_called_are_known():
    assert {name for _, name, _ in private_calls()} >= CALLED


@pytest.mark.parametrize(("name", "method", "call"), private_calls())
def test_a_private_method_that_is_called_takes_what_it_is_passed(name, method, call):
    signature = inspect.signature(getattr(CLASSES[name], method))
    positional = [None] * (1 + len(call.args))  # `self` too
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    signature.bind_partial(*positional, **keywords)
    splats = any(keyword.arg is None for keyword in call.keywords)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    assert takes_any or not splats


def test_generation_settings_are_loaded_through_the_hook_of_from_pretrained():
    """`from_pretrained` calls `adjust_generation_fn` of any model; ours is no `GenerationMixin`."""
    theirs = inspect.signature(GenerationMixin.adjust_generation_fn).parameters
    ours = inspect.signature(MDMForJointGeneration.adjust_generation_fn).parameters
    kinds = inspect.Parameter
    places = [n for n, p in theirs.items() if p.kind is kinds.POSITIONAL_OR_KEYWORD]
    named = {n for n, p in theirs.items() if p.kind is kinds.KEYWORD_ONLY}
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in ours.values())
    mine = [n for n, p in ours.items() if p.kind is kinds.POSITIONAL_OR_KEYWORD]
    assert mine == places[: len(mine)] and (takes_any or {*places, *named} <= set(ours))
    assert not issubclass(MDMForJointGeneration, GenerationMixin)
    assert "adjust_generation_fn" in inspect.getsource(MDMForJointGeneration.from_pretrained)


@pytest.mark.parametrize(
    ("cls", "method", "arguments"),
    [
        (MDMTrainer, "_save_checkpoint", ["self", "model", "trial"]),
        (MDMTrainer, "_get_output_dir", ["self", "trial"]),
        (MDMTrainer, "_push_from_checkpoint", ["self", "checkpoint_folder"]),
        (MDMTrainer, "_load_rng_state", ["self", "checkpoint"]),
        (MDMTrainer, "_load_best_model", ["self"]),
        (MDMTrainer, "_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        (MDMTrainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (MDMTrainer, "_save_optimizer_and_scheduler", ["self", "output_dir"]),
        (MDMTrainer, "_save", ["self", "output_dir", "state_dict"]),
        (MDMForJointGeneration, "_init_weights", ["self", "module"]),
        (
            MDMForJointGeneration,
            "_get_resized_lm_head",
            ["self", "old_lm_head", "new_num_tokens", "transposed", "mean_resizing"],
        ),
        (
            MDMProcessor,
            "_merge_kwargs",
            ["self", "ModelProcessorKwargs", "tokenizer_init_kwargs", "kwargs"],
        ),
    ],
)
def test_hooks_as_they_were_when_ours_were_written(cls, method, arguments):
    """By name, so that what moves is named in the failure."""
    parent = cls
    while method in vars(parent) and parent.__module__.startswith("modeling_mdm"):
        parent = parent.__mro__[1]
    found = list(inspect.signature(getattr(parent, method)).parameters)
    assert found[: len(arguments)] == arguments
