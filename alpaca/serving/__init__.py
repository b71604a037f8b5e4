"""Serving: a validated request goes in, a stream of text comes out; one thread owns the model."""
