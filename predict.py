"""Cog's prediction: typed inputs become a request, the engine's stream becomes the output.

Cog reads the signature from this source without running it: plain names and literals, each string in one piece.
"""
# ruff: noqa: B008, UP007, UP045

import os
from collections.abc import Generator
from pathlib import Path as LocalPath
from typing import Optional, Union

from cog import BaseRunner, ConcatenateIterator, Input, Path, concurrent, streaming

from alpaca.cancellation import Cancellation
from alpaca.cogserver.places import Places
from alpaca.cogserver.stream import coded_once, in_context, watch_cancellations
from alpaca.cogserver.webhooks import unfence
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.output import Output

unfence()
ROOT = LocalPath(__file__).resolve().parent


class Runner(BaseRunner):
    """Serves a base (BASE_MODEL, else the only one in weights/) with an adapter (COG_WEIGHTS), if there is one."""

    def setup(self, weights: Optional[Union[Path, str]] = None) -> None:
        """`weights`: an adapter's folder, archive or https URL; without COG_WEIGHTS, lora-alpaca if it is there.

        PRECISION chooses bf16, fp32, int8, nf4 or auto.
        """
        from alpaca.cogserver.folders import keep_swept
        from alpaca.serving.adapters import check_given, tuned_here
        from alpaca.serving.limits import EngineLimits
        from alpaca.serving.loading import load_base, open_engine, warm_up
        from alpaca.serving.startup import Startup

        with coded_once():
            startup = Startup()
            watch_cancellations()
            limits = EngineLimits.from_environment(ROOT)
            adapter = str(weights) if weights else tuned_here(ROOT)
            if adapter is not None:
                check_given(adapter, limits.roots)
            base = load_base(precision=os.environ.get("PRECISION") or "auto", weights_dir=ROOT / "weights")
            startup.done("base")
            self.engine = open_engine(base, adapter, limits=limits)
            startup.done("adapter and memory")
            warm_up(self.engine)
            startup.done("warm-up")
            startup.ready()
            keep_swept()
            self.places = Places()
            self.places.watch()

    # Returns a plain generator and never yields itself: Cog 0.23.1 would send what it yields only at the end.
    @streaming
    @concurrent(max=64)
    async def run(
        self,
        prompt: str = Input(default="", description="What to ask, or the instruction to follow."),
        input: str = Input(default="", description="Further context for the prompt, such as a text to work on."),
        system_prompt: str = Input(default="", description="How the model should behave; stands before the prompt."),
        messages: Optional[list[dict]] = Input(
            default=None,
            description="A conversation instead of prompt: objects with role and content, the user's last.",
        ),
        max_tokens: int = Input(default=512, ge=1, le=131072, description="The most tokens an answer may have."),
        min_tokens: int = Input(
            default=0, ge=-1, le=131072, description="The answer may not end before this many tokens; -1 or 0: off."
        ),
        temperature: float = Input(
            default=0.7, ge=0, le=5, description="0 always takes the likeliest token (greedy); higher is more varied."
        ),
        top_p: float = Input(
            default=0.95, ge=0, le=1, description="Draw from the likeliest tokens that together have this probability."
        ),
        top_k: int = Input(
            default=0, ge=-1, le=100000, description="Draw from this many likeliest tokens; -1 or 0: from all."
        ),
        min_p: float = Input(
            default=0.0, ge=0, le=1, description="Draw from tokens this fraction as likely as the likeliest; 0: all."
        ),
        repetition_penalty: float = Input(
            default=1.0, ge=0.01, le=5, description="Above 1, tokens that occurred already become less likely."
        ),
        presence_penalty: float = Input(
            default=0.0, ge=-5, le=5, description="Above 0, tokens that the answer already holds become less likely."
        ),
        frequency_penalty: float = Input(
            default=0.0, ge=-5, le=5, description="Above 0, tokens become less likely the more often they occurred."
        ),
        stop_sequences: Optional[str] = Input(
            default=None,
            description="The answer ends before the first of these; commas between them, or a JSON list of texts.",
        ),
        seed: Optional[int] = Input(
            default=None, ge=0, le=4294967295, description="The same seed gives the same answer; none: answers vary."
        ),
        n: int = Input(
            default=1,
            ge=1,
            le=5,
            description="How many answers. For more than one, the output is a list of n whole answers.",
        ),
        prompt_template: Optional[str] = Input(
            default=None,
            description="A template's name, or a text with {prompt} in it and perhaps {system_prompt}.",
        ),
        adapter: Optional[str] = Input(
            default=None,
            description="A name on the server, a URL, several as a:0.7+b:0.5 or a JSON list; none: the base alone.",
        ),
        adapter_scale: float = Input(
            default=1.0, ge=0, le=4, description="Strength of the adapter: 0 is the base alone, 1 as trained."
        ),
        answer_with: str = Input(
            default="text",
            choices=["text", "prompt", "server"],
            description="text: an answer. As JSON: prompt, the text that the model would see; server, what is served.",
        ),
        total_tokens: Optional[int] = Input(
            default=None,
            ge=1,
            le=131072,
            deprecated=True,
            description="Use max_tokens. The most tokens that prompt and answer together may have.",
        ),
        replicate_weights: Optional[str] = Input(
            default=None, deprecated=True, description="The older name of adapter."
        ),
        max_new_tokens: Optional[int] = Input(
            default=None, ge=1, le=131072, deprecated=True, description="The older name of max_tokens."
        ),
        min_new_tokens: Optional[int] = Input(
            default=None, ge=-1, le=131072, deprecated=True, description="The older name of min_tokens."
        ),
    ) -> ConcatenateIterator[str]:
        def answer(cancellation: Cancellation) -> Generator[str, None, None]:
            if answer_with == "server":
                with self.places.taken():
                    yield self.engine.describe().json()
                return
            request = request_from_inputs(
                prompt=prompt,
                input=input,
                system_prompt=system_prompt,
                messages=messages,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                stop_sequences=stop_sequences,
                seed=seed,
                n=n,
                prompt_template=prompt_template,
                adapter=adapter,
                adapter_scale=adapter_scale,
                total_tokens=total_tokens,
                replicate_weights=replicate_weights,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
            )
            if answer_with == "prompt":
                with self.places.taken():
                    yield self.engine.render(request, cancellation).json()
                return
            with (
                self.places.taken(),
                self.engine.submit(request, cancellation) as stream,
                cancellation.calls(stream.close),
            ):
                output = Output(stream, request.n)
                yield from output.pieces()
            for name, value in output.metrics().items():
                self.record_metric(name, value)
            print(output.summary())

        return in_context(answer)

    def healthcheck(self) -> bool:
        """False turns the server UNHEALTHY: without its thread the engine can't answer, nor without places Cog."""
        return self.engine.alive and not self.places.all_lost
