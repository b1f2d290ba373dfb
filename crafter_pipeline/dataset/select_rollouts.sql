-- select_rollouts.sql: every rollout of the attached trace databases, its facts, and the first rule that removes it.
--
-- Reads the views of duck.attach (all columns text, `source` = position of the database).
-- Parameters; NULL turns a rule off:
--   $model VARCHAR, $environment VARCHAR, $min_reward DOUBLE, $max_reward DOUBLE (episode return, inclusive),
--   $min_achievements INTEGER, $require_achievements VARCHAR[], $max_rollouts INTEGER (best return first)
-- Gives: source, session_id, seed, environment, model, provider, reward, achievements, tools, turns, removed_by
--   (NULL: kept). One row per rollout, ordered by seed, session_id, source.
-- A new rule: a WHEN line at its place in the funnel, a field in FilterConfig, a row in the test.
WITH calls AS (
    SELECT source, session_id, model_name, provider, count(*) AS n
    FROM events
    WHERE event_type = 'cais'
    GROUP BY ALL
),
dominant AS (  -- the model that answered most often; ties by name
    SELECT source, session_id, model_name AS model, provider, sum(n) OVER (PARTITION BY source, session_id) AS turns
    FROM calls
    QUALIFY row_number() OVER (PARTITION BY source, session_id ORDER BY n DESC, model_name, provider) = 1
),
outcome AS (
    SELECT source, session_id, TRY_CAST(total_reward AS DOUBLE) AS reward, reward_metadata
    FROM outcome_rewards
    QUALIFY row_number() OVER (PARTITION BY source, session_id ORDER BY TRY_CAST(id AS BIGINT)) = 1
),
unlocked AS (
    SELECT source, session_id, annotation FROM event_rewards WHERE reward_type = 'unique_achievement_delta'
),
names AS (  -- both spellings that writers use, wherever they put them
    SELECT source, session_id, unnest(json_names(reward_metadata, '$.achievements')) AS name FROM outcome
    UNION ALL
    SELECT source, session_id, unnest(json_names(reward_metadata, '$.final_achievements')) FROM outcome
    UNION ALL
    SELECT source, session_id, unnest(json_names(metadata, '$.final_achievements')) FROM session_traces
    UNION ALL
    SELECT source, session_id, unnest(json_names(annotation, '$.achievements')) FROM unlocked
    UNION ALL
    SELECT source, session_id, unnest(json_names(annotation, '$.new_unique')) FROM unlocked
),
achieved AS (
    SELECT source, session_id, list_sort(list(DISTINCT name)) AS achievements FROM names GROUP BY ALL
),
played AS (  -- the return of writers that keep no outcome
    SELECT source, session_id, sum(TRY_CAST(reward AS DOUBLE)) AS reward
    FROM events
    WHERE event_type = 'environment'
    GROUP BY ALL
),
facts AS (
    SELECT
        s.source,
        s.session_id,
        TRY_CAST(coalesce(
            json_text(s.metadata, '$.seed'), json_text(s.metadata, '$.env_seed'),
            json_text(s.metadata, '$.eval_seed'), json_text(o.reward_metadata, '$.env_seed')
        ) AS BIGINT) AS seed,
        json_text(s.metadata, '$.env_name') AS environment,
        coalesce(d.model, json_text(s.metadata, '$.model')) AS model,
        coalesce(d.provider, json_text(s.metadata, '$.provider')) AS provider,
        coalesce(o.reward, p.reward) AS reward,
        coalesce(a.achievements, []) AS achievements,
        json_text(s.metadata, '$.tools') AS tools,
        coalesce(d.turns, 0)::BIGINT AS turns,
        row_number() OVER (PARTITION BY s.session_id ORDER BY s.source) AS copy
    FROM session_traces s
    LEFT JOIN dominant d USING (source, session_id)
    LEFT JOIN outcome o USING (source, session_id)
    LEFT JOIN achieved a USING (source, session_id)
    LEFT JOIN played p USING (source, session_id)
),
judged AS (
    SELECT *, CASE
        WHEN copy > 1 THEN 'stored_twice'
        WHEN turns = 0 THEN 'no_turns'
        WHEN model IS DISTINCT FROM coalesce($model::VARCHAR, model) THEN 'model'
        WHEN environment IS DISTINCT FROM coalesce($environment::VARCHAR, environment) THEN 'environment'
        WHEN $min_reward::DOUBLE IS NOT NULL AND NOT coalesce(reward >= $min_reward, false) THEN 'min_reward'
        WHEN $max_reward::DOUBLE IS NOT NULL AND NOT coalesce(reward <= $max_reward, false) THEN 'max_reward'
        WHEN len(achievements) < coalesce($min_achievements::INTEGER, 0) THEN 'min_achievements'
        WHEN NOT list_has_all(achievements, coalesce($require_achievements::VARCHAR[], [])) THEN 'require_achievements'
    END AS rule
    FROM facts
),
ranked AS (
    SELECT *, row_number() OVER (
        PARTITION BY rule IS NULL ORDER BY reward DESC NULLS LAST, seed NULLS LAST, session_id
    ) AS rank
    FROM judged
)
SELECT
    source, session_id, seed, environment, model, provider, reward, achievements, tools, turns,
    CASE WHEN rule IS NULL AND rank > $max_rollouts::INTEGER THEN 'limit' ELSE rule END AS removed_by
FROM ranked
ORDER BY seed NULLS FIRST, session_id, source
