"""The store: keys and values of segments, found by content, one safetensors file each, on any fsspec file system.

    <url>/<aa>/<key>.safetensors    a segment; the key is the hash of everything that determines its values
    <url>/manifests/<name>.json     which segments a profile's tasks need, written by precompute
    <url>/uses/<name>.json          when these segments were last used
    <url>/holds/<id>.json           segments that a running job needs
    <url>/evicting/<key>.safetensors    a segment that is being evicted; a job that needs it moves it back
    <url>/key/<id>.json             which key the store is written with, if any

Files with other names do not belong to the store: they are neither read nor removed.
"""

from ragkv.store.cache import Cache
from ragkv.store.errors import ReadOnlyError, StoreError
from ragkv.store.kvstore import KVStore
from ragkv.store.layout import Layout
from ragkv.store.manifests import Manifest
from ragkv.store.stored_segment import StoredSegment

__all__ = ["Cache", "KVStore", "Layout", "Manifest", "ReadOnlyError", "StoreError", "StoredSegment"]
