"""What leaves the house: a merged model, GGUF, Meta's format, a folder for vLLM; each asked, and found to answer as here."""
