"""Parts in an object store: a manifest says which of them count.

A part is an object of its own that is never written twice. It counts once it is in the manifest,
which is replaced by one put on the condition that it is still the one that was read: of two
writers one is refused, has to read again what the other did, and can undo nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.conditional_objects import ConditionalObject
from pipelines.dataset_parts import (
    DamagedDataset,
    Part,
    in_sequence,
    named_parts,
    part_name,
    unreadable,
    write_tables,
)
from policies.errors import Conflict, RouterError, Unavailable

logger = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
MANIFEST_SCHEMA: Final = 1
# What never got into the manifest goes after this, seconds; a put that took so long is not counted.
SWEEP_AFTER_S: Final = 86_400.0
SWEEP_EVERY_S: Final = 3_600.0
COUNT_WITHIN_S: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What counts, as somebody wrote it down.

    Attributes:
        parts: In sequence order.
        commit: Tells one writing of the manifest from every other; empty before the first.
        etag: The store's name for this content; None before the first.
    """

    parts: tuple[Part, ...] = ()
    commit: str = ""
    etag: str | None = None

    def to_json(self) -> bytes:
        """Return what is stored."""
        parts = [asdict(part) for part in self.parts]
        whole = {"schema": MANIFEST_SCHEMA, "commit": self.commit, "parts": parts}
        return json.dumps(whole, separators=(",", ":")).encode()

    @classmethod
    def of_json(cls, content: bytes, etag: str) -> Manifest:
        """Read what is stored; raises DamagedDataset."""
        try:
            found = json.loads(content)
            if found["schema"] != MANIFEST_SCHEMA:
                raise ValueError(f"schema {found['schema']}")
            parts = [Part(**part) for part in found["parts"]]
            listed, merged = in_sequence(parts)
            if listed != parts or merged or named_parts(p.name for p in parts) != _named(parts):
                raise ValueError("its parts are out of order")
            return cls(parts=tuple(parts), commit=str(found["commit"]), etag=etag)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedDataset(
                f"{MANIFEST} cannot be read: {error}"[:300], field="interactions"
            ) from error


