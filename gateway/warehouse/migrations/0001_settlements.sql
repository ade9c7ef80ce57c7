CREATE TABLE {schema}.settlements (
    tenant text NOT NULL,
    turn_id text NOT NULL,
    conversation_id text NOT NULL,
    user_hash text NOT NULL,
    persona text NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    message_id text,
    vendor_key text,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    source text NOT NULL,
    cost_micros bigint,
    currency text,
    duration_s double precision NOT NULL,
    first_token_s double precision,
    ended_at timestamptz NOT NULL,
    exported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, turn_id)
);

-- A tenant's days and months; and those of all tenants, which arrive nearly in the order of their time.
CREATE INDEX settlements_tenant_ended_at ON {schema}.settlements (tenant, ended_at);
CREATE INDEX settlements_ended_at ON {schema}.settlements USING brin (ended_at);

CREATE TABLE {schema}.marks (
    tenant text PRIMARY KEY,
    entry text NOT NULL,
    turn_id text NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE {schema}.unreadable (
    tenant text NOT NULL,
    entry text NOT NULL,
    body bytea NOT NULL,
    why text NOT NULL,
    exported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, entry)
);

COMMENT ON TABLE {schema}.settlements IS 'What each turn cost, once; written by hyperleap-gateway from its ledger';
COMMENT ON COLUMN {schema}.settlements.tenant IS 'Tenant as the gateway''s settings name it';
COMMENT ON COLUMN {schema}.settlements.turn_id IS 'One user message and its answer, or one moderation';
COMMENT ON COLUMN {schema}.settlements.conversation_id IS 'Hyperleap''s id of the conversation';
COMMENT ON COLUMN {schema}.settlements.user_hash IS 'Keyed hash of the user''s id; the same user has the same one';
COMMENT ON COLUMN {schema}.settlements.persona IS 'Alias of the persona in the tenant''s settings';
COMMENT ON COLUMN {schema}.settlements.state IS 'completed, stopped or failed';
COMMENT ON COLUMN {schema}.settlements.reason IS 'Finish reason, stop reason, error code, or moderation';
COMMENT ON COLUMN {schema}.settlements.message_id IS 'Hyperleap''s id of the answer; null if there was none';
COMMENT ON COLUMN {schema}.settlements.vendor_key IS 'Label of the vendor key that the turn went out by';
COMMENT ON COLUMN {schema}.settlements.source IS 'How the tokens are known: reported (by the stream), read_back (from Hyperleap''s copy), estimated';
COMMENT ON COLUMN {schema}.settlements.cost_micros IS 'Cost in millionths of the currency; null if no price was in force';
COMMENT ON COLUMN {schema}.settlements.currency IS 'ISO 4217 code of the cost';
COMMENT ON COLUMN {schema}.settlements.duration_s IS 'Seconds from the turn''s start to its end';
COMMENT ON COLUMN {schema}.settlements.first_token_s IS 'Seconds from the turn''s start to its first text; null if there was none';
COMMENT ON COLUMN {schema}.settlements.ended_at IS 'When the turn ended, by the clock of its worker';
COMMENT ON COLUMN {schema}.settlements.exported_at IS 'When this row was written or last changed, by PostgreSQL''s clock';
COMMENT ON TABLE {schema}.marks IS 'How far each tenant''s ledger has been exported; moves with the rows, in one transaction';
COMMENT ON TABLE {schema}.unreadable IS 'Entries of the ledger that are no settlement, as they were; normally empty';
