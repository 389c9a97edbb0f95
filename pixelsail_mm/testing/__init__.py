"""Tiny models, tokenizers and batches for our tests, benchmarks and users' own tests."""
