"""Rows that all sites have, found by a key without a key leaving its site.

A `Matcher` works in steps: each site says something, the server makes one answer of what all have
said, and each site takes it. Private set intersection fits in here as well as the hashed ids below.

What hashed ids keep from whom:

- The server sees hashes under a salt that it does not have, so that it cannot try out likely keys.
  One site draws the salt and gives it to each other site under a key that the two agree on by
  X25519. A server that is honest but curious learns how many keys each site has, and which hashes
  they have in common. One that changes messages could put itself between the sites and learn the
  salt: the sites' public keys are not signed.
- A site learns which of its own rows all sites have. It has the salt, so that a site which is
  given another one's hashes, by a server that it works with, can try out likely keys.
"""

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from prefect_federated.errors import ConfigurationError, SitesDisagree, UpdateRejected
from prefect_federated.messages import Tensors

Rows: TypeAlias = NDArray[np.int64]

HASH_BYTES = 16
"""Of 2^32 different keys, two have the same hash with a probability of 3e-20."""
_SALT_BYTES = 32
_NONCE_BYTES = 12
_NAMED = 5


class Matcher(Protocol):
    """One site's part in finding the rows that all sites have."""

    @property
    def steps(self) -> int:
        """How often the site says something."""
        ...

    def say(self, step: int, heard: Tensors) -> Tensors:
        """Returns what the site says in a step, counted from 0.

        Args:
            step: The step.
            heard: What the server has made of what all sites said in the step before.
        """
        ...

    def rows(self, heard: Tensors) -> Mapping[str, Rows]:
        """Returns the numbers of this site's common rows, in the order that all sites share.

        Args:
            heard: What the server has made of the last step.

        Returns:
            Part, such as "train" -> `(common,)`.
        """
        ...


class Meeting(Protocol):
    """The server's part in it."""

    def hear(self, step: int, told: Mapping[str, Tensors]) -> Tensors:
        """Returns what all sites are told of what each has said in a step.

        Raises:
            SitesDisagree: they have nothing in common.
        """
        ...


class HashedIds:
    """A site's keys as hashes under a salt that the sites share, and the server does not have.

    Args:
        site: This site.
        sites: All sites; the first one draws the salt.
        keys: Part, such as "train" -> the key of each row; rows without one ("") are in no match.

    Raises:
        ConfigurationError: rows of this site have the same key.
    """

    steps = 3

    def __init__(self, site: str, sites: Sequence[str], keys: Mapping[str, Sequence[str]]) -> None:
        check_unique(site, keys)
        self._site, self._sites, self._keys = site, list(sites), keys
        self._private = X25519PrivateKey.generate()
        self._salt: bytes | None = secrets.token_bytes(_SALT_BYTES) if site == sites[0] else None
        self._publics: dict[str, bytes] = {}

    def say(self, step: int, heard: Tensors) -> Tensors:
        """Gives a public key; then, from the first site, the salt for each other; then hashes.

        Raises:
            UpdateRejected: the salt does not open: it was changed on the way.
        """
        if step == 0:
            return {f"public/{self._site}": _array(self._private.public_key().public_bytes_raw())}
        if step == 1:
            self._publics = {site: heard[f"public/{site}"].tobytes() for site in self._sites}
            if self._salt is None:
                return {}
            others = [site for site in self._sites if site != self._site]
            return {f"sealed/{site}": _array(self._sealed(site)) for site in others}
        if self._salt is None:
            self._salt = self._opened(heard[f"sealed/{self._site}"].tobytes())
        return {part: np.unique(self._hashes(part)[1]).view(np.uint8) for part in self._keys}

    def rows(self, heard: Tensors) -> Mapping[str, Rows]:
        """Returns the common rows in the order of their hashes, which is no order of theirs."""
        found = {}
        for part in self._keys:
            numbers, hashes = self._hashes(part)
            _, mine, _ = np.intersect1d(hashes, _hashes_in(heard[part]), return_indices=True)
            found[part] = numbers[mine]
        return found

    def _hashes(self, part: str) -> tuple[Rows, NDArray[np.bytes_]]:
        """Returns the rows that have a key, and their hashes."""
        assert self._salt is not None
        keys = self._keys[part]
        numbers = np.array([row for row, key in enumerate(keys) if key], np.int64)
        salt = self._salt + part.encode()
        digests = [hmac.digest(salt, keys[row].encode(), hashlib.sha256) for row in numbers]
        joined = b"".join(digest[:HASH_BYTES] for digest in digests)
        return numbers, _hashes_in(_array(joined))

    def _sealed(self, site: str) -> bytes:
        assert self._salt is not None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher(site).encrypt(nonce, self._salt, site.encode())

    def _opened(self, sealed: bytes) -> bytes:
        first, (nonce, rest) = self._sites[0], (sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:])
        try:
            return self._cipher(first).decrypt(nonce, rest, self._site.encode())
        except InvalidTag as error:
            raise UpdateRejected(
                f"site {self._site!r} cannot open the salt that site {first!r} has sent it: it was "
                "changed on the way, or one of the two has begun anew. Start the job again."
            ) from error

    def _cipher(self, other: str) -> ChaCha20Poly1305:
        shared = self._private.exchange(X25519PublicKey.from_public_bytes(self._publics[other]))
        pair = b"".join(sorted((self._publics[self._site], self._publics[other])))
        about = b"prefect-federated row matching" + pair
        return ChaCha20Poly1305(HKDF(SHA256(), 32, None, about).derive(shared))


class HashedMeeting:
    """The server's part in `HashedIds`: it hands on keys and salt, and intersects the hashes."""

    def hear(self, step: int, told: Mapping[str, Tensors]) -> Tensors:
        """Hands on what the sites say; after the last step, the hashes that all sites have.

        Raises:
            SitesDisagree: no row to train on is common to all sites; says how many each has.
        """
        if step < HashedIds.steps - 1:
            return {name: array for said in told.values() for name, array in said.items()}
        parts = dict.fromkeys(part for said in told.values() for part in said)
        common: dict[str, NDArray[np.uint8]] = {}
        for place, part in enumerate(parts):
            hashes = {site: _hashes_in(said[part]) for site, said in told.items()}
            first, *others = hashes.values()
            shared = np.unique(first)
            for each in others:
                shared = np.intersect1d(shared, each)
            if not len(shared) and place == 0:
                told_rows = ", ".join(f"{site} has {len(h):,} keys" for site, h in hashes.items())
                raise SitesDisagree(
                    f"no key is at all sites ({told_rows}), so there is no row to train on. Look "
                    "whether the key's column means the same at each site, and is written the same "
                    "way: leading zeros, upper and lower case, blanks."
                )
            common[part] = shared.view(np.uint8)
        return common


def check_unique(site: str, keys: Mapping[str, Sequence[str]]) -> None:
    """Raises `ConfigurationError` if rows of a site have the same key; says how many."""
    for part, of_part in keys.items():
        twice = {key: n for key, n in Counter(of_part).items() if key and n > 1}
        if twice:
            rows = sum(twice.values())
            raise ConfigurationError(
                f"site {site!r} has {len(twice):,} keys that stand in more than one row of its "
                f"{part} part ({rows:,} rows in all); a key must name one row. Remove the "
                "repetitions there, or name a column whose values are unique as `key`."
            )


def _array(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def _hashes_in(flat: "NDArray[np.uint8]") -> NDArray[np.bytes_]:
    """Returns hashes as elements that sort and compare."""
    whole = np.ascontiguousarray(flat.reshape(-1))
    return whole.view(np.dtype((np.bytes_, HASH_BYTES)))
