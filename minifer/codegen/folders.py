"""The user's cache directory, and the digest that what is kept there goes by.

A module of its own, because a program that finds its plans there needs nothing else.
"""

from __future__ import annotations

import os
import sys

try:  # hashlib would load OpenSSL, for nothing
    from _blake2 import blake2b as blake2b
except ImportError:
    from hashlib import blake2b as blake2b


def user_cache() -> str:
    """The user's cache directory for minifer, as the system has it; MINIFER_CACHE_DIR overrides it."""
    if override := os.environ.get("MINIFER_CACHE_DIR"):
        return override
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        root = os.path.expanduser("~/Library/Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "minifer")
