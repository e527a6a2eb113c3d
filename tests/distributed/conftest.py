"""What tests of several processes share."""

from tests.distributed.place import place, small_model

__all__ = ["place", "small_model"]
