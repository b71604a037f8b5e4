"""Original checkpoints in, Hugging Face-format bases out: Meta's LLaMA releases and GGUF files.

`python -m alpaca.convert` is the face, `convert` in `alpaca.convert.base_folder` the function behind it;
`python -m alpaca.convert.fetch` gets the default base.
"""
