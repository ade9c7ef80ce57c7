-- The privileges that the role lacks on the tables of a schema ($1), such as "INSERT on settlements".
SELECT privilege || ' on ' || class.relname AS lacking
FROM (VALUES
    ('settlements', 'SELECT'), ('settlements', 'INSERT'), ('settlements', 'UPDATE'),
    ('marks', 'SELECT'), ('marks', 'INSERT'), ('marks', 'UPDATE'),
    ('unreadable', 'SELECT'), ('unreadable', 'INSERT'),
    ('migrations', 'SELECT')
) AS needed (name, privilege)
JOIN pg_namespace AS space ON space.nspname = $1
JOIN pg_class AS class ON class.relnamespace = space.oid AND class.relname = needed.name
WHERE NOT has_table_privilege(class.oid, privilege)
ORDER BY 1
