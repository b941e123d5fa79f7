PRAGMA application_id = 1381265968;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE changes (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL);
INSERT INTO "changes" VALUES(1,18);
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
            );
INSERT INTO "chats" VALUES(1,1,'idle','waiting',NULL,NULL,1,0,0,0,0,NULL,0,NULL,0,NULL,NULL,1,1,'2026-01-02T03:04:05.000006Z','2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" VALUES(2,2,'asked','running',NULL,NULL,1,1,0,1,0,NULL,0,NULL,0,NULL,NULL,3,1,'2026-01-02T03:04:05.000006Z','2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" VALUES(3,10,'answered','running',NULL,NULL,4,4,0,4,0,NULL,0,NULL,0,'t','{"at":"2026-01-02T03:04:05.000006Z","done":"ok","generation_attempt":0,"history_version":3,"messages":[{"id":3,"stamp":"gec1e"}],"queued_id":null,"run_goes_on":false,"snapshot_version":3,"status":"waiting","takeovers":0}',5,1,'2026-01-02T03:04:05.000006Z','2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" VALUES(4,15,'busy','interrupting','w','run of busy',7,1,7,1,1,NULL,1,NULL,0,'t','{"at":"2026-01-02T03:04:05.000006Z","done":"ok","generation_attempt":1,"history_version":1,"messages":[],"queued_id":null,"run_goes_on":true,"snapshot_version":3,"status":"running","takeovers":0}',3,4,'2026-01-02T03:04:05.000006Z','2026-01-02T03:04:05.000006Z');
INSERT INTO "chats" VALUES(5,16,'failed','error',NULL,NULL,3,3,0,1,0,NULL,0,'{"kind":"responder_failed","message":"it broke"}',0,'t','{"at":"2026-01-02T03:04:05.000006Z","done":"ok","generation_attempt":0,"history_version":3,"messages":[{"id":3,"stamp":"rddmj"}],"queued_id":null,"run_goes_on":false,"snapshot_version":3,"status":"error","takeovers":0}',4,1,'2026-01-02T03:04:05.000006Z','2026-01-02T03:04:05.000006Z');
CREATE TABLE compatibility (id INTEGER PRIMARY KEY CHECK (id = 1), since INTEGER NOT NULL);
INSERT INTO "compatibility" VALUES(1,2);
CREATE TABLE deletions (
                changed INTEGER NOT NULL PRIMARY KEY,
                chat_id TEXT NOT NULL,
                snapshot_version INTEGER NOT NULL,
                until_seconds REAL NOT NULL
            );
INSERT INTO "deletions" VALUES(18,'gone',2,1.76740944500000596046e+09);
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
            ;
INSERT INTO "idempotency" VALUES(0,'busy','k','h','busy','{"at":"2026-01-02T03:04:05.000006Z","done":"queued","generation_attempt":1,"history_version":1,"messages":[],"queued_id":1,"run_goes_on":false,"snapshot_version":4,"status":"running","takeovers":0}',1.76740944500000596046e+09);
INSERT INTO "idempotency" VALUES(1,'ann','k','h','gone','{"at":"2026-01-02T03:04:05.000006Z","done":"created","generation_attempt":0,"history_version":1,"messages":[{"id":1,"stamp":"ftat9"}],"queued_id":null,"run_goes_on":false,"snapshot_version":1,"status":"running","takeovers":0}',1.76740944500000596046e+09);
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
            );
INSERT INTO "messages" VALUES('asked',1,'ncsbp','user','[{"type":"text","text":"one"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('asked',2,'cdp3e','user','[{"type":"text","text":"two \u0000 ''é'' 🦄"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('answered',1,'9b4kf','user','[{"type":"text","text":"one"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('answered',2,'el3gu','user','[{"type":"text","text":"two \u0000 ''é'' 🦄"}]',1,1,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('busy',1,'hyplv','user','[{"type":"text","text":"one"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('busy',2,'qk2zi','user','[{"type":"text","text":"two \u0000 ''é'' 🦄"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('failed',1,'9ep1f','user','[{"type":"text","text":"one"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('failed',2,'rby1u','user','[{"type":"text","text":"two \u0000 ''é'' 🦄"}]',1,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('answered',3,'gec1e','assistant','[{"type":"text","text":"three"}]',3,1,0,1,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('answered',4,'t535k','user','[{"type":"text","text":"deux"}]',4,0,0,0,NULL,'2026-01-02T03:04:05.000006Z');
INSERT INTO "messages" VALUES('failed',3,'rddmj','assistant','[{"type":"text","text":"three"}]',3,0,1,1,NULL,'2026-01-02T03:04:05.000006Z');
CREATE TABLE queue (
                chat_id TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
                position INTEGER NOT NULL,
                id INTEGER NOT NULL,
                content TEXT NOT NULL,
                urgent INTEGER NOT NULL,
                PRIMARY KEY (chat_id, position)
            );
INSERT INTO "queue" VALUES('busy',0,3,'[{"type":"text","text":"urgent"}]',1);
INSERT INTO "queue" VALUES('busy',1,1,'[{"type":"text","text":"queued"}]',0);
CREATE TABLE replicas (
                id TEXT NOT NULL PRIMARY KEY,
                address TEXT,
                version TEXT NOT NULL,
                heartbeat INTEGER NOT NULL,
                lock TEXT NOT NULL,
                load INTEGER NOT NULL
            );
INSERT INTO "replicas" VALUES('other','http://10.0.0.5:8001','1',0,'flock:7f3f9c31-7609-4ac0-b86d-1a7a50ec75e8',3);
CREATE INDEX chats_changed ON chats (changed);
CREATE INDEX chats_active ON chats (changed, worker_id, status, id)
            WHERE status IN ('running', 'interrupting')
            ;
CREATE INDEX chats_owned ON chats (worker_id) WHERE worker_id IS NOT NULL;
CREATE INDEX messages_live ON messages (chat_id, id, stamp) WHERE deleted = 0;
CREATE INDEX idempotency_until ON idempotency (until_seconds);
CREATE INDEX deletions_until ON deletions (until_seconds);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('chats',6);
COMMIT;
