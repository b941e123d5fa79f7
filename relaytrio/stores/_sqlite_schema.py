"""The tables of the SQLite store, as a list of steps forwards; and what tells such a file from another.

What a step may do, and what two versions of the software do on one file, is in `_sql_schema.py`. `user_version` in the
file's header counts the steps that it has had; since when software is compatible with it is in the table
`compatibility`. Who calls: `_sqlite_file.py` when a file is opened, `pubsub/sqlite.py` for `CHANGED_SINCE`.
"""

from __future__ import annotations

from ._sql_schema import Step

APPLICATION_ID = 0x52547230
"""In the file's header: "RTr0". A database without it that has tables belongs to another program."""

STEPS: tuple[Step, ...] = (
    Step(
        compatible_since=1,
        statements=(
            # seq is the order of creation; changed, of the last change in the whole store.
            """
            CREATE TABLE chats (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                changed INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                status TEXT NOT NULL,
                worker_id TEXT,
                run_id TEXT,
                snapshot_version INTEGER NOT NULL,
                history_version INTEGER NOT NULL,
                queue_version INTEGER NOT NULL,
                turn_version INTEGER NOT NULL,
                generation_attempt INTEGER NOT NULL,
                retry_state TEXT,
                attempt_failed INTEGER NOT NULL,
                last_error TEXT,
                takeovers INTEGER NOT NULL,
                last_token TEXT,
                last_answer TEXT,
                next_message_id INTEGER NOT NULL,
                next_queued_id INTEGER NOT NULL,
                created_at TEXT NOT NULL,
                updated_at TEXT NOT NULL
            )
            """,
            "CREATE INDEX chats_changed ON chats (changed)",
            # What workers look for every second, in the order in which they take it, without touching the table.
            """
            CREATE INDEX chats_active ON chats (changed, worker_id, status, id)
            WHERE status IN ('running', 'interrupting')
            """,
            "CREATE INDEX chats_owned ON chats (worker_id) WHERE worker_id IS NOT NULL",
            """
            CREATE TABLE messages (
                chat_id TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
                id INTEGER NOT NULL,
                stamp TEXT NOT NULL,
                role TEXT NOT NULL,
                content TEXT NOT NULL,
                version INTEGER NOT NULL,
                deleted INTEGER NOT NULL,
                interrupted INTEGER NOT NULL,
                truncated INTEGER NOT NULL,
                queued_id INTEGER,
                created_at TEXT NOT NULL,
                PRIMARY KEY (chat_id, id)
            )
            """,
            "CREATE INDEX messages_live ON messages (chat_id, id, stamp) WHERE deleted = 0",
            """
            CREATE TABLE queue (
                chat_id TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
                position INTEGER NOT NULL,
                id INTEGER NOT NULL,
                content TEXT NOT NULL,
                urgent INTEGER NOT NULL,
                PRIMARY KEY (chat_id, position)
            )
            """,
            # for_create: the scope is a principal and the key that of a create; otherwise the scope is a chat.
            """
            CREATE TABLE idempotency (
                for_create INTEGER NOT NULL,
                scope TEXT NOT NULL,
                key TEXT NOT NULL,
                request_hash TEXT NOT NULL,
                chat_id TEXT NOT NULL,
                answer TEXT NOT NULL,
                until_seconds REAL NOT NULL,
                PRIMARY KEY (for_create, scope, key)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX idempotency_until ON idempotency (until_seconds)",
            """
            CREATE TABLE replicas (
                id TEXT NOT NULL PRIMARY KEY,
                address TEXT,
                version TEXT NOT NULL,
                heartbeat INTEGER NOT NULL,
                lock TEXT NOT NULL,
                load INTEGER NOT NULL
            )
            """,
            # What was deleted of late: for those who ask what has changed.
            """
            CREATE TABLE deletions (
                changed INTEGER NOT NULL PRIMARY KEY,
                chat_id TEXT NOT NULL,
                snapshot_version INTEGER NOT NULL,
                until_seconds REAL NOT NULL
            )
            """,
            "CREATE INDEX deletions_until ON deletions (until_seconds)",
            # One row: the number of changes of chats that this store has had.
            "CREATE TABLE changes (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL)",
            "INSERT INTO changes (id, last) VALUES (1, 0)",
        ),
    ),
    Step(
        # Software of the first version does not read this table, and refuses whatever is newer than itself.
        compatible_since=2,
        statements=("CREATE TABLE compatibility (id INTEGER PRIMARY KEY CHECK (id = 1), since INTEGER NOT NULL)",),
    ),
)

LAST_CHANGE = "SELECT last FROM changes"

CHANGED_SINCE = """
    SELECT changed, id, snapshot_version, status, worker_id FROM chats WHERE changed > :since
    UNION ALL
    SELECT changed, chat_id, snapshot_version, 'deleted', NULL FROM deletions WHERE changed > :since
    ORDER BY changed LIMIT :limit
"""
"""Each chat once, with its last change."""
