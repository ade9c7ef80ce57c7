-- Until the end of the transaction nobody else changes this schema.
SELECT pg_advisory_xact_lock(hashtext('hyperleap-gateway'), hashtext($1))
