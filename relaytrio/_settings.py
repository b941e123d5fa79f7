"""Every default of the engine, named, with its reason. Pure: it is read by all rooms and knows none of them."""

from __future__ import annotations

import attrs

MiB = 1024 * 1024
KiB = 1024


@attrs.frozen(kw_only=True)
class Settings:
    """The engine's numbers. Units are in the names; each has the reason for its default below it."""

    # Part logs
    part_log_bytes: int = 16 * MiB
    """Rows kept of one episode; past it the oldest go. Two answers of the largest size, with their framing."""
    part_logs_bytes: int = 256 * MiB
    """Rows kept on one replica. Sealed logs go first."""
    sealed_log_seconds: float = 15.0
    """How long a finished log is kept: long enough for every leg and slow viewer to take its last rows."""
    burst_bytes: int = 64 * KiB
    """The most that one burst or frame carries: large enough to spread the cost of a send, small enough to share."""
    part_bytes: int = 256 * KiB
    """The most that one part may weigh, encoded."""
    answer_bytes: int = 8 * MiB
    """The most that one turn may keep in memory to commit."""

    # Messages
    message_bytes: int = 1 * MiB
    """The most that a client's message may weigh, encoded."""
    queue_entries: int = 20
    """Messages that may wait for a busy chat."""
    page_messages: int = 200
    """Messages that one read of the store gives."""
    page_bytes: int = 4 * MiB
    """Bytes of messages after which a page ends early (it holds at least one)."""

    # Subscriptions
    end_of_episode_seconds: float = 0.2
    """How long the end of an answer waits for the last parts of it."""
    poll_seconds: float = 10.0
    """How often watched chats are compared with the store, whatever the hints say."""
    look_again_seconds: float = 2.0
    """The longest that the relay waits for a fresh read before it dials again."""
    store_read_seconds: float = 10.0
    """A read of the store that takes longer counts as failed: a connection may be dead without anybody saying so."""
    store_retry_seconds: float = 0.5
    """First delay after a failed read; doubles with full jitter to `store_retry_max_seconds`."""
    store_retry_max_seconds: float = 10.0
    listen_retry_max_seconds: float = 2.0
    """The longest delay before a replica tries again to hear the hints of others, from `store_retry_seconds` on. One
    connection of a replica, and all its viewers wait for what they would hear of."""

    # Relay
    dial_retry_seconds: float = 0.5
    """First delay after a failed dial or a lost leg; doubles with full jitter to `dial_retry_max_seconds`."""
    dial_retry_max_seconds: float = 15.0
    connect_seconds: float = 5.0
    handshake_seconds: float = 10.0
    shared_legs: bool = True
    """Whether everything that comes from one peer comes over one connection. Without, each subscription has a
    connection of its own to the peer that it follows: many times the work, and nothing that another can slow down."""
    idle_leg_seconds: float = 5.0
    """How long a leg whose episode has ended waits for the next one."""
    leg_receive_buffer_bytes: int = 256 * KiB
    """The most that is read at once from a peer. With a library's 4 KiB, large frames are three times slower."""
    leg_frame_bytes: int = 4 * MiB
    """The largest frame accepted from a peer."""

    # Worker
    acquire_seconds: float = 1.0
    """How often a worker looks for chats to run, whatever the hints say."""
    yield_seconds: float = 0.002
    """For each of its runs, a worker waits so long before it looks for another chat: one with less to do is first. A
    query and an acquire take about as long."""
    yield_max_seconds: float = 0.05
    """The most that it waits: where all are loaded, a person pays this for nothing."""
    heartbeat_seconds: float = 5.0
    death_look_seconds: float = 0.5
    """How often a worker looks whether others are dead: with `lock_look_seconds`, the most that a sudden death costs
    before somebody goes on, for two small queries at a time."""
    dead_after_seconds: float = 20.0
    """An owner whose counter stands still for so long is dead. Four heartbeats."""
    replica_locks: bool = True
    """Whether each replica holds a lock in the store, by which others see its sudden death at once. Without, the
    heartbeats alone decide: for those who do not trust what is between them and their database."""
    lock_look_seconds: float = 0.25
    """Time between the two looks at a free lock that declare its holder dead."""
    lock_trust_seconds: float = 10.0
    """A store connection must have been held so long before a free lock says anything."""
    outage_seconds: float = 60.0
    """How long a run goes on without the store."""
    unwind_seconds: float = 5.0
    """How long a cancelled responder may take to end."""
    grace_seconds: float = 20.0
    """How long responders may go on when the replica is being stopped."""
    attempts: int = 3
    """Attempts of one run at a turn."""
    retry_seconds: float = 1.0
    """First delay between attempts; doubles with full jitter to `retry_max_seconds`."""
    retry_max_seconds: float = 30.0
    takeovers: int = 3
    """Deaths after which a chat is parked in error."""
    max_runs: int = 1000
    """Chats that one worker runs at once."""

    # Connections
    application_heartbeat_seconds: float = 15.0
    """How often an idle connection carries an empty frame."""
    silence_seconds: float = 45.0
    """A connection that was silent for so long is dead. Three heartbeats."""
    client_frame_bytes: int = 1 * MiB
    """The largest frame or body accepted from a client, beside the message limit."""
    stalled_send_seconds: float = 15.0
    """A peer that has taken nothing for so long is cut."""
    drain_jitter_seconds: float = 2.0
    """Viewers of a stopping replica come back spread over this time."""
    idempotency_hours: float = 24.0
    """How long the answer to an idempotency key is kept."""


DEFAULTS = Settings()
"""What an engine has that is not told otherwise."""
