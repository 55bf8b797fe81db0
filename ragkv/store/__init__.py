"""The store: segments' keys and values by content, one safetensors file each, on any fsspec file system.

    <url>/<aa>/<key>.safetensors    a segment; its key is the hash of all that determines its values
    <url>/manifests/<name>.json     which segments a profile's tasks need, written by precompute
    <url>/uses/<name>.json          when these were last used
    <url>/holds/<id>.json           segments that a running job holds
    <url>/evictions/<id>.json       segments that are being evicted

Names of other files are not the store's: they are neither read nor removed.
"""

from ragkv.store.cache import Cache
from ragkv.store.files import ReadOnlyError, StoreError
from ragkv.store.kvstore import KVStore
from ragkv.store.layout import Layout
from ragkv.store.manifests import Manifest
from ragkv.store.stored_segment import StoredSegment

__all__ = ["Cache", "KVStore", "Layout", "Manifest", "ReadOnlyError", "StoreError", "StoredSegment"]
