-- select_turns.sql: every model call of the kept rollouts, its facts, and the first turn rule that removes it, as
-- `turns`. Its text is not here: select_calls.sql.
--
-- Reads the views of duck.attach and the table `kept` (position, source, session_id).
-- Parameters; NULL or false turns a rule off:
--   $min_reward DOUBLE (of the turn, inclusive), $unlock_within INTEGER (turns before one that unlocks),
--   $drop_parse_failures, $drop_noops, $drop_loops BOOLEAN, $max_per_achievement INTEGER
-- Gives: number (from 0, the order of the dataset), position, event_id, turn, model, provider, reward, unlocked, goal,
--   parse_failure, removed_by (NULL: kept). Ordered by position, turn, event_id.
-- A new rule: a WHEN line at its place in the funnel, a field in TurnRules, a row in the test.
CREATE OR REPLACE TEMP TABLE turns AS
WITH steps AS (
    SELECT k.position, t.id AS timestep_id, TRY_CAST(coalesce(t.turn_number, t.step_index) AS BIGINT) AS turn
    FROM session_timesteps t
    JOIN kept k USING (source, session_id)
),
calls AS (
    SELECT
        k.position,
        k.source,
        e.timestep_id,
        TRY_CAST(e.id AS BIGINT) AS event_id,
        coalesce(s.turn, TRY_CAST(json_text(e.metadata, '$.turn') AS BIGINT)) AS turn,
        nullif(e.model_name, '') AS model,
        nullif(e.provider, '') AS provider,
        CASE WHEN contains(e.metadata, '"parse_failure"') THEN json_text(e.metadata, '$.parse_failure') END
            AS parse_failure
    FROM events e
    JOIN kept k USING (source, session_id)
    LEFT JOIN steps s ON (s.position, s.timestep_id) = (k.position, e.timestep_id)
    WHERE e.event_type = 'cais'
),
happened AS (  -- what the environment made of turns; DuckDB does not read the columns of rules that are off
    SELECT
        k.position,
        TRY_CAST(e.id AS BIGINT) AS event_id,
        coalesce(s.turn, TRY_CAST(json_text(e.metadata, '$.turn') AS BIGINT)) AS turn,
        number(e.reward) AS reward,
        CASE WHEN contains(e.metadata, '"unlocked"') THEN json_names(e.metadata, '$.unlocked') END AS unlocked,
        CASE WHEN $drop_noops::BOOLEAN OR $drop_loops::BOOLEAN THEN json_names(e.metadata, '$.actions') END AS actions,
        CASE WHEN $drop_loops::BOOLEAN THEN state_key(e.system_state_before) END AS state
    FROM events e
    JOIN kept k USING (source, session_id)
    LEFT JOIN steps s ON (s.position, s.timestep_id) = (k.position, e.timestep_id)
    WHERE e.event_type = 'environment'
),
summed AS (  -- several of one turn are summed as decimals: so the sum is the same in any order
    SELECT
        position,
        turn,
        min(event_id) AS event_id,
        CASE WHEN count(reward) > 1 THEN sum(TRY_CAST(reward AS DECIMAL(38, 12)))::DOUBLE ELSE any_value(reward) END AS reward
    FROM happened
    GROUP BY position, turn
),
acted AS (
    SELECT s.position, s.turn, s.reward, h.unlocked, h.actions, h.state
    FROM summed s
    JOIN happened h USING (position, event_id)
),
rewarded AS (  -- deltas of other writers may repeat themselves; the unique ones are believed where there are some
    SELECT k.position, TRY_CAST(r.turn_number AS BIGINT) AS turn, TRY_CAST(r.id AS BIGINT) AS id, r.annotation
    FROM event_rewards r
    JOIN kept k USING (source, session_id)
    WHERE r.reward_type IN ('achievement_delta', 'unique_achievement_delta')
        AND r.annotation <> '{"achievements":[]}'
    QUALIFY r.reward_type = max(r.reward_type) OVER (PARTITION BY k.position)
),
named AS (
    SELECT position, turn, arg_min(achievements_in(annotation), id) AS unlocked FROM rewarded GROUP BY position, turn
),
silent AS (  -- calls whose environment does not say what was done: the answer does
    SELECT c.position, c.source, c.event_id, c.timestep_id
    FROM calls c
    LEFT JOIN acted h USING (position, turn)
    WHERE ($drop_noops::BOOLEAN OR $drop_loops::BOOLEAN) AND h.actions IS NULL
),
messaged AS (
    SELECT
        s.position,
        s.event_id,
        arg_min(nullif(message_actions(m.content), []), TRY_CAST(m.id AS BIGINT)) AS actions
    FROM silent s
    JOIN kept k USING (position)
    JOIN messages m ON (m.source, m.session_id, m.timestep_id) = (k.source, k.session_id, s.timestep_id)
    WHERE m.message_type = 'assistant'
    GROUP BY s.position, s.event_id
),
answered AS (
    SELECT s.position, s.event_id, nullif(record_actions(e.call_records), []) AS actions
    FROM silent s
    JOIN events e ON (e.source, TRY_CAST(e.id AS BIGINT)) = (s.source, s.event_id)
),
facts AS (
    SELECT
        c.position, c.event_id, c.turn, c.model, c.provider, c.parse_failure,
        coalesce(h.reward, 0) AS reward,
        coalesce(nullif(n.unlocked, []), h.unlocked, []) AS unlocked,
        coalesce(h.actions, m.actions, a.actions) AS actions,
        h.state,
        row_number() OVER (ORDER BY c.position, c.turn, c.event_id) - 1 AS number
    FROM calls c
    LEFT JOIN acted h USING (position, turn)
    LEFT JOIN named n USING (position, turn)
    LEFT JOIN messaged m USING (position, event_id)
    LEFT JOIN answered a USING (position, event_id)
),
looped AS (
    SELECT number
    FROM facts
    WHERE $drop_loops::BOOLEAN AND state IS NOT NULL AND actions IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY position, state, actions ORDER BY number) > 1
),
unlocks AS (
    SELECT position, number, unlocked[1] AS goal FROM facts WHERE len(unlocked) > 0
),
judged AS (
    SELECT
        f.*,
        u.goal,
        CASE
            WHEN f.reward < $min_reward::DOUBLE THEN 'turns.min_reward'
            WHEN NOT coalesce(u.number - f.number <= $unlock_within::INTEGER, $unlock_within::INTEGER IS NULL)
                THEN 'turns.unlock_within'
            WHEN $drop_parse_failures::BOOLEAN AND f.parse_failure IS NOT NULL THEN 'turns.drop_parse_failures'
            WHEN $drop_noops::BOOLEAN AND len(list_filter(f.actions, a -> a <> 'noop')) = 0 THEN 'turns.drop_noops'
            WHEN l.number IS NOT NULL THEN 'turns.drop_loops'
        END AS rule
    FROM facts f
    ASOF LEFT JOIN unlocks u ON f.position = u.position AND f.number <= u.number
    LEFT JOIN looped l ON l.number = f.number
),
surplus AS (  -- drawn by a hash, so that early rollouts and turns are not preferred
    SELECT j.number
    FROM judged j
    JOIN kept k USING (position)
    WHERE $max_per_achievement::INTEGER IS NOT NULL AND j.rule IS NULL
    QUALIFY row_number() OVER (PARTITION BY j.goal ORDER BY md5(k.session_id || ':' || j.turn), j.number)
        > $max_per_achievement::INTEGER
)
SELECT
    j.number,
    j.position,
    j.event_id,
    coalesce(j.turn, j.number - min(j.number) OVER (PARTITION BY j.position)) AS turn,
    j.model, j.provider, j.reward, j.unlocked, j.goal, j.parse_failure,
    CASE WHEN s.number IS NOT NULL THEN 'turns.max_per_achievement' ELSE j.rule END AS removed_by
FROM judged j
LEFT JOIN surplus s USING (number)
ORDER BY number
