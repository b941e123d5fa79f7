"""The tables of the PostgreSQL store, as a list of steps forwards, in a schema of their own.

What a step may do, and what two versions of the software do on one database, is in `_sql_schema.py`. JSON is kept as
text: it is written and read whole, and `jsonb` refuses some of what JSON allows. Ids are compared by their bytes, so
that no update of the system's collations breaks an index. Who calls: `_postgres_migrate.py`.
"""

from __future__ import annotations

from ._sql_schema import Step

STEPS: tuple[Step, ...] = (
    Step(
        compatible_since=1,
        statements=(
            # The number of each change of a chat in the whole store: what has waited longest has the smallest.
            "CREATE SEQUENCE changes",
            # seq is the order of creation; changed, of the last change.
            """
            CREATE TABLE chats (
                seq BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
                changed BIGINT NOT NULL,
                id TEXT COLLATE "C" PRIMARY KEY,
                status TEXT NOT NULL,
                worker_id TEXT COLLATE "C",
                run_id TEXT,
                snapshot_version BIGINT NOT NULL,
                history_version BIGINT NOT NULL,
                queue_version BIGINT NOT NULL,
                turn_version BIGINT NOT NULL,
                generation_attempt BIGINT NOT NULL,
                retry_state TEXT,
                attempt_failed BOOLEAN NOT NULL,
                last_error TEXT,
                takeovers BIGINT NOT NULL,
                last_token TEXT,
                last_answer TEXT,
                next_message_id BIGINT NOT NULL,
                next_queued_id BIGINT NOT NULL,
                created_at TEXT NOT NULL,
                updated_at TEXT NOT NULL
            )
            """,
            # What workers look for every second, in the order in which they take it.
            """
            CREATE INDEX chats_active ON chats (changed) INCLUDE (worker_id, status, id)
            WHERE status IN ('running', 'interrupting')
            """,
            "CREATE INDEX chats_owned ON chats (worker_id) WHERE worker_id IS NOT NULL",
            """
            CREATE TABLE messages (
                chat_id TEXT COLLATE "C" NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
                id BIGINT NOT NULL,
                stamp TEXT NOT NULL,
                role TEXT NOT NULL,
                content TEXT NOT NULL,
                version BIGINT NOT NULL,
                deleted BOOLEAN NOT NULL,
                interrupted BOOLEAN NOT NULL,
                truncated BOOLEAN NOT NULL,
                queued_id BIGINT,
                created_at TEXT NOT NULL,
                PRIMARY KEY (chat_id, id)
            )
            """,
            "CREATE INDEX messages_live ON messages (chat_id, id) INCLUDE (stamp) WHERE NOT deleted",
            """
            CREATE TABLE queue (
                chat_id TEXT COLLATE "C" NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
                position BIGINT NOT NULL,
                id BIGINT NOT NULL,
                content TEXT NOT NULL,
                urgent BOOLEAN NOT NULL,
                PRIMARY KEY (chat_id, position)
            )
            """,
            # for_create: the scope is a principal and the key that of a create; otherwise the scope is a chat.
            """
            CREATE TABLE idempotency (
                for_create BOOLEAN NOT NULL,
                scope TEXT COLLATE "C" NOT NULL,
                key TEXT COLLATE "C" NOT NULL,
                request_hash TEXT NOT NULL,
                chat_id TEXT NOT NULL,
                answer TEXT NOT NULL,
                until_seconds DOUBLE PRECISION NOT NULL,
                PRIMARY KEY (for_create, scope, key)
            )
            """,
            "CREATE INDEX idempotency_until ON idempotency (until_seconds)",
            """
            CREATE TABLE replicas (
                id TEXT COLLATE "C" PRIMARY KEY,
                address TEXT,
                version TEXT NOT NULL,
                heartbeat BIGINT NOT NULL,
                lock TEXT NOT NULL,
                load BIGINT NOT NULL
            )
            """,
        ),
    ),
)
