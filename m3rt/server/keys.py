"""API keys: who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m3rt.errors import InputError
from m3rt.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Key:
    """One key, by its hash: all are compared in the same time, whatever their lengths."""

    name: str  # of the client, for fairness and the log
    digest: bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys. Without any, everybody may ask."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> Keys:
        """Read those that are set, and those of the file.

        Raises:
            InputError: the file cannot be read, or holds none.
        """
        found = list(entries(settings.api_key.split(","), "key"))
        if settings.api_key_file:
            path = Path(settings.api_key_file)
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"the keys in {path} cannot be read: {error}") from error
            of_file = list(entries(lines, path.name))
            if not of_file:
                raise InputError(f"{path} holds no keys: write NAME=KEY or KEY, one a line")
            found += of_file
        return cls(tuple(found))

    def __bool__(self) -> bool:
        return bool(self.keys)

    def client(self, authorization: str | None) -> str | None:
        """Return the name of the client whose key this is; None if it is nobody's.

        Args:
            authorization: ``Bearer KEY``, or the key alone.
        """
        if not self.keys:
            return ""
        text = (authorization or "").strip()
        scheme, _, rest = text.partition(" ")
        key = rest.strip() if scheme.lower() == "bearer" else text
        digest = hashlib.sha256(key.encode()).digest()
        name = None
        for one in self.keys:  # all of them, always
            if hmac.compare_digest(digest, one.digest):
                name = one.name
        return name


def entries(lines: list[str], kind: str) -> Iterator[Key]:
    """Read ``NAME=KEY`` or ``KEY``; blank lines and those that begin with # are none."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, key = text.partition("=")
        # base64 ends in =, and what stands before it is no name
        named = bool(equals) and bool(key.strip("="))
        value = key.strip() if named else text
        yield Key(
            name.strip() if named else f"{kind} {number}", hashlib.sha256(value.encode()).digest()
        )
