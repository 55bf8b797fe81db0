"""How the tensors of a store are checked: by XXH3, or by HMAC-SHA256 if the store has a key.

XXH3 finds damage. It does not stop anybody who can write to the store from changing a tensor along with its checksum;
a checksum that depends on a key which they do not know does.
"""

import hmac
import json
import os

from ragkv.store.errors import WrongKeyError
from ragkv.store.read_worker import KEYED, new_checksum

VARIABLE = "RAGKV_STORE_KEY"
MIN_LENGTH = 16  # characters


class Checksums:
    """The checksums of a store.

    Attributes
    ----------
    key_id
        Tells keys apart without revealing them; None for checksums without a key.
    """

    def __init__(self, key: bytes | None = None):
        self._key = key
        self.key_id = self._hmac("key id").removeprefix(KEYED)[:16] if key else None

    @classmethod
    def from_environment(cls) -> "Checksums":
        """With the key in ``RAGKV_STORE_KEY``; without a key if that is not set.

        Raises
        ------
        ValueError
            The key is too short to be a secret.
        """
        key = os.environ.get(VARIABLE)
        if key is None:
            return cls()
        if len(key.strip()) < MIN_LENGTH:
            raise ValueError(
                f"{VARIABLE} has {len(key.strip())} characters, fewer than {MIN_LENGTH}: set it to a random key, such "
                f"as `openssl rand -hex 32` prints, or unset it"
            )
        return cls(os.fsencode(key.strip()))

    def salt(self, segment: str, name: str, dtype: str, shape: list[int]) -> str:
        """What the checksum of a tensor covers beside its bytes.

        With a key this includes the key of its `segment`, so that a tensor cannot be moved from one file to another.
        """
        if self._key is None:
            return json.dumps([name, dtype, shape])
        return self._hmac(json.dumps([segment, name, dtype, shape]))

    def of(self, segment: str, name: str, dtype: str, shape: list[int], data: bytes | memoryview) -> str:
        """The checksum of a tensor."""
        digest = new_checksum(self.salt(segment, name, dtype, shape))
        digest.update(data)
        return digest.hexdigest()

    def require(self, key_id: str | None, what: str) -> None:
        """Check that something was written with this key.

        Raises
        ------
        WrongKeyError
            It was not.
        """
        if key_id == self.key_id:
            return
        if key_id is None:
            raise WrongKeyError(
                f"{what} was written without a key, and {VARIABLE} is set: whoever can write there may have changed "
                f"it. Unset {VARIABLE} to trust it, or use a store of its own for this key"
            )
        if self.key_id is None:
            raise WrongKeyError(f"{what} was written with a key (id {key_id}): set {VARIABLE} to that key")
        raise WrongKeyError(
            f"{what} was written with another key (id {key_id}) than the one in {VARIABLE} (id {self.key_id})"
        )

    def _hmac(self, text: str) -> str:
        assert self._key is not None
        return KEYED + hmac.digest(self._key, text.encode(), "sha256").hex()
