-- select_turns.sql: the model calls of the kept rollouts, in the order of the dataset.
--
-- Reads the views of duck.attach and the table `kept` (source, session_id, position).
-- Parameters: $model VARCHAR (NULL: calls of any model), $min_turn_reward DOUBLE (NULL: every turn)
-- Gives: position, turn, model, provider, reward, unlocked, parse_failure, chosen, call_records (JSON text).
--   Ordered by position, turn, event id.
WITH turn_rewards AS (
    SELECT e.source, e.session_id, e.timestep_id, sum(TRY_CAST(e.reward AS DOUBLE)) AS reward
    FROM events e
    SEMI JOIN kept USING (source, session_id)
    WHERE e.event_type = 'environment'
    GROUP BY ALL
),
unlocked AS (
    SELECT source, session_id, turn_number, first(annotation ORDER BY TRY_CAST(id AS BIGINT)) AS annotation
    FROM event_rewards
    SEMI JOIN kept USING (source, session_id)
    WHERE reward_type = 'unique_achievement_delta'
    GROUP BY ALL
),
turns AS (
    SELECT
        k.position,
        TRY_CAST(coalesce(json_text(e.metadata, '$.turn'), t.turn_number, t.step_index) AS BIGINT) AS turn,
        TRY_CAST(e.id AS BIGINT) AS event_id,
        e.model_name AS model,
        e.provider,
        coalesce(w.reward, 0) AS reward,
        coalesce(json_names(u.annotation, '$.achievements'), json_names(u.annotation, '$.new_unique')) AS unlocked,
        json_text(e.metadata, '$.parse_failure') AS parse_failure,
        e.call_records
    FROM events e
    JOIN kept k USING (source, session_id)
    LEFT JOIN session_timesteps t ON (t.source, t.session_id, t.id) = (e.source, e.session_id, e.timestep_id)
    LEFT JOIN turn_rewards w
        ON (w.source, w.session_id, w.timestep_id) = (e.source, e.session_id, e.timestep_id)
    LEFT JOIN unlocked u
        ON (u.source, u.session_id, u.turn_number) = (e.source, e.session_id, t.turn_number)
    WHERE e.event_type = 'cais'
      AND ($model::VARCHAR IS NULL OR e.model_name = $model::VARCHAR)
)
SELECT
    position, turn, model, provider, reward, unlocked, parse_failure,
    $min_turn_reward::DOUBLE IS NULL OR reward >= $min_turn_reward::DOUBLE AS chosen,
    call_records
FROM turns
ORDER BY position, turn, event_id
