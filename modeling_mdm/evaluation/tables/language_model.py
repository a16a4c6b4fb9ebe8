# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""lm-eval's view of an MDM: log-likelihoods by `score()`, answers by `generate()`.

::

    python -m modeling_mdm.evaluation.tables.language_model --model mdm --tasks hellaswag \\
        --model_args pretrained=FOLDER,num_evaluations=32 --device cpu

A context is what the user says, a continuation what the assistant answers, as the model learned
them; a text without context stands alone. A log-likelihood is `score`'s lower bound in nats, noise
and all; all choices of a question see the same noise, so that it cancels between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm.auto import tqdm

from modeling_mdm.evaluation.sampling import evaluating
from modeling_mdm.evaluation.tables.answers import Answers
from modeling_mdm.evaluation.tables.processes import item_noise, own_share, wait_for_all
from modeling_mdm.evaluation.tables.samples import cut_at
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.loading import load_pretrained, require_device

# A question of a task: its choices are answered together.
Question = tuple[str | None, Any]


@register_model("mdm")
class MDMLanguageModel(LM):
    """An MDM that lm-eval measures.

    Args:
        pretrained: folder or Hub id of a model and its processor; None with `model`.
        model, processor: instead of `pretrained`.
        num_evaluations: of the network for each log-likelihood.
        num_inference_steps: of each answer that is written.
        max_new_tokens: words of an answer where the task names no `max_gen_toks`; the processor's
            `max_text_length` if None.
        batch_size: answers that are written at a time.
        device: of a model that is loaded.
        seed: of all noise.
        answers, column: where answers are kept, and under which name; None keeps none. Several
            processes share out the questions, and need it.
        disable_tqdm: no progress bars.

    Raises:
        ValueError: neither or both of `pretrained` and `model`, or a number below 1.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        model: Any = None,
        processor: Any = None,
        num_evaluations: int = 32,
        num_inference_steps: int = 30,
        max_new_tokens: int | None = None,
        batch_size: int | str = 1,
        device: str = "cpu",
        seed: int = 0,
        answers: Answers | None = None,
        column: str = "lm-eval",
        disable_tqdm: bool = False,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (model is None):
            raise ValueError("pass either pretrained= or model= with processor=, and not both.")
        if pretrained is not None:
            require_device("device", device)  # lm-eval's command names an accelerator unasked
            processor = load_pretrained(MDMProcessor, "pretrained", pretrained)
            model = load_pretrained(MDMForJointGeneration, "pretrained", pretrained).to(device)
        self.model, self.processor = model, processor
        self.num_evaluations, self.num_inference_steps = num_evaluations, num_inference_steps
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, int(batch_size), seed
        for name in ("num_evaluations", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1.")
        self.answers, self.column, self.disable_tqdm = answers, column, disable_tqdm

    def get_model_info(self) -> dict[str, Any]:
        """Give what lm-eval writes beside its results."""
        return {
            "num_evaluations": self.num_evaluations,
            "num_inference_steps": self.num_inference_steps,
            "noise_seed": self.seed,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Bound log p(continuation | context) of each request from below, in nats.

        The second value, whether a greedy decoder would write the continuation, is False: an MDM
        writes all words at once.
        """
        questions: dict[Question, list[Instance]] = defaultdict(list)
        for request in requests:
            questions[_question_of(request)].append(request)

        def score(some: Sequence[Question]) -> list[list[float]]:
            return [self._score(one, [request.args for request in questions[one]]) for one in some]

        found = self._answer("loglikelihood", list(questions), score, batch_size=1)
        values = {
            id(request): value
            for one, same in questions.items()
            for request, value in zip(same, found[_name(one)], strict=True)
        }
        return [(values[id(request)], False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Bound log p of each whole text from below, in nats.

        Raises:
            ValueError: a text is longer than the processor's `max_text_length`: an MDM has no
                likelihood of a text in pieces.
        """
        whole = [
            Instance(
                request_type="loglikelihood",
                doc=request.doc,
                arguments=("", request.args[0]),
                idx=request.idx,
                metadata=request.metadata,
            )
            for request in requests
        ]
        return [value for value, _ in self.loglikelihood(whole)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer to each context, and cut it where a stop begins.

        A request's `until` holds the stops and `max_gen_toks` the length of the region;
        temperatures and beams are not an MDM's.
        """
        by_name = {f"{_name(_question_of(one))}/{one.idx}": one for one in requests}
        if len(by_name) < len(requests):
            raise ValueError("requests has the same question twice (repeats are not sampled anew).")
        found: dict[str, str] = {}
        lengths: dict[int, list[str]] = defaultdict(list)
        for name, request in by_name.items():
            lengths[self._region(request.args[1])].append(name)
        for length, names in lengths.items():

            def write(some: Sequence[str], length: int = length) -> list[str]:
                return self._write(some, [by_name[name].args[0] for name in some], length)

            found |= self._answer("generate_until", names, write, self.batch_size)
        return [
            cut_at(found[name], request.args[1].get("until")) for name, request in by_name.items()
        ]

    def _answer(self, kind: str, items: list[Any], answer: Any, batch_size: int) -> dict[str, Any]:
        """Answer what is not answered yet, each process its share; give all answers by name."""
        column, found = f"{self.column}.{kind}", {}
        if self.answers is not None:
            found = {name: kept["answer"] for name, kept in self.answers.of(column).items()}
        due = [one for one in own_share(items) if _name(one) not in found]
        with (
            evaluating(self.model),
            tqdm(total=len(due), desc=column, disable=self.disable_tqdm) as bar,
        ):
            for start in range(0, len(due), batch_size):
                some = due[start : start + batch_size]
                for one, said in zip(some, answer(some), strict=True):
                    found[_name(one)] = said
                    if self.answers is not None:
                        self.answers.add(column, _name(one), answer=said)
                bar.update(len(some))
        wait_for_all()
        if self.answers is not None:
            found = {name: kept["answer"] for name, kept in self.answers.of(column).items()}
        return found

    def _score(self, question: Question, choices: list[tuple[str, str]]) -> list[float]:
        """Score the choices of one question, all with the same noise."""
        values = [0.0] * len(choices)
        for has_context in (True, False):
            rows = [row for row, (context, _) in enumerate(choices) if bool(context) == has_context]
            if not rows:
                continue
            out = self.model.score(
                **self._read([choices[row] for row in rows]),
                content="text",
                num_evaluations=self.num_evaluations,
                generator=item_noise(self.seed, *question),
            )
            for row, value in zip(rows, out.log_likelihood.tolist(), strict=True):
                values[row] = value
        return values

    def _read(self, choices: list[tuple[str, str]]) -> Any:
        """Turn texts into inputs: all with a context, or all without."""
        if not choices[0][0]:
            texts = [continuation.strip() for _, continuation in choices]
            return self.processor(text=texts, return_tensors="pt").to(self.model.device)
        conversations = [
            [
                {"role": "user", "content": context},
                {"role": "assistant", "content": continuation.strip()},
            ]
            for context, continuation in choices
        ]
        return self.processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)

    def _region(self, settings: dict[str, Any]) -> int:
        fallback = self.max_new_tokens or self.processor.max_text_length
        return int(settings.get("max_gen_toks", fallback))

    def _write(self, names: Sequence[str], contexts: Sequence[str], length: int) -> list[str]:
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": context}] for context in contexts],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            max_new_tokens=length,
        ).to(self.model.device)
        out = self.model.generate(
            **inputs,
            num_inference_steps=self.num_inference_steps,
            generator=[item_noise(self.seed, name) for name in names],
            show_progress=False,
        )
        return [sample.text for sample in self.processor.post_process(out, inputs)]


def _question_of(request: Instance) -> Question:
    """Requests of one question share task and number; those of no task, their context."""
    if request.doc_id is None:
        return request.task_name, request.args[0]
    return request.task_name, request.doc_id


def _name(item: Any) -> str:
    return item if isinstance(item, str) else "/".join(map(str, item))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
