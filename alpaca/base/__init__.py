"""The base: what its files say, a folder for it from anywhere, a precision, and its weights in memory."""
