"""How XLA compiles fast: tests wait for the compiler, not for the programs."""

import importlib.util
import mmap
from pathlib import Path

FAST = "--xla_backend_optimization_level=0"
# Half the time. XLA refuses flags that it does not know, and this one may go away again.
_MAYBE = "xla_cpu_use_fusion_emitters"


def _knows(flag: str) -> bool:
    """Whether a flag's name is in XLA's library; it cannot be asked before it reads its flags."""
    jaxlib = importlib.util.find_spec("jaxlib")
    for folder in (jaxlib and jaxlib.submodule_search_locations) or ():
        for library in Path(folder).glob("libjax_common.*"):
            with (
                library.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                return content.find(flag.encode()) >= 0
    return False


if _knows(_MAYBE):
    FAST += f" --{_MAYBE}=false"
