"""wmtp: fine-tune code models that predict several tokens at once, and know when to stop."""

__version__ = "0.1.0"
