"""llama.cpp's own server on a GGUF file, by the package xllamacpp; run as a script by a Python that has it.

    python alpaca/export/llamacpp_server.py MODEL CONTEXT [ADAPTER SCALE]

It prints where it listens and serves until its standard input ends. It imports nothing of this project, whose packages
that Python need not have.
"""

import os
import sys


def main() -> None:
    import xllamacpp

    model, context, *adapter = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = int(context)
    params.n_parallel = 4
    params.cpuparams.n_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    params.warmup = False
    params.use_jinja = True
    params.cache_prompt = False
    params.verbosity = 0
    if adapter:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = adapter[0], float(adapter[1])
        params.lora_adapters = [lora]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the library's threads end with the process


if __name__ == "__main__":
    main()
