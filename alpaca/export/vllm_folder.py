"""`vllm`: adapters as vLLM takes them, the template, a script that serves them, manifests for KServe and Ray Serve."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca.errors import ExportRefused
from alpaca.export.leaving import Leaving, plain_name
from alpaca.export.portable import Portable, portable
from alpaca.words import one_line, plural

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank takes; it has 1 as well, which nobody needs."""
SCRIPT, TEMPLATE, KSERVE, RAY = "serve.sh", "template.jinja", "kserve.yaml", "rayserve.yaml"
LOST = (
    "a strength per request (it is in each adapter's scale: export an adapter once more for another strength)",
    "compositions of a request's own (a:0.7+b:0.5 can be exported as one adapter)",
    "stop strings of the template (clients send them as `stop`)",
    "a template per adapter: a server has one --chat-template",
)


@dataclass(frozen=True)
class Served:
    """One adapter of the folder."""

    leaving: Leaving
    adapter: Portable

    @property
    def path(self) -> str:
        return f"adapters/{self.leaving.name}"


def served_adapters(models: Sequence[Leaving]) -> list[Served]:
    """Check that one vLLM can serve them all. Raises ExportRefused for DoRA, too high a rank, another template, or
    an adapter with the base's name."""
    first = models[0]
    for model in models[1:]:
        if model.jinja != first.jinja:
            raise ExportRefused(
                f"{model.name} was trained with the template {model.template.name}, {first.name} with "
                f"{first.template.name}, and a vLLM server has one: export them into folders of their own"
            )
    served = [Served(model, portable(model.strengths)) for model in models]
    for one in served:
        if one.leaving.name == first.base.name:
            raise ExportRefused(
                f"an adapter would be called {one.leaving.name}, as the base is, and vLLM would answer for it with the "
                "base alone: rename the adapter's folder"
            )
        if one.adapter.rank > RANKS[-1]:
            raise ExportRefused(
                f"{one.leaving.name} has rank {one.adapter.rank}, and vLLM takes at most {RANKS[-1]}: export `merged`"
            )
    return served


def rank_limit(served: Sequence[Served]) -> int:
    """The smallest --max-lora-rank that holds them all."""
    most = max(one.adapter.rank for one in served)
    return next(rank for rank in RANKS if rank >= most)


def write_vllm(served: Sequence[Served], folder: Path, base: str, gpus: int) -> None:
    """Write the folder. `base`: what vLLM is started with, a path or a hub id; its folder resolver compares that very
    string with the adapters' base_model_name_or_path, and serves the base without a word where they differ."""
    leaving = served[0].leaving
    for one in served:
        one.adapter.save(folder / one.path, base)
    (folder / TEMPLATE).write_text(leaving.jinja, encoding="utf-8")
    script = folder / SCRIPT
    script.write_text(_script(served, base, gpus), encoding="utf-8")
    script.chmod(0o755)
    (folder / KSERVE).write_text(_kserve(served, base, gpus), encoding="utf-8")
    (folder / RAY).write_text(_ray(served, base, gpus), encoding="utf-8")


def _limits(served: Sequence[Served]) -> dict[str, int]:
    return {"--max-lora-rank": rank_limit(served), "--max-loras": len(served), "--max-cpu-loras": 2 * len(served)}


def _script(served: Sequence[Served], base: str, gpus: int) -> str:
    name = served[0].leaving.base.name
    limits = " ".join(f"{option} {value}" for option, value in _limits(served).items())
    modules = " ".join(shlex.quote(f"{one.leaving.name}={one.path}") for one in served)
    parallel = f" --tensor-parallel-size {gpus}" if gpus > 1 else ""
    count = plural(len(served), "adapter")
    return f"""#!/bin/sh
# Serve {one_line(name)} with {count} by vLLM's OpenAI-compatible server. Options of `vllm serve` may follow:
#   ./serve.sh --port 8001 --gpu-memory-utilization 0.8
# VLLM names another vllm, BASE another place of the same base. Adapters and base are asked for by their names.
set -eu
vllm=${{VLLM:-vllm}} base=${{BASE:-}}
[ -n "$base" ] || base={shlex.quote(base)}
case $vllm in */*) vllm=$(cd "$(dirname "$vllm")" && pwd)/$(basename "$vllm") ;; esac
[ ! -d "$base" ] || base=$(cd "$base" && pwd)
cd "$(dirname "$0")"
exec "$vllm" serve "$base" --served-model-name {shlex.quote(name)} \\
    --generation-config vllm --chat-template {TEMPLATE}{parallel} \\
    --enable-lora {limits} \\
    --lora-modules {modules} "$@"
"""


def _label(name: str) -> str:
    """A name as Kubernetes takes it for an object."""
    return plain_name(name, "base").replace(".", "-")[:40].strip("-")


def _kserve(served: Sequence[Served], base: str, gpus: int) -> str:
    """KServe's LLMInferenceService: the adapters are listed under the model and loaded at start."""
    name = served[0].leaving.base.name
    label = _label(name)
    listed = "\n".join(
        f"        - name: {_quoted(one.leaving.name)}\n          uri: s3://BUCKET/{one.path}" for one in served
    )
    arguments = ["--generation-config=vllm", f"--chat-template=/mnt/template/{TEMPLATE}"]
    arguments += [f"{option}={value}" for option, value in _limits(served).items()]
    return f"""# Replace BUCKET, and make the template a config map first:
#   kubectl create configmap {label}-template --from-file={TEMPLATE}
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata:
  name: {_quoted(label)}
spec:
  model:
    uri: {_quoted(_uri(base))}
    name: {_quoted(name)}
    lora:
      adapters:
{listed}
  replicas: 1
  parallelism:
    tensor: {gpus}
  template:
    containers:
      - name: main
        env:
          - name: VLLM_ADDITIONAL_ARGS
            value: {_quoted(" ".join(arguments))}
        resources:
          limits:
            nvidia.com/gpu: "{gpus}"
        volumeMounts:
          - name: template
            mountPath: /mnt/template
    volumes:
      - name: template
        configMap:
          name: {_quoted(f"{label}-template")}
"""


def _quoted(text: str) -> str:
    """A text in YAML, whatever it looks like: JSON's texts are YAML's."""
    return json.dumps(text, ensure_ascii=False)


def _uri(base: str) -> str:
    return f"hf://{base}" if base.count("/") == 1 and not base.startswith((".", "/")) else "s3://BUCKET/base"


def _ray(served: Sequence[Served], base: str, gpus: int) -> str:
    """Ray Serve LLM: adapters are found by name under one path of a bucket and loaded when they are asked for."""
    name = served[0].leaving.base.name
    return f"""# Put adapters/ into the bucket, one folder for each adapter, and replace BUCKET. Then: serve run {RAY}
# An adapter is asked for as {one_line(name)}:ADAPTER ({", ".join(one.leaving.name for one in served)}).
applications:
  - name: {_quoted(_label(name))}
    route_prefix: /
    import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
        - model_loading_config:
            model_id: {_quoted(name)}
            model_source: {_quoted(base)}
          lora_config:
            dynamic_lora_loading_path: s3://BUCKET/adapters
            max_num_adapters_per_replica: {max(2, len(served))}
          engine_kwargs:
            enable_lora: true
            max_lora_rank: {rank_limit(served)}
            max_loras: {len(served)}
            tensor_parallel_size: {gpus}
            chat_template: {TEMPLATE}
          deployment_config:
            autoscaling_config:
              min_replicas: 1
              max_replicas: 2
"""
