"""What leaves the house: merged models, GGUF, Meta's format, a folder for vLLM; each found to answer as it did here."""
