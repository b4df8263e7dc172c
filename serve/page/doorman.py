"""Says who may see a page with a login: who shows a name and its key, for as long as that key is valid."""

from __future__ import annotations

from serve.key_ring import KeyRing


class Doorman:
    """Gradio asks it once, at the login; the page's frame asks again with every request."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def __call__(self, name: str, key: str) -> bool:
        return self._ring.name_of(key.strip()) == name.strip()

    def knows(self, name: str) -> bool:
        """Whether a name that was let in would still be."""
        return self._ring.holds(name)
