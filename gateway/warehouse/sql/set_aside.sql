-- Keep an entry that is no settlement as it is, and move its tenant's mark past it, so that nothing behind it waits.
-- $1 tenant, $2 the entry that its mark is at (null: it has none), $3 entry, $4 its turn, $5 its bytes, $6 why
-- Returns the tenant, if its mark was where it was said to be.
WITH moved AS (
    UPDATE {schema}.marks SET entry = $3, turn_id = $4, moved_at = now() WHERE tenant = $1 AND entry = $2
    RETURNING tenant
), begun AS (
    INSERT INTO {schema}.marks (tenant, entry, turn_id) SELECT $1::text, $3::text, $4::text WHERE $2::text IS NULL
    ON CONFLICT (tenant) DO NOTHING
    RETURNING tenant
), ours AS (
    SELECT tenant FROM moved UNION ALL SELECT tenant FROM begun
), kept AS (
    INSERT INTO {schema}.unreadable (tenant, entry, body, why) SELECT tenant, $3, $5::bytea, $6 FROM ours
    ON CONFLICT (tenant, entry) DO NOTHING
)
SELECT ARRAY(SELECT tenant FROM ours) AS ours
