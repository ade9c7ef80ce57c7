SELECT tenant, entry, turn_id FROM {schema}.marks
