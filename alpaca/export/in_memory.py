"""An export asked in transformers: a folder as it stands, or weights that were read back from another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca.base.load import load_model
from alpaca.errors import BadBase, CheckUnavailable
from alpaca.export.agreement import Reply, Said
from alpaca.export.greedy import Greedy, greedy_answers
from alpaca.export.proof import Answered
from alpaca.progress import progress
from alpaca.prompts.jinja import rendered
from alpaca.words import one_line


def listed(answer: Greedy) -> tuple[Said, ...]:
    """The tokens of an answer with their log-probabilities."""
    return tuple(Said("", token, logprob) for token, logprob in zip(answer.tokens, answer.logprobs, strict=True))


class Transformers:
    """Asks a model in memory, with the tokenizer, chat template and turn ends that came with it."""

    def __init__(self, model: Any, tokenizer: Any, ends: Sequence[int], name: str = "transformers") -> None:
        self.name = name
        self.model, self._tokenizer, self.ends = model, tokenizer, list(ends)

    @classmethod
    def of_folder(cls, folder: Path, precision: str) -> Transformers:
        """A Hugging Face folder, loaded with nothing but its own files. Raises BadBase for one that can't be."""
        from transformers import AutoTokenizer

        model = load_model(folder, precision)
        named = model.generation_config.eos_token_id if model.generation_config else None
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:  # of any kind: the library, or what a tokenizer's file makes it do
            raise BadBase(f"the tokenizer in {folder} can't be loaded: {one_line(str(error))}") from error
        ends = named if isinstance(named, list) else [tokenizer.eos_token_id if named is None else named]
        return cls(model, tokenizer, ends)

    def chat(self, asked: Sequence[Answered]) -> list[Reply]:
        try:
            jinja = self._tokenizer.get_chat_template()
            prompts = [rendered(self._tokenizer, jinja, ours.messages) for ours in asked]
        except Exception as error:  # a template is a program, and none at all is an error too
            raise CheckUnavailable(
                f"{self.name}: the chat template can't be filled in: {one_line(str(error))}"
            ) from error
        return self._replies(prompts, asked)

    def complete(self, asked: Sequence[Answered]) -> list[Reply]:
        return self._replies([ours.prompt for ours in asked], asked)

    def _replies(self, prompts: list[list[int]], asked: Sequence[Answered]) -> list[Reply]:
        return [
            Reply(self._tokenizer.decode(answer.tokens), answer.ended, answer.tokens, listed(answer))
            for answer in self.answers(prompts, asked, self.ends)
        ]

    def answers(self, prompts: list[list[int]], asked: Sequence[Answered], ends: Sequence[int]) -> list[Greedy]:
        """Greedy answers to prompts (ids), each as long as it was allowed to be here."""
        with progress(f"asking: {self.name}", len(asked), "question") as done:
            return greedy_answers(self.model, prompts, [ours.most for ours in asked], ends, done)