@dataclass
class ObjectParts:
    """Parts under a prefix of an object store; see `PartStore`. Opened by the first call.

    Args:
        url: s3:// URL. Credentials, region and endpoint are the AWS SDKs' usual ones.
        sweep_after_s: Age from which what does not count is removed, seconds.
    """

    url: str
    sweep_after_s: float = SWEEP_AFTER_S
    # As this writer left it, so that the next part need not read it again.
    _held: Manifest | None = field(default=None, init=False)
    _swept_at: float | None = field(default=None, init=False)

    def parts(self) -> list[Part]:
        """See `PartStore`; a folder of parts without a manifest counts by their names."""
        return list(self._read().parts)

    def still(self, parts: list[Part]) -> bool:
        """See `PartStore`; a manifest is read in one moment."""
        return True

    def open(self, part: Part, *, whole: bool) -> AbstractContextManager[BinaryIO]:
        """See `PartStore`."""
        store, prefix = self._opened
        path = f"{prefix}/{part.name}"
        if not whole:
            found: AbstractContextManager[BinaryIO] = store.open_input_file(path)
            return found
        with store.open_input_stream(path) as stream:
            content: bytes = stream.read()
        if part.sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise unreadable(part, "its digest is not the manifest's")
        return BytesIO(content)

    def add(self, first: int, last: int, tables: Iterator[pa.Table]) -> None:
        """See `PartStore`.

        Raises:
            Conflict: Another writer has been here; what counts has to be read again.
        """
        held, self._held = self._held or self._read(), None
        if held.parts and held.parts[-1].last + 1 != first:
            raise _overtaken()
        self._commit(held, held.parts, self._put(first, last, tables), ())

    def replace(self, run: Sequence[Part], tables: Iterator[pa.Table]) -> None:
        """See `PartStore`. Raises Conflict as `add` does."""
        held, self._held = self._read(), None
        if not set(run) <= set(held.parts):
            raise _overtaken()
        start = held.parts.index(run[0])
        before, after = held.parts[:start], held.parts[start + len(run) :]
        self._commit(held, before, self._put(run[0].first, run[-1].last, tables), after)
        self._remove([part.name for part in run])

    def sweep(self) -> None:
        """See `PartStore`; looks once an hour, and leaves alone what may still be added."""
        now = time.monotonic()
        if self._swept_at is not None and now < self._swept_at + SWEEP_EVERY_S:
            return
        with self._answering():
            found = self._listed()
        before = time.time() - self.sweep_after_s
        manifest = self._read()
        if manifest.etag is not None:
            counted = {part.name for part in manifest.parts}
            names = {part.name for part in named_parts(found)}
            self._remove([n for n in sorted(names - counted) if found[n] <= before])
        self._swept_at = now

    def trouble(self, part: Part, error: Exception) -> RouterError:
        """See `PartStore`; a store that does not answer is no damage."""
        try:
            store, prefix = self._opened
            store.get_file_info(f"{prefix}/{part.name}")
        except OSError as away:
            return _away(away)
        return unreadable(part, error)

    def _read(self) -> Manifest:
        """Read what counts."""
        found = self._manifest.read()
        if found is not None:
            return Manifest.of_json(*found)
        with self._answering():
            parts, _ = in_sequence(named_parts(self._listed()))
        return Manifest(parts=tuple(parts))

    def _put(self, first: int, last: int, tables: Iterator[pa.Table]) -> Part:
        """Write an object of a name that nobody else takes, and read it back."""
        file, began = BytesIO(), time.monotonic()
        write_tables(file, tables)
        content = file.getvalue()
        name = part_name(first, last, f"-{secrets.token_hex(4)}")
        digest = hashlib.sha256(content).hexdigest()
        part = Part(name=name, first=first, last=last, sha256=digest)
        with self._answering():
            store, prefix = self._opened
            with store.open_output_stream(f"{prefix}/{name}") as stream:
                stream.write(content)
            self.open(part, whole=True)
        if time.monotonic() > began + COUNT_WITHIN_S:
            raise Unavailable(f"writing {name} took too long", field="storage_url")
        return part

    def _commit(
        self, held: Manifest, before: Sequence[Part], part: Part, after: Sequence[Part]
    ) -> None:
        """Let a part count, unless somebody else has changed what counts."""
        new = Manifest(parts=(*before, part, *after), commit=secrets.token_hex(8))
        etag = self._manifest.replace(new.to_json(), etag=held.etag)
        if etag is None:
            # The answer to a put that was done may have been lost, and the put sent again.
            found = self._read()
            if found.commit != new.commit:
                self._remove([part.name])
                raise _overtaken()
            etag = found.etag
        self._held = dataclasses.replace(new, etag=etag)

    def _remove(self, names: Sequence[str]) -> None:
        """Delete objects; those that stay are removed by a later sweep."""
        for name in names:
            try:
                self._remove_one(name)
            except OSError as error:
                logger.info("%s stays for now: %s", name, error)

    def _remove_one(self, name: str) -> None:
        """Delete an object."""
        store, prefix = self._opened
        store.delete_file(f"{prefix}/{name}")

    def _listed(self) -> dict[str, float]:
        """List the objects under the prefix: when each was written, seconds, by name."""
        store, prefix = self._opened
        selector = pafs.FileSelector(prefix, allow_not_found=True)
        found = store.get_file_info(selector)
        return {info.base_name: info.mtime.timestamp() for info in found if info.is_file}

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn a store that does not answer into Unavailable."""
        try:
            yield
        except OSError as error:
            raise _away(error) from error

    @functools.cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        store, prefix = pafs.FileSystem.from_uri(f"{self.url.rstrip('/')}?allow_delayed_open=true")
        return store, prefix

    @functools.cached_property
    def _manifest(self) -> ConditionalObject:
        return ConditionalObject(f"{self.url.rstrip('/')}/{MANIFEST}")


def _named(parts: Sequence[Part]) -> list[Part]:
    """Return parts as their names alone describe them."""
    return [Part(name=part.name, first=part.first, last=part.last) for part in parts]


def _overtaken() -> Conflict:
    """Say that another writer was faster."""
    return Conflict(
        "another writer has been at the dataset; what it wrote has to be read first",
        field="interactions",
    )


def _away(error: OSError) -> Unavailable:
    """Say that the store does not answer."""
    return Unavailable(
        f"the dataset's object store failed: {str(error)[:200]}", field="storage_url"
    )
