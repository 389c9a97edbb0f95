"""Data that the project draws, written in the formats of the public data sets."""
