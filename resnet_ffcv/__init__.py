"""A data-first training stack for image classification on FFCV."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_ffcv.loader import Loader

__all__ = ["Loader"]


def __getattr__(name: str) -> Any:
    # When it is asked for: the writer needs neither torch nor FFCV, which take seconds to import.
    if name == "Loader":
        from resnet_ffcv.loader import Loader

        return Loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
