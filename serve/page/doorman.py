"""Says who may see a page with a login: who shows a name and its key, for as long as that key is valid."""

from __future__ import annotations

from serve.key_ring import KeyRing, hash_of


class Doorman:
    """Gradio asks it once, at the login; the page's frame asks again with every request."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._shown: dict[str, str] = {}
        """The key that each name was let in with last, hashed."""
        self._logins: dict[str, str] = {}

    def __call__(self, name: str, key: str) -> bool:
        let_in = self._ring.name_of(key.strip()) == name.strip()
        if let_in:
            self._shown[name] = hash_of(key.strip())
        return let_in

    def knows(self, login: str, name: str) -> bool:
        """Whether this login would still be let in, by the key that was shown for it and no later one of its name."""
        valid = self._ring.holds(self._logins.setdefault(login, self._shown.get(name, "")))
        if not valid:
            del self._logins[login]
        return valid
