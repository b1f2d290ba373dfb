-- stats_models.sql: what the model calls of each model and environment cost.
--
-- Reads the views of duck.attach and the table `rollouts` (stats_rollouts.sql). No parameters.
-- Gives: model, environment, turns, parse_failures, input_tokens, output_tokens, latency_p50, latency_p95
--   (milliseconds, NULL: none recorded). Ordered by environment, model.
SELECT
    r.model,
    r.environment,
    count(*) AS turns,
    count(*) FILTER (
        json_valid(e.metadata) AND json_extract_string(e.metadata, '$.parse_failure') IS NOT NULL
    ) AS parse_failures,
    coalesce(sum(TRY_CAST(e.input_tokens AS BIGINT)), 0) AS input_tokens,
    coalesce(sum(TRY_CAST(e.output_tokens AS BIGINT)), 0) AS output_tokens,
    quantile_cont(TRY_CAST(e.latency_ms AS DOUBLE), 0.5) AS latency_p50,
    quantile_cont(TRY_CAST(e.latency_ms AS DOUBLE), 0.95) AS latency_p95
FROM events e
JOIN rollouts r ON (r.source, r.session_id) = (e.source, e.session_id)
WHERE e.event_type = 'cais'
GROUP BY r.model, r.environment
ORDER BY r.environment, r.model
