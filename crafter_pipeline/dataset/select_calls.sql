-- select_calls.sql: the text of some model calls of one database, by their ids, which SQLite finds by its key.
--
-- Parameters: $database VARCHAR (as it is attached), $ids VARCHAR (JSON list of events.id)
-- Gives: id, call_records (JSON text). Ordered by id.
SELECT TRY_CAST(id AS BIGINT) AS id, call_records
FROM sqlite_query(
    $database,
    'SELECT CAST(e.id AS TEXT) AS id, e.call_records FROM json_each(?) AS j CROSS JOIN events AS e ON e.id = j.value',
    params = row($ids)
)
ORDER BY id
