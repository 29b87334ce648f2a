"""One object of an object store, replaced only by who has read what is there.

Arrow's file systems know no conditions, so this asks boto3, which MLflow's artifacts need as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from policies.errors import Unavailable

TIMEOUT_S: Final = 20
ATTEMPTS: Final = 4
# Somebody else's content is there; somebody else is putting just now; there is nothing any more.
REFUSED: Final = frozenset({412, 409, 404})


class ConditionalObject:
    """An object that is read with its version, and replaced only where that is still the one.

    Args:
        url: s3:// URL of the object.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._bucket, self._key = parts.netloc, parts.path.lstrip("/")

    def read(self) -> tuple[bytes, str] | None:
        """Return content and entity tag; None where there is no such object.

        Raises:
            Unavailable: The store does not answer, or refuses.
        """
        with self._asked(frozenset({404})) as ask:
            found = ask("get_object")
            return found["Body"].read(), found["ETag"]
        return None

    def replace(self, content: bytes, *, etag: str | None) -> str | None:
        """Put new content where the object is still the one that was read.

        Args:
            content: What to put.
            etag: Entity tag of what was read; None where there was nothing.

        Returns:
            The new entity tag; None where something else is there now.

        Raises:
            Unavailable: The store does not answer, or refuses.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._asked(REFUSED) as ask:
            return str(ask("put_object", Body=content, **condition)["ETag"])
        return None

    def remove(self) -> None:
        """Delete the object; raises Unavailable."""
        with self._asked(frozenset({404})) as ask:
            ask("delete_object")

    @contextmanager
    def _asked(self, expected: frozenset[int]) -> Iterator[Callable[..., Any]]:
        """Yield what asks the store; an answer of an expected status ends the block quietly."""
        client = self._client
        from botocore.exceptions import BotoCoreError, ClientError

        def ask(operation: str, **arguments: Any) -> Any:
            return getattr(client, operation)(Bucket=self._bucket, Key=self._key, **arguments)

        try:
            yield ask
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status not in expected or error.response["Error"]["Code"] == "NoSuchBucket":
                raise _failed(error) from error
        except BotoCoreError as error:
            raise _failed(error) from error

    @functools.cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise Unavailable(
                "a dataset in an object store needs boto3: install barp-router[s3]",
                field="storage_url",
            ) from error
        config = Config(
            connect_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        )
        return boto3.client("s3", config=config)


def _failed(error: Exception) -> Unavailable:
    """Say what the store said."""
    return Unavailable(f"the object store failed: {str(error)[:200]}", field="storage_url")
