"""Signs of life, on a store within this process."""

from __future__ import annotations

import time
from typing import Any

from torch.distributed import HashStore

from wmtp.errors import LostProcessError
from wmtp.training.watchdog import PULSE, Watchdog


class BrokenLine:
    """A connection that breaks after some calls; a new one works."""

    def __init__(self, store: HashStore, calls: int) -> None:
        self.store, self.calls = store, calls

    def set(self, key: str, value: str) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("Broken pipe")
        self.store.set(key, value)

    def check(self, keys: list[str]) -> bool:
        return self.store.check(keys)

    def clone(self) -> HashStore:
        return self.store


def never(error: LostProcessError) -> None:
    raise AssertionError(error)


def sign(store: HashStore) -> str:
    return store.get("wmtp/alive/0").decode()


def test_signs_go_on_when_the_line_to_the_store_has_broken() -> None:
    store = HashStore()
    line: Any = BrokenLine(store, calls=1)
    watchdog = Watchdog(0, 2, line, 60, never)
    time.sleep(0.3 * PULSE)
    first = sign(store)
    time.sleep(2.5 * PULSE)
    later = sign(store)
    watchdog.stop()
    assert line.calls < 0, "it broke"
    assert later != first
    time.sleep(1.5 * PULSE)
    assert sign(store).endswith("left")
