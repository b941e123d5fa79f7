CREATE SCHEMA relaytrio;
SET search_path = relaytrio;
CREATE TABLE schema_version (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL,
    compatible_since INTEGER NOT NULL);
CREATE SEQUENCE changes;
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
            );
CREATE INDEX chats_active ON chats (changed) INCLUDE (worker_id, status, id)
            WHERE status IN ('running', 'interrupting');
CREATE INDEX chats_owned ON chats (worker_id) WHERE worker_id IS NOT NULL;
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
            );
CREATE INDEX messages_live ON messages (chat_id, id) INCLUDE (stamp) WHERE NOT deleted;
CREATE TABLE queue (
                chat_id TEXT COLLATE "C" NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
                position BIGINT NOT NULL,
                id BIGINT NOT NULL,
                content TEXT NOT NULL,
                urgent BOOLEAN NOT NULL,
                PRIMARY KEY (chat_id, position)
            );
CREATE TABLE idempotency (
                for_create BOOLEAN NOT NULL,
                scope TEXT COLLATE "C" NOT NULL,
                key TEXT COLLATE "C" NOT NULL,
                request_hash TEXT NOT NULL,
                chat_id TEXT NOT NULL,
                answer TEXT NOT NULL,
                until_seconds DOUBLE PRECISION NOT NULL,
                PRIMARY KEY (for_create, scope, key)
            );
CREATE INDEX idempotency_until ON idempotency (until_seconds);
CREATE TABLE replicas (
                id TEXT COLLATE "C" PRIMARY KEY,
                address TEXT,
                version TEXT NOT NULL,
                heartbeat BIGINT NOT NULL,
                lock TEXT NOT NULL,
                load BIGINT NOT NULL
            );
