-- Write settlements and move the marks of their tenants, in one statement and therefore one transaction.
-- $1 … $4: a page each: tenant, the entry that its mark is at (null: it has none), its new entry and turn
-- $5, $6: a settlement each: tenant, JSON
-- Returns how many settlements were written or changed, and the tenants whose marks were where they were said to be.
WITH pages AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS page (tenant, before, entry, turn_id)
), moved AS (
    UPDATE {schema}.marks AS mark SET entry = page.entry, turn_id = page.turn_id, moved_at = now()
    FROM pages AS page WHERE mark.tenant = page.tenant AND mark.entry = page.before
    RETURNING mark.tenant
), begun AS (
    INSERT INTO {schema}.marks (tenant, entry, turn_id)
    SELECT tenant, entry, turn_id FROM pages WHERE before IS NULL ORDER BY tenant
    ON CONFLICT (tenant) DO NOTHING
    RETURNING tenant
), ours AS (
    SELECT tenant FROM moved UNION ALL SELECT tenant FROM begun
), written AS (
    INSERT INTO {schema}.settlements AS kept (
        tenant, turn_id, conversation_id, user_hash, persona, state, reason, message_id, vendor_key, prompt_tokens,
        completion_tokens, total_tokens, source, cost_micros, currency, duration_s, first_token_s, ended_at
    )
    SELECT DISTINCT ON (line.tenant, new.turn_id)  -- an upsert cannot touch a row twice
        line.tenant, new.turn_id, new.conversation_id, new.owner, new.persona, new.state, new.reason, new.message_id,
        new.vendor_key, new.prompt_tokens, new.completion_tokens, new.total_tokens, new.source, new.cost_micros,
        new.currency, new.duration_s, new.first_token_s, new.ended_at
    FROM unnest($5::text[], $6::text[]) WITH ORDINALITY AS line (tenant, body, number)
    JOIN ours ON ours.tenant = line.tenant
    CROSS JOIN LATERAL jsonb_to_record(line.body::jsonb) AS new (
        turn_id text, conversation_id text, owner text, persona text, state text, reason text, message_id text,
        vendor_key text, prompt_tokens bigint, completion_tokens bigint, total_tokens bigint, source text,
        cost_micros bigint, currency text, duration_s double precision, first_token_s double precision,
        ended_at timestamptz
    )
    ORDER BY line.tenant, new.turn_id, line.number DESC
    ON CONFLICT (tenant, turn_id) DO UPDATE SET
        conversation_id = excluded.conversation_id, user_hash = excluded.user_hash, persona = excluded.persona,
        state = excluded.state, reason = excluded.reason, message_id = excluded.message_id,
        vendor_key = excluded.vendor_key, prompt_tokens = excluded.prompt_tokens,
        completion_tokens = excluded.completion_tokens, total_tokens = excluded.total_tokens, source = excluded.source,
        cost_micros = excluded.cost_micros, currency = excluded.currency, duration_s = excluded.duration_s,
        first_token_s = excluded.first_token_s, ended_at = excluded.ended_at, exported_at = now()
    WHERE (kept.source <> 'reported' OR excluded.source = 'reported')
      AND (
        kept.conversation_id, kept.user_hash, kept.persona, kept.state, kept.reason, kept.message_id, kept.vendor_key,
        kept.prompt_tokens, kept.completion_tokens, kept.total_tokens, kept.source, kept.cost_micros, kept.currency,
        kept.duration_s, kept.first_token_s, kept.ended_at
      ) IS DISTINCT FROM (
        excluded.conversation_id, excluded.user_hash, excluded.persona, excluded.state, excluded.reason,
        excluded.message_id, excluded.vendor_key, excluded.prompt_tokens, excluded.completion_tokens,
        excluded.total_tokens, excluded.source, excluded.cost_micros, excluded.currency, excluded.duration_s,
        excluded.first_token_s, excluded.ended_at
      )
    RETURNING 1
)
SELECT (SELECT count(*) FROM written) AS written, ARRAY(SELECT tenant FROM ours) AS ours
