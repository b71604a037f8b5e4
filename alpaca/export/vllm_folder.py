"""`vllm`: adapters as vLLM takes them, the template, a script that serves them, manifests for KServe and Ray Serve."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca.errors import ExportRefused
from alpaca.export.leaving import Leaving
from alpaca.export.portable import Portable, portable

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
    """Check that one vLLM can serve them all. Raises ExportRefused for DoRA, too high a rank, or another template."""
    first = models[0]
    for model in models[1:]:
        if model.jinja != first.jinja:
            raise ExportRefused(
                f"{model.name} was trained with the template {model.template.name}, {first.name} with "
                f"{first.template.name}, and a vLLM server has one: export them into folders of their own"
            )
    names = [model.name for model in models]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ExportRefused(f"two adapters would be called {doubled}: rename one of their folders")
    served = [Served(model, portable(model.strengths)) for model in models]
    for one in served:
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
    return f"""#!/bin/sh
# Serve {name} with {len(served)} adapter(s) by vLLM's OpenAI-compatible server. Options of `vllm serve` may follow:
#   ./serve.sh --port 8001 --gpu-memory-utilization 0.8
# VLLM names another vllm, BASE another place of the same base. An adapter is asked for by its name, the base by {name}.
set -eu
cd "$(dirname "$0")"
exec "${{VLLM:-vllm}}" serve "${{BASE:-{base}}}" --served-model-name {shlex.quote(name)} \\
    --generation-config vllm --chat-template {TEMPLATE}{parallel} \\
    --enable-lora {limits} \\
    --lora-modules {modules} "$@"
"""


def _kserve(served: Sequence[Served], base: str, gpus: int) -> str:
    """KServe's LLMInferenceService: the adapters are listed under the model and loaded at start."""
    name = served[0].leaving.base.name
    listed = "\n".join(f"        - name: {one.leaving.name}\n          uri: s3://BUCKET/{one.path}" for one in served)
    arguments = json.dumps(
        ["--generation-config=vllm", f"--chat-template=/mnt/template/{TEMPLATE}"]
        + [f"{option}={value}" for option, value in _limits(served).items()]
    )
    return f"""# Replace BUCKET, and make the template a config map first:
#   kubectl create configmap {name}-template --from-file={TEMPLATE}
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata:
  name: {name}
spec:
  model:
    uri: {_uri(base)}
    name: {name}
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
            value: {json.dumps(" ".join(json.loads(arguments)))}
        resources:
          limits:
            nvidia.com/gpu: "{gpus}"
        volumeMounts:
          - name: template
            mountPath: /mnt/template
    volumes:
      - name: template
        configMap:
          name: {name}-template
"""


def _uri(base: str) -> str:
    return f"hf://{base}" if base.count("/") == 1 and not base.startswith((".", "/")) else "s3://BUCKET/base"


def _ray(served: Sequence[Served], base: str, gpus: int) -> str:
    """Ray Serve LLM: adapters are found by name under one path of a bucket and loaded when they are asked for."""
    name = served[0].leaving.base.name
    return f"""# Put adapters/ into the bucket, one folder for each adapter, and replace BUCKET. Then: serve run {RAY}
# An adapter is asked for as {name}:ADAPTER ({", ".join(one.leaving.name for one in served)}).
applications:
  - name: {name}
    route_prefix: /
    import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
        - model_loading_config:
            model_id: {name}
            model_source: {json.dumps(base)}
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
