-- stats_rollouts.sql: one row per stored rollout, as the table `rollouts`.
--
-- Reads the views of duck.attach. No parameters.
-- Gives: source, session_id, model (of the metadata, else the one that answered most often), environment, seed, reward
--   (NULL: not recorded), achievements, stop_reason (NULL: the writer did not say). Ordered by source, session_id.
CREATE OR REPLACE TEMP TABLE rollouts AS
WITH heads AS (
    SELECT source, session_id, CASE WHEN json_valid(metadata) THEN metadata ELSE '{}' END AS m
    FROM session_traces
),
calls AS (
    SELECT source, session_id, model_name, count(*) AS calls
    FROM events
    WHERE event_type = 'cais'
    GROUP BY ALL
),
models AS (
    SELECT source, session_id, first(model_name ORDER BY calls DESC, model_name) AS model
    FROM calls
    GROUP BY ALL
),
environments AS (  -- for writers that name it nowhere else
    SELECT source, session_id, min(split_part(system_instance_id, ':', 2)) AS environment
    FROM events
    WHERE event_type = 'environment' AND starts_with(system_instance_id, 'environment:')
    GROUP BY ALL
),
outcomes AS (
    SELECT
        source,
        session_id,
        first(TRY_CAST(total_reward AS DOUBLE) ORDER BY TRY_CAST(id AS BIGINT)) AS reward,
        first(CASE WHEN json_valid(reward_metadata) THEN reward_metadata END ORDER BY TRY_CAST(id AS BIGINT)) AS r
    FROM outcome_rewards
    GROUP BY ALL
)
SELECT
    h.source,
    h.session_id,
    coalesce(nullif(json_extract_string(h.m, '$.model'), ''), d.model, '') AS model,
    coalesce(nullif(json_extract_string(h.m, '$.env_name'), ''), e.environment, '') AS environment,
    TRY_CAST(coalesce(
        json_extract_string(h.m, '$.seed'),
        json_extract_string(h.m, '$.env_seed'),
        json_extract_string(h.m, '$.eval_seed'),
        json_extract_string(o.r, '$.env_seed')
    ) AS BIGINT) AS seed,
    o.reward,
    list_distinct(list_concat(
        coalesce(json_extract_string(h.m, '$.final_achievements[*]'), []),
        coalesce(json_extract_string(o.r, '$.final_achievements[*]'), []),
        coalesce(json_extract_string(o.r, '$.achievements[*]'), [])
    )) AS achievements,
    json_extract_string(h.m, '$.stop_reason') AS stop_reason
FROM heads h
LEFT JOIN models d ON (d.source, d.session_id) = (h.source, h.session_id)
LEFT JOIN environments e ON (e.source, e.session_id) = (h.source, h.session_id)
LEFT JOIN outcomes o ON (o.source, o.session_id) = (h.source, h.session_id)
ORDER BY h.source, h.session_id
