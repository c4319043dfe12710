"""Every limit of the data plane, by name. An error that a limit causes says this name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Sizes in bytes, times in milliseconds. One frozen value a process."""

    # --- what a client may send
    connections: int = 4096  # open at once; one more is answered 503 and closed
    url_bytes: int = 8 * 1024
    header_bytes: int = 64 * 1024  # of one request: names, values and the request line
    header_count: int = 128
    body_bytes: int = 32 * 1024 * 1024  # of a /v1 request
    upload_bytes: int = 2 * 1024 * 1024 * 1024  # of a request that is passed on to control
    pipeline_bytes: int = 256 * 1024  # read ahead of the answer that is under way
    drain_bytes: int = 64 * 1024  # of a refused body are read, to keep the connection
    linger_bytes: int = 16 * 1024 * 1024  # are read and dropped after a last answer
    prompts: int = 2048  # texts or token lists in one completion or embedding request
    # --- how long a client may take
    header_ms: int = 10_000  # from the first byte of a request to the end of its head
    body_idle_ms: int = 30_000  # between two pieces of a body
    body_ms: int = 300_000  # from the head to the end of a /v1 body
    idle_ms: int = 75_000  # a kept-alive connection without a request
    stall_ms: int = 120_000  # a client that reads nothing of what is written
    linger_ms: int = 2_000  # after a last answer, for the client to read it
    # --- requests that wait for a replica
    held: int = 512  # a deployment
    hold_ms: int = 180_000
    # --- engines
    connect_ms: int = 2_000
    shun_ms: int = 500  # an endpoint that refused a connection is not tried again before
    first_byte_ms: int = 600_000
    quiet_ms: int = 120_000  # between two pieces of an answer
    comment_ms: int = 15_000  # a stream that is quiet for this long gets an empty comment
    idle_margin_ms: int = 1_000  # a connection is closed this long before the engine would
    idle_connections: int = 64  # kept an endpoint
    engine_idle_ms: int = 60_000  # kept at most, also where the engine never closes
    event_bytes: int = 4 * 1024 * 1024  # one event of a stream
    answer_bytes: int = 128 * 1024 * 1024  # one plain answer, or one put together from a stream
    retries: int = 1  # on another endpoint, before the first byte
    # --- admission
    completion_estimate: int = 256  # tokens of an answer, where the request names no maximum
    prefixes: int = 65_536  # remembered a deployment
    # --- usage and the control plane
    journal_segment_bytes: int = 256 * 1024
    journal_batches: int = 1024  # kept while the control plane is away
    usage_every_ms: int = 1_000  # how often usage is reported while there is some
    poll_ms: int = 10_000  # how long the control plane may hold a call
    sync_backoff_ms: int = 500  # after a failed call, doubled up to sync_backoff_most_ms
    sync_backoff_most_ms: int = 5_000
    demand_every_ms: int = 250  # between two reports of changed demand
    # --- the process
    tick_ms: int = 100
    drain_ms: int = 30_000  # after SIGTERM, for requests under way
