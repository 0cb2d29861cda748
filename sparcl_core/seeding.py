"""The only place where randomness is made: a generator has an address, not a history.

Every random draw of the project comes from `generator(seed, *address)`, where the address says what the draw is for
(purpose, device, task, epoch, ...). Draws therefore do not depend on which process makes them, on their order, or on how
many draws were made before, and two draws with different addresses are independent.
"""

import hashlib

import numpy as np

Address = int | str


def generator(seed: int, *address: Address) -> np.random.Generator:
    """A NumPy generator (Philox) for one purpose.

    The key is a BLAKE2 digest of the seed and the address with their types, so `("a", 1)` and `("a1",)` differ, as do `1`
    and `"1"`; Python's salted `hash()` plays no part.

    Raises:
        TypeError: if the seed is no int or a part of the address is neither int nor str.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is {seed!r} ({type(seed).__name__}): a seed is an int")
    digest = hashlib.blake2b(digest_size=16)
    for part in (seed, *address):
        if isinstance(part, np.integer):
            part = int(part)
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"address part {part!r} ({type(part).__name__}): an address is made of int and str")
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
