"""Traces of a server, exported by OpenTelemetry as its `OTEL_*` variables say.

They are exported if `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, or
`OTEL_TRACES_EXPORTER` is `otlp` or `console`. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`,
`OTEL_PROPAGATORS`, `OTEL_BSP_*`, `OTEL_SDK_DISABLED` and the exporter's own mean what OpenTelemetry's documentation
says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from hashlight.engine.extras import missing
from hashlight.engine.tracing import recording_to

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Exporter = Literal["otlp", "console"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@contextlib.contextmanager
def exporting_traces(service: str, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Export the traces of this process as long as the context is open, if the environment says so.

    Parameters
    ----------
    service : str
        Its name in the traces, unless the environment gives one.
    environment : mapping of str to str
        What decides whether traces are exported; how they are, OpenTelemetry reads from the process's.

    Raises
    ------
    MissingDependencyError
        If OpenTelemetry is not installed.
    ValueError
        If the environment asks for an exporter or a protocol that is not there.
    """
    exporter = exporter_of(environment)
    if exporter is None:
        yield
        return
    try:
        provider = _provider(service, exporter, environment)
    except ModuleNotFoundError as error:
        raise missing(error, "exporting traces, as the OTEL_* variables ask for,") or error from error
    try:
        with recording_to(provider):
            yield
    finally:
        provider.shutdown()


def exporter_of(environment: Mapping[str, str]) -> Exporter | None:
    """Return what the environment says traces are exported by; None if they are not.

    Raises
    ------
    ValueError
        If that exporter, or the protocol that is set for it, is not there.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if named == "none" or not (named or any(environment.get(name) for name in _ENDPOINTS)):
        return None
    if named == "console":
        return "console"
    if named not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, got {named!r}")
    for name in _PROTOCOLS:
        protocol = environment.get(name, "").strip()
        if protocol == "http/protobuf":
            break
        if protocol:
            raise ValueError(f"{name} must be http/protobuf, as collectors take at port 4318, got {protocol!r}")
    return "otlp"


def _provider(service: str, exporter: Exporter, environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    is_named = "OTEL_SERVICE_NAME" in environment or f"{SERVICE_NAME}=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    provider = TracerProvider(resource=Resource.create({} if is_named else {SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))
    return provider
