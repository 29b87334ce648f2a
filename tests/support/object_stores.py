"""An object store that speaks the S3 protocol, on loopback, for as long as a block lasts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

import boto3
from botocore.awsrequest import AWSPreparedRequest
from botocore.httpsession import URLLib3Session
from moto.server import ThreadedMotoServer

BUCKET: Final = "barp"
_BEFORE_A_PUT: Final = "before-send.s3.PutObject"


@contextmanager
def running_object_store() -> Iterator[str]:
    """Start it, and point every AWS SDK of this process and its children at it.

    Yields:
        The s3:// URL of its one bucket.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, environment):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        try:
            yield f"s3://{BUCKET}"
        finally:
            server.stop()


@contextmanager
def seeing_puts(see: Callable[[AWSPreparedRequest], None]) -> Iterator[None]:
    """Let a function see, and change, each put of boto3's before it goes to the store."""
    if boto3.DEFAULT_SESSION is None:
        boto3.setup_default_session()
    events = boto3.DEFAULT_SESSION.events

    def before_send(request: AWSPreparedRequest, **_: object) -> None:
        see(request)

    events.register(_BEFORE_A_PUT, before_send)
    try:
        yield
    finally:
        events.unregister(_BEFORE_A_PUT, before_send)


def without_conditions(put: AWSPreparedRequest) -> None:
    """Make of it what a store sees that passes over headers it does not know."""
    for name in ("If-Match", "If-None-Match"):
        put.headers.pop(name, None)


def sent_before(put: AWSPreparedRequest) -> None:
    """Send it once already: the answer is lost, and the SDK sends it again."""
    URLLib3Session().send(put)
    put.reset_stream()
