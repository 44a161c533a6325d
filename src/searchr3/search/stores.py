"""Opening a store: on disk with LanceDB, or in a Qdrant server."""

from __future__ import annotations

from searchr3.errors import SearchR3Error
from searchr3.search.store import Store


def open_store(place: str, create: bool = False) -> Store:
    """The store at a folder, or in Qdrant at `http://host:6333/collection`.

    Raises:
        SearchR3Error: there is none and `create` is False, or it cannot be reached or read.
    """
    if not place.strip():
        raise SearchR3Error("--store is empty; name a folder, or http://host:6333/collection")
    if place.startswith(("http://", "https://")):
        with needed("qdrant_client"):
            from searchr3.search.qdrant_store import QdrantStore
        store: Store = QdrantStore.at(place)
    else:
        with needed("lancedb"):
            from searchr3.search.lance_store import LanceStore
        store = LanceStore(place, create)
    if not create and store.facts() is None:
        store.close()
        raise SearchR3Error(
            f"{place}: no store; make one with `searchr3 index PATH --store {place} --model MODEL`"
        )
    return store


class needed:
    """Turns a missing package of the extra into one line."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise SearchR3Error(
                f"{error.name or self.package} is not installed; pip install 'searchr3[search]'"
            ) from None
