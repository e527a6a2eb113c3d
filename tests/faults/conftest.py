"""What tests of several processes share."""

from tests.distributed.place import place

__all__ = ["place"]
