-- select_rollouts.sql: the first rule that removes each rollout, as the table `rollouts`.
--
-- Reads `facts` (select_facts.sql) and the view event_rewards of duck.attach.
-- Parameters; NULL turns a rule off, bounds are inclusive:
--   $models, $providers, $environments, $splits, $task_ids, $require_achievements, $exclude_achievements VARCHAR[],
--   $min_reward, $max_reward DOUBLE (episode return), $min_unique, $max_unique INTEGER,
--   $event_rewards, $min_judge_scores, $max_judge_scores VARCHAR (JSON, name -> number),
--   $min_created_at, $max_created_at TIMESTAMP (UTC), $shuffle_seed INTEGER (NULL: by time), $offset, $limit INTEGER,
--   $dev_seeds, $gate_seeds, $held_out_seeds BIGINT (where each suite of worlds begins)
-- Gives one row per rollout: its facts, `place` (order of the dataset), removed_by (NULL: kept).
--   Ordered by place: the order drawn if they are shuffled, else seed, session_id, source.
-- A new rule: a WHEN line at its place in the funnel, a field in FilterConfig, a name in selection.SESSION_RULES, a row
-- in the test.
CREATE OR REPLACE TEMP TABLE rollouts AS
WITH asked AS (
    SELECT a.key AS reward_type, a.value AS least
    FROM (SELECT unnest(map_entries($event_rewards::VARCHAR::JSON::MAP(VARCHAR, DOUBLE))) AS a)
),
totals AS (
    SELECT
        source, session_id, reward_type,
        sum(number(reward_value) ORDER BY TRY_CAST(id AS BIGINT)) AS total
    FROM event_rewards
    SEMI JOIN asked USING (reward_type)
    GROUP BY ALL
),
short AS (  -- rollouts below a sum that is asked for; of a type that nobody gives, all
    SELECT DISTINCT f.source, f.session_id
    FROM facts f
    CROSS JOIN asked a
    LEFT JOIN totals t ON (t.source, t.session_id, t.reward_type) = (f.source, f.session_id, a.reward_type)
    WHERE coalesce(t.total, 0) < a.least OR a.reward_type NOT IN (SELECT reward_type FROM totals)
),
types AS (  -- for an error's words alone; where nothing is asked there is nothing to read
    SELECT source, session_id, list(DISTINCT reward_type ORDER BY reward_type) AS reward_types
    FROM event_rewards
    WHERE $event_rewards::VARCHAR IS NOT NULL
    GROUP BY ALL
),
known AS (
    SELECT
        f.* EXCLUDE (task_split, task_id, tools),
        b.session_id IS NOT NULL AS short_of_rewards,
        t.reward_types,
        coalesce(task_split, CASE
            WHEN seed < $dev_seeds::BIGINT THEN 'train'
            WHEN seed < $gate_seeds::BIGINT THEN 'dev'
            WHEN seed < $held_out_seeds::BIGINT THEN 'gate'
            WHEN seed IS NOT NULL THEN 'held_out'
        END) AS split,
        coalesce(task_id, environment) AS task_id,
        len(list_filter(achievements, a -> NOT list_contains(coalesce($exclude_achievements::VARCHAR[], []), a)))
            AS different,
        row_number() OVER (PARTITION BY session_id ORDER BY damaged, turns DESC, source) AS copy,
        $min_judge_scores::VARCHAR::JSON::MAP(VARCHAR, DOUBLE) AS least_scores,
        $max_judge_scores::VARCHAR::JSON::MAP(VARCHAR, DOUBLE) AS most_scores
    FROM facts f
    LEFT JOIN short b USING (source, session_id)
    LEFT JOIN types t USING (source, session_id)
),
judged AS (
    SELECT *, CASE
        WHEN copy > 1 THEN 'stored_twice'
        WHEN turns = 0 THEN 'no_turns'
        WHEN damaged AND seed IS NULL THEN 'damaged'
        WHEN $models::VARCHAR[] IS NOT NULL AND NOT coalesce(list_contains($models::VARCHAR[], model), false)
            THEN 'models'
        WHEN $providers::VARCHAR[] IS NOT NULL AND NOT coalesce(list_contains($providers::VARCHAR[], provider), false)
            THEN 'providers'
        WHEN $environments::VARCHAR[] IS NOT NULL
            AND NOT coalesce(list_contains($environments::VARCHAR[], environment), false) THEN 'environments'
        WHEN $splits::VARCHAR[] IS NOT NULL AND NOT coalesce(list_contains($splits::VARCHAR[], split), false)
            THEN 'splits'
        WHEN $task_ids::VARCHAR[] IS NOT NULL AND NOT coalesce(list_contains($task_ids::VARCHAR[], task_id), false)
            THEN 'task_ids'
        WHEN $min_reward::DOUBLE IS NOT NULL AND NOT coalesce(reward >= $min_reward::DOUBLE, false) THEN 'min_reward'
        WHEN $max_reward::DOUBLE IS NOT NULL AND NOT coalesce(reward <= $max_reward::DOUBLE, false) THEN 'max_reward'
        WHEN different < $min_unique::INTEGER THEN 'min_unique'
        WHEN different > $max_unique::INTEGER THEN 'max_unique'
        WHEN NOT list_has_all(achievements, coalesce($require_achievements::VARCHAR[], [])) THEN 'require_achievements'
        WHEN short_of_rewards THEN 'event_rewards'
        WHEN len(list_filter(
            map_keys(least_scores), n -> NOT coalesce(number(judge_scores[n]) >= least_scores[n], false)
        )) > 0 THEN 'min_judge_scores'
        WHEN len(list_filter(
            map_keys(most_scores), n -> coalesce(number(judge_scores[n]) > most_scores[n], false)
        )) > 0 THEN 'max_judge_scores'
        WHEN $min_created_at::TIMESTAMP IS NOT NULL AND NOT coalesce(created_at >= $min_created_at::TIMESTAMP, false)
            THEN 'min_created_at'
        WHEN $max_created_at::TIMESTAMP IS NOT NULL AND NOT coalesce(created_at <= $max_created_at::TIMESTAMP, false)
            THEN 'max_created_at'
    END AS rule,
    CASE WHEN $shuffle_seed::INTEGER IS NOT NULL THEN md5($shuffle_seed::INTEGER || ':' || session_id) END AS draw
    FROM known
),
queued AS (
    SELECT *, row_number() OVER (
        PARTITION BY rule IS NULL ORDER BY draw, created_at NULLS LAST, session_id, source
    ) AS turn_in_queue
    FROM judged
)
SELECT
    source, session_id, created_at, seed, environment, model, provider, split, task_id, reward, achievements, different,
    judge_scores, reward_types, turns, damaged,
    CASE
        WHEN rule IS NOT NULL THEN rule
        WHEN turn_in_queue <= $offset::BIGINT THEN 'offset'
        WHEN turn_in_queue > $offset::BIGINT + $limit::BIGINT THEN 'limit'
    END AS removed_by,
    row_number() OVER (ORDER BY draw, seed NULLS FIRST, session_id, source) - 1 AS place
FROM queued
ORDER BY place
