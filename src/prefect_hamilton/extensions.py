"""Hamilton's extensions are loaded when a dataflow needs them, and not all at the first import.

Hamilton has an extension for each of some 20 libraries: its types and its loaders and savers. At
its first import, it loads every one whose library is installed, and with it the library: for
scikit-learn, Matplotlib and Dask together about two seconds and 110 MB in each flow run.

HAMILTON_AUTOLOAD_EXTENSIONS, in the environment or in Hamilton's configuration file, has
precedence: 1 loads all at the first import, 0 none at all.
"""

import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

PACKAGES = {
    "dask": ("dask.dataframe",),
    "huggingface": ("datasets",),
    "polars_lazyframe": ("polars",),
    "pyspark_pandas": ("pyspark",),
    "sklearn_plot": ("sklearn", "matplotlib"),
    "spark": ("pyspark",),
}
"""The modules that a dataflow which uses the extension has imported; otherwise its own name."""


def load_lazily() -> None:
    """Make Hamilton load an extension once the flow has imported its library.

    All are loaded when a loader or saver is used that none of the loaded ones has. Does nothing if
    Hamilton is not installed, or has already loaded its extensions.
    """
    try:
        from hamilton import registry
    except ModuleNotFoundError:
        return
    registry.load_autoload_config()
    if registry.INITIALIZED or registry.HAMILTON_AUTOLOAD_ENV in os.environ:
        return
    registry.INITIALIZED = True
    extensions = _Extensions(registry)
    # Before Hamilton's other modules take them from there.
    registry.DF_TYPE_AND_COLUMN_TYPES = _Types(extensions)
    registry.LOADER_REGISTRY = _Adapters(extensions)
    registry.SAVER_REGISTRY = _Adapters(extensions)


class _Extensions:
    """The extensions that are not loaded yet."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._waiting = list(registry.HAMILTON_EXTENSIONS)
        # A task in another thread must not look into the registry meanwhile.
        self._loading = threading.RLock()

    def load_imported(self) -> None:
        """Load the extensions of the libraries that are imported."""
        with self._loading:
            # An extension may import the library of another.
            while imported := [name for name in self._waiting if _is_imported(name)]:
                self._load(imported)

    def load_all(self) -> None:
        """Load every extension whose library is installed."""
        with self._loading:
            self._load(list(self._waiting))

    def _load(self, names: Iterable[str]) -> None:
        for name in names:
            # An extension looks into the registry when it is loaded.
            if name in self._waiting:
                self._waiting.remove(name)
                self._load_one(name)

    def _load_one(self, name: str) -> None:
        try:
            self._registry.load_extension(name)
        except (NotImplementedError, ImportError, Warning) as error:  # as Hamilton ignores them
            self._registry.logger.debug("Did not load the extension %s: %s", name, error)


def _is_imported(extension: str) -> bool:
    return all(module in sys.modules for module in PACKAGES.get(extension, (extension,)))


class _Types(dict[str, Any]):
    """Types of data frames by extension, those of imported libraries among them."""

    def __init__(self, extensions: _Extensions) -> None:
        super().__init__()
        self._extensions = extensions

    def __contains__(self, name: object) -> bool:
        self._extensions.load_imported()
        return super().__contains__(name)

    def items(self) -> Any:
        self._extensions.load_imported()
        return super().items()


class _Candidates(list[Any]):
    """Loaders or savers of one name, those for types of imported libraries among them."""

    def __init__(self, extensions: _Extensions) -> None:
        super().__init__()
        self._extensions = extensions

    def __iter__(self) -> Iterator[Any]:
        self._extensions.load_imported()
        return super().__iter__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Become a plain list where a task is sent to another process."""
        return list, (list(self),)


class _Adapters(defaultdict[str, _Candidates]):
    """Loaders or savers by name."""

    def __init__(self, extensions: _Extensions) -> None:
        super().__init__(lambda: _Candidates(extensions))
        self._extensions = extensions

    def __contains__(self, name: object) -> bool:
        self._extensions.load_imported()
        if not super().__contains__(name):
            self._extensions.load_all()
        return super().__contains__(name)

    def items(self) -> Any:
        self._extensions.load_imported()
        return super().items()
