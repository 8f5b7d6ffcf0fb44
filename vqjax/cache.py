"""Where what can be made again is kept between runs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `vqjax/<name>` in $XDG_CACHE_HOME or ~/.cache; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vqjax" / name
