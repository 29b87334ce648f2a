"""What is deployed: the Serve application, composed from settings.

`serve run cluster.application:build` and cluster/serve.yaml name this function; `barp serve`
calls it, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Final

from ray import serve

from cluster.actors import start_actors
from cluster.places import places, resolved
from cluster.settings import Settings
from cluster.signing import retired_secrets, signing_secret
from policies.preference import Preference
from services.deployments import Autoscaling, router_deployment
from services.router import RouterArgs

APP_NAME: Final = "barp"


def build(args: dict[str, Any]) -> serve.Application:
    """Compose the application, and start the named actors that it meets in data.

    The actors are found again if they run already: deploying once more changes replicas, never
    the ledger.

    Args:
        args: Settings by name; what is left out comes from environment, file and default.

    Raises:
        pydantic.ValidationError: A setting that is not allowed.
    """
    settings = resolved(Settings.model_validate(args))
    start_actors(settings)
    return compose(settings)


def compose(settings: Settings) -> serve.Application:
    """Compose the application alone; its replicas wait for the champion, and find the actors."""
    scaled_encoder = settings.encoder_placement == "deployment"
    return router_deployment(
        router_args(settings),
        autoscaling=autoscaling(settings),
        encoder_autoscaling=encoder_autoscaling(settings) if scaled_encoder else None,
    )


def router_args(settings: Settings) -> RouterArgs:
    """Pick what a router replica needs to know."""
    place = places(settings)
    key = settings.api_key
    return RouterArgs(
        secret=signing_secret(settings),
        retired_secrets=retired_secrets(settings),
        encoder_dir=place.encoder_dir,
        publish_dir=place.publish_dir,
        default_preference=Preference.normalised(
            quality=settings.default_quality_weight, cost=1.0 - settings.default_quality_weight
        ),
        max_prompt_characters=settings.max_prompt_characters,
        max_in_flight=settings.max_in_flight,
        max_batch=settings.max_batch,
        api_key_sha256=(
            None if key is None else hashlib.sha256(key.get_secret_value().encode()).hexdigest()
        ),
        keys_file=place.keys_file,
        record_buffer=settings.record_buffer,
        record_flush_ms=settings.record_flush_ms,
        record_when_full=settings.record_when_full,
        spool_dir=place.spool_dir,
        aggregator_shards=settings.aggregator_shards,
    )


def autoscaling(settings: Settings) -> Autoscaling:
    """Pick how replicas come and go."""
    return Autoscaling(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.target_ongoing_requests,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        look_back_s=settings.look_back_s,
        num_cpus=settings.replica_cpus,
        max_replicas_per_node=settings.max_replicas_per_node,
    )


def encoder_autoscaling(settings: Settings) -> Autoscaling:
    """Pick the same for the encoder's deployment, which may sit on GPUs, many to a node."""
    return replace(
        autoscaling(settings), num_gpus=settings.encoder_gpus, max_replicas_per_node=None
    )
