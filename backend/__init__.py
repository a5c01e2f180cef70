"""A Label Studio backend that learns while people annotate images."""

__version__ = "0.1.0"
