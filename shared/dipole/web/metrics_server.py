"""Metrics of a process that serves no other HTTP: prometheus_client's server, where MetricsSettings say."""

from __future__ import annotations

from prometheus_client import start_http_server
from prometheus_client.registry import Collector

from dipole.errors import ConfigurationError
from dipole.settings import MetricsSettings


def serve_metrics(settings: MetricsSettings, registry: Collector) -> None:
    """Answer GET /metrics in a thread for as long as the process lives; nothing where no port is set.

    Raises ConfigurationError when the address cannot be had.
    """
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"DIPOLE_METRICS_PORT: metrics cannot be served on {settings.metrics_host}:{settings.metrics_port}: "
            f"{error.strerror or error}"
        ) from error
