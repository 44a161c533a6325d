"""A user's own documents: found, read, chunked, kept in a store with their vectors, and searched.

`index.index` brings a store up to date with folders, `search.StoreSearch` asks it. What both need of a store
is the protocol in `store`; `lance_store` keeps one on this disk, `qdrant_store` in a Qdrant cluster.
"""
