"""xdray: distils Transformer encoders into students 10 to 100 times smaller, on Ray."""

__version__ = "0.1.0"
