-- What this database is to the gateway, and what its role may do there. Changes nothing.
SELECT current_setting('server_version') AS version,
       current_setting('transaction_read_only') = 'on' AS read_only,
       pg_is_in_recovery() AS standby,
       current_user::text AS role,
       current_database()::text AS database,
       EXISTS (SELECT FROM pg_namespace WHERE nspname = $1) AS has_schema,
       EXISTS (
           SELECT FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace
           WHERE space.nspname = $1 AND class.relname = 'migrations'
       ) AS has_tables,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
       COALESCE((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1), false) AS may_create,
       COALESCE((SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1), false) AS may_use