INSERT INTO "schema_version" ("id", "version", "compatible_since") OVERRIDING SYSTEM VALUE VALUES (1, 1, 1);
INSERT INTO "chats" ("seq", "changed", "id", "status", "worker_id", "run_id", "snapshot_version", "history_version", "queue_version", "turn_version", "generation_attempt", "retry_state", "attempt_failed", "last_error", "takeovers", "last_token", "last_answer", "next_message_id", "next_queued_id", "created_at", "updated_at") OVERRIDING SYSTEM VALUE VALUES (1, 1, 'idle', 'waiting', NULL, NULL, 1, 0, 0, 0, 0, NULL, false, NULL, 0, NULL, NULL, 1, 1, '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" ("seq", "changed", "id", "status", "worker_id", "run_id", "snapshot_version", "history_version", "queue_version", "turn_version", "generation_attempt", "retry_state", "attempt_failed", "last_error", "takeovers", "last_token", "last_answer", "next_message_id", "next_queued_id", "created_at", "updated_at") OVERRIDING SYSTEM VALUE VALUES (2, 2, 'asked', 'running', NULL, NULL, 1, 1, 0, 1, 0, NULL, false, NULL, 0, NULL, NULL, 3, 1, '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" ("seq", "changed", "id", "status", "worker_id", "run_id", "snapshot_version", "history_version", "queue_version", "turn_version", "generation_attempt", "retry_state", "attempt_failed", "last_error", "takeovers", "last_token", "last_answer", "next_message_id", "next_queued_id", "created_at", "updated_at") OVERRIDING SYSTEM VALUE VALUES (3, 10, 'answered', 'running', NULL, NULL, 4, 4, 0, 4, 0, NULL, false, NULL, 0, 't', '{"at":"2026-01-02T03:04:05.000006Z","done":"ok","generation_attempt":0,"history_version":3,"messages":[{"id":3,"stamp":"gec1e"}],"queued_id":null,"run_goes_on":false,"snapshot_version":3,"status":"waiting","takeovers":0}', 5, 1, '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" ("seq", "changed", "id", "status", "worker_id", "run_id", "snapshot_version", "history_version", "queue_version", "turn_version", "generation_attempt", "retry_state", "attempt_failed", "last_error", "takeovers", "last_token", "last_answer", "next_message_id", "next_queued_id", "created_at", "updated_at") OVERRIDING SYSTEM VALUE VALUES (4, 15, 'busy', 'interrupting', 'w', 'run of busy', 7, 1, 7, 1, 1, NULL, true, NULL, 0, 't', '{"at":"2026-01-02T03:04:05.000006Z","done":"ok","generation_attempt":1,"history_version":1,"messages":[],"queued_id":null,"run_goes_on":true,"snapshot_version":3,"status":"running","takeovers":0}', 3, 4, '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" ("seq", "changed", "id", "status", "worker_id", "run_id", "snapshot_version", "history_version", "queue_version", "turn_version", "generation_attempt", "retry_state", "attempt_failed", "last_error", "takeovers", "last_token", "last_answer", "next_message_id", "next_queued_id", "created_at", "updated_at") OVERRIDING SYSTEM VALUE VALUES (5, 16, 'failed', 'error', NULL, NULL, 3, 3, 0, 1, 0, NULL, false, '{"kind":"responder_failed","message":"it broke"}', 0, 't', '{"at":"2026-01-02T03:04:05.000006Z","done":"ok","generation_attempt":0,"history_version":3,"messages":[{"id":3,"stamp":"rddmj"}],"queued_id":null,"run_goes_on":false,"snapshot_version":3,"status":"error","takeovers":0}', 4, 1, '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('answered', 1, '9b4kf', 'user', '[{"type":"text","text":"one"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('answered', 2, 'el3gu', 'user',  E'[{"type":"text","text":"two \\u0000 ''é'' 🦄"}]', 1, true, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('answered', 3, 'gec1e', 'assistant', '[{"type":"text","text":"three"}]', 3, true, false, true, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('answered', 4, 't535k', 'user', '[{"type":"text","text":"deux"}]', 4, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('asked', 1, 'ncsbp', 'user', '[{"type":"text","text":"one"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('asked', 2, 'cdp3e', 'user',  E'[{"type":"text","text":"two \\u0000 ''é'' 🦄"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('busy', 1, 'hyplv', 'user', '[{"type":"text","text":"one"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('busy', 2, 'qk2zi', 'user',  E'[{"type":"text","text":"two \\u0000 ''é'' 🦄"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('failed', 1, '9ep1f', 'user', '[{"type":"text","text":"one"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('failed', 2, 'rby1u', 'user',  E'[{"type":"text","text":"two \\u0000 ''é'' 🦄"}]', 1, false, false, false, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" ("chat_id", "id", "stamp", "role", "content", "version", "deleted", "interrupted", "truncated", "queued_id", "created_at") OVERRIDING SYSTEM VALUE VALUES ('failed', 3, 'rddmj', 'assistant', '[{"type":"text","text":"three"}]', 3, false, true, true, NULL, '2026-01-02T03:04:05.000006Z');
INSERT INTO "queue" ("chat_id", "position", "id", "content", "urgent") OVERRIDING SYSTEM VALUE VALUES ('busy', 0, 3, '[{"type":"text","text":"urgent"}]', true);
INSERT INTO "queue" ("chat_id", "position", "id", "content", "urgent") OVERRIDING SYSTEM VALUE VALUES ('busy', 1, 1, '[{"type":"text","text":"queued"}]', false);
INSERT INTO "idempotency" ("for_create", "scope", "key", "request_hash", "chat_id", "answer", "until_seconds") OVERRIDING SYSTEM VALUE VALUES (false, 'busy', 'k', 'h', 'busy', '{"at":"2026-01-02T03:04:05.000006Z","done":"queued","generation_attempt":1,"history_version":1,"messages":[],"queued_id":1,"run_goes_on":false,"snapshot_version":4,"status":"running","takeovers":0}', 1767409445.000006);
INSERT INTO "idempotency" ("for_create", "scope", "key", "request_hash", "chat_id", "answer", "until_seconds") OVERRIDING SYSTEM VALUE VALUES (true, 'ann', 'k', 'h', 'gone', '{"at":"2026-01-02T03:04:05.000006Z","done":"created","generation_attempt":0,"history_version":1,"messages":[{"id":1,"stamp":"ftat9"}],"queued_id":null,"run_goes_on":false,"snapshot_version":1,"status":"running","takeovers":0}', 1767409445.000006);
INSERT INTO "replicas" ("id", "address", "version", "heartbeat", "lock", "load") OVERRIDING SYSTEM VALUE VALUES ('other', 'http://10.0.0.5:8001', '1', 0, 'advisory:1795622114952089', 3);
SELECT setval('changes', 17);
SELECT setval('chats_seq_seq', 6);
