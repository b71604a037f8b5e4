"""From a request to a job: the adapter found, the template filled, the tokens counted, or a coded error.

All of it happens before a request is admitted, on the thread of whoever asks, so that nothing about a request can be
wrong inside a step.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import BadComposition, EmptyPrompt, PromptTooLong
from alpaca.prompts.encode import encode_prompt, prompt_at_least
from alpaca.prompts.find import load_template
from alpaca.prompts.literal import LiteralTemplate
from alpaca.prompts.template import Template, wording
from alpaca.serving.adapters import Adapter, AdapterStore
from alpaca.serving.default import DefaultAdapter
from alpaca.serving.description import MOST_LISTED, Description, Named
from alpaca.serving.lora import LoraStack, largest_rank
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import Sampler, answer_seed
from alpaca.serving.sequence import Job, Sequence, Used
from alpaca.serving.text import TextStream, stop_ids

DRAWN_SEEDS = 2**31  # `cog run -i seed=` takes 32-bit signed numbers, and what an answer reports can be asked again


@dataclass(frozen=True)
class Admission:
    """What requests are checked against."""

    tokenizer: Any
    template: Template
    """For requests that name none and whose adapters bring none."""
    adapters: AdapterStore
    default: DefaultAdapter | None
    """The adapter of requests that name none."""
    eos_ids: tuple[int, ...]
    """What ends an answer whatever the template; its own turn end comes on top."""
    context: int
    """Tokens of a prompt and its answer together."""
    vocabulary: int
    stack: LoraStack
    separate: bool
    """Nothing that was computed for one request is used for another."""

    def admit(self, request: GenerationRequest, cancellation: Cancellation = NEVER) -> Job:
        """The request as a job with its answers. It may take as long as the download of an adapter does.

        Raises the coded error of what is wrong: of an adapter (E4…), the template (E2…), BadComposition, EmptyPrompt,
        or PromptTooLong with both numbers; and Cancelled as soon as `cancellation` is requested.
        """
        adapters = self._adapters_for(request, cancellation)
        cancellation.check()
        template = self._template_for(request, [adapter for adapter, _ in adapters])
        self._room(request, prompt_at_least(self.tokenizer, request.example), "at least ")
        prompt = encode_prompt(self.tokenizer, template, request.example)
        if not prompt:  # some tokenizers drop characters
            raise EmptyPrompt("the prompt has no token: the base's tokenizer knows none of its characters")
        used = tuple((adapter, scale) for adapter, scale in adapters if scale)
        scope = f" {secrets.token_hex(8)}" if self.separate else ""
        job = Job(request, used, prompt, self._room(request, len(prompt)), scope)
        self._add_answers(job, template)
        return job

    def text(self, prompt: list[int]) -> str:
        """A prompt's tokens as text, markers included."""
        return str(self.tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def describe(self, answers: int) -> Description:
        """What may be asked here; `answers` are made at a time."""
        there = [_named(adapter) for adapter in self.adapters.there(MOST_LISTED)]
        archives = [Named(name, "", "", 0) for name in self.adapters.archives(MOST_LISTED - len(there))]
        return Description(
            base=self.adapters.base.folder.name,
            fingerprint=self.adapters.base.fingerprint,
            template=self.template.name,
            answers=answers,
            context=self.context,
            default=None if self.default is None else _named(self.default.last),
            adapters=(*there, *archives),
        )

    def _adapters_for(self, request: GenerationRequest, cancellation: Cancellation) -> list[Used]:
        """The adapters of a request, each with its whole strength, found and checked."""
        found: list[Used] = []
        if request.adapter is not None:
            for part in request.adapter.parts:
                source, trusted = str(part.source), isinstance(part.source, Path)
                adapter = self.adapters.find(source, trusted=trusted, cancellation=cancellation)
                found.append((adapter, part.scale * request.adapter_scale))
        elif self.default is not None:
            adapter = self.default.find(lambda last: self.stack.find(last.digest) is not None, cancellation)
            found.append((adapter, request.adapter_scale))
        for adapter, scale in found:
            self.stack.check(adapter.name, adapter.files.spec, adapter.files.modules, scale)
        self._check_together([adapter for adapter, _ in found])
        self.adapters.notice_alone([adapter for adapter, scale in found if scale])
        return found

    def _check_together(self, adapters: list[Adapter]) -> None:
        """Raise BadComposition for adapters each of which can be served, but not in one answer."""
        names: dict[str, str] = {}
        for adapter in adapters:
            if adapter.files.spec.use_dora and len(adapters) > 1:
                raise BadComposition(
                    f"{adapter.name} is a DoRA adapter, which answers alone: leave it or the others out"
                )
            if adapter.digest in names:
                raise BadComposition(f"{names[adapter.digest]} and {adapter.name} are the same adapter: name it once")
            names[adapter.digest] = adapter.name
        self.stack.check_together([(a.name, largest_rank(a.files.spec, a.files.modules)) for a in adapters])

    def _template_for(self, request: GenerationRequest, adapters: list[Adapter]) -> Template:
        wanted = request.prompt_template
        if not isinstance(wanted, str):
            return wanted
        if not wanted:
            return _shared_template(adapters) or self.template
        if "{" in wanted or "\n" in wanted:
            return LiteralTemplate(wanted)
        return load_template(wanted, self.tokenizer, allow_path=False)

    def _room(self, request: GenerationRequest, prompt_length: int, how: str = "") -> int:
        """How many tokens the answer may have. Raises PromptTooLong."""
        limit, what = self.context, "the context holds"
        if request.total_tokens is not None and request.total_tokens < limit:
            limit, what = request.total_tokens, "total_tokens allows"
        if prompt_length >= limit:
            raise PromptTooLong(
                f"the prompt has {how}{prompt_length:,} tokens, and {what} {limit:,} together with the answer"
            )
        return limit - prompt_length if request.total_tokens else min(request.max_tokens, limit - prompt_length)

    def _add_answers(self, job: Job, template: Template) -> None:
        request = job.request
        stops = (*template.stop_strings, *request.stop_sequences)
        end_ids = self._end_ids(template, stops)
        seed = secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed
        for index in range(request.n):
            sampler = Sampler(request, job.prompt, seed=answer_seed(seed, index), eos_ids=end_ids)
            text = TextStream(self.tokenizer, stops)
            job.answers.append(Sequence(job, index, sampler, text, frozenset(end_ids), list(job.prompt)))

    def _end_ids(self, template: Template, stops: tuple[str, ...]) -> tuple[int, ...]:
        """The tokens that end an answer: EOS, the template's turn end, stop sequences that are special tokens."""
        turn_end = () if template.turn_end is None else (template.turn_end,)
        found = dict.fromkeys((*self.eos_ids, *turn_end, *stop_ids(self.tokenizer, stops)))
        return tuple(token for token in found if token < self.vocabulary)


def _shared_template(adapters: list[Adapter]) -> Template | None:
    """The template that all adapters with a card were trained with. Raises BadComposition where they differ."""
    carded = [(adapter.name, adapter.template) for adapter in adapters if adapter.template is not None]
    for name, template in carded[1:]:
        first_name, first = carded[0]
        if wording(template) != wording(first):
            raise BadComposition(
                f"{first_name} was trained with the template {first.name}, and {name} with another, {template.name}: "
                "say which to use in prompt_template"
            )
    return carded[0][1] if carded else None


def _named(adapter: Adapter) -> Named:
    template = adapter.template.name if adapter.template is not None else ""
    beside = tuple(needed.name for needed in adapter.beside)
    return Named(Path(adapter.name).name, adapter.digest, template, adapter.files.written, beside)
