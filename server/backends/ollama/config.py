"""What an operator can say about the Ollama daemon."""

from __future__ import annotations

from dataclasses import dataclass

from server.core.duration import Duration


@dataclass(frozen=True, slots=True)
class OllamaConfig:
    """Section ``[ollama]``: the Ollama daemon that requests may be passed on to.

    Attributes:
        enabled: whether models of an Ollama daemon are served at all.
        url: where the daemon listens, in any form that OLLAMA_HOST takes; empty means OLLAMA_HOST, or else
            http://127.0.0.1:11434.
        autostart: start ``ollama serve`` when the daemon does not answer, and stop it with this server.
        autostart_timeout_seconds: how long a daemon that was started may take until it answers.
        preload: models, separated by commas, that the daemon is asked to load when this server starts.
        keep_alive: how long the daemon keeps a model in memory after an answer, where a request does not say: a
            duration such as 5m, or -1s for ever; empty leaves it to the daemon.
        connect_timeout_seconds: how long connecting to the daemon may take.
        detection_timeout_seconds: how long the daemon may take to say which models it has; then it counts as down.
        detection_cache_seconds: how long an answer to that question is used before it is asked again.
        silence_timeout_seconds: an answer that brings nothing for this long is given up; loading a model is silence.
        allow_cloud_models: serve models that the daemon does not run itself but passes on to another host.
        allow_private_images: fetch images from addresses of private networks and of this machine, too.
        max_images: most images of one request.
        max_image_bytes: largest image.
        image_timeout_seconds: how long fetching one image may take.

    """

    enabled: bool = True
    url: str = ""
    autostart: bool = False
    autostart_timeout_seconds: float = 30.0
    preload: str = ""
    keep_alive: Duration = Duration("")
    connect_timeout_seconds: float = 2.0
    detection_timeout_seconds: float = 1.0
    detection_cache_seconds: float = 3.0
    silence_timeout_seconds: float = 600.0
    allow_cloud_models: bool = False
    allow_private_images: bool = False
    max_images: int = 16
    max_image_bytes: int = 20 * 1024 * 1024
    image_timeout_seconds: float = 10.0
