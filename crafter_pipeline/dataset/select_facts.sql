-- select_facts.sql: every rollout of the attached trace databases and its facts, as the table `facts`.
--
-- Reads the views of duck.attach (all columns text, `source` = position of the database). No parameters: a script of
-- several statements, because each is over before the next one needs its memory.
-- Gives one row per rollout: source, session_id, created_at (UTC), seed, environment, model, provider, reward (episode
--   return), achievements, judge_scores, task_split, task_id, tools (JSON text), turns, damaged (its metadata is not
--   readable). Not ordered: select_rollouts.sql does that.

-- This first: a rollout is stored whole, so whatever a server adds meanwhile, the rest of these rollouts is there.
-- The metadata is parsed once: DuckDB keeps what each JSON function has parsed of a whole vector of rows.
CREATE OR REPLACE TEMP TABLE sessions AS
WITH told AS (
    SELECT
        source,
        session_id,
        created_at,
        coalesce(trim(metadata), '') NOT IN ('', 'null') AND as_object(metadata) IS NULL AS damaged,
        json_extract_string(as_object(metadata), [
            '$.seed', '$.env_seed', '$.eval_seed', '$.env_name', '$.model', '$.provider', '$.official_score',
            '$.final_achievements', '$.judge_scores', '$.task_split', '$.task_id', '$.tools'
        ]) AS m
    FROM session_traces
    WHERE session_id IS NOT NULL
)
SELECT
    source,
    session_id,
    moment(created_at) AS created_at,
    damaged,
    coalesce(TRY_CAST(m[1] AS BIGINT), TRY_CAST(m[2] AS BIGINT), TRY_CAST(m[3] AS BIGINT)) AS seed,
    nullif(m[4], '') AS environment,
    nullif(m[5], '') AS model,
    nullif(m[6], '') AS provider,
    number(m[7]) AS official_score,
    coalesce(json_names(m[8], '$'), []) AS achievements,
    json_map(m[9], '$') AS judge_scores,
    nullif(m[10], '') AS task_split,
    nullif(m[11], '') AS task_id,
    m[12] AS tools
FROM told;

-- The model that answered most often, and its provider; ties by name.
CREATE OR REPLACE TEMP TABLE players AS
WITH calls AS (
    SELECT source, session_id, nullif(model_name, '') AS model, nullif(provider, '') AS provider, count(*) AS n
    FROM events
    WHERE event_type = 'cais'
    GROUP BY ALL
),
of_models AS (
    SELECT *, sum(n) OVER (PARTITION BY source, session_id, model) AS of_model FROM calls
)
SELECT source, session_id, model, provider, sum(n) OVER (PARTITION BY source, session_id) AS turns
FROM of_models
QUALIFY row_number() OVER (
    PARTITION BY source, session_id ORDER BY of_model DESC, model NULLS LAST, n DESC, provider NULLS LAST
) = 1;

-- The first outcome counts.
CREATE OR REPLACE TEMP TABLE outcomes AS
SELECT
    source,
    session_id,
    number(arg_min(total_reward, TRY_CAST(id AS BIGINT))) AS reward,
    arg_min(reward_metadata, TRY_CAST(id AS BIGINT)) AS metadata
FROM outcome_rewards
GROUP BY source, session_id;

-- What the environment's events tell, for writers that keep no outcome or no name of the environment. Rewards are
-- summed in order, so that the sum is the same number on any machine.
CREATE OR REPLACE TEMP TABLE episodes AS
SELECT
    source,
    session_id,
    sum(number(reward) ORDER BY TRY_CAST(id AS BIGINT)) AS reward,
    min(CASE WHEN starts_with(system_instance_id, 'environment:')
        THEN nullif(substr(system_instance_id, length('environment:') + 1), '') END) AS environment
FROM events
SEMI JOIN (
    SELECT s.source, s.session_id
    FROM sessions s
    LEFT JOIN outcomes o USING (source, session_id)
    WHERE o.reward IS NULL OR s.environment IS NULL
) USING (source, session_id)
WHERE event_type = 'environment'
GROUP BY source, session_id;

-- Achievements, under all spellings that writers use, wherever they put them.
CREATE OR REPLACE TEMP TABLE named AS
SELECT source, session_id, achievements_in(metadata) AS names FROM outcomes;

INSERT INTO named
SELECT source, session_id, achievements FROM sessions;

INSERT INTO named
SELECT source, session_id, achievements_in(annotation)
FROM event_rewards
WHERE reward_type IN ('achievement_delta', 'unique_achievement_delta') AND annotation <> '{"achievements":[]}';

CREATE OR REPLACE TEMP TABLE achieved AS
SELECT
    source,
    session_id,
    list_sort(list_distinct(list_filter(flatten(list(names)), name -> name IS NOT NULL))) AS achievements
FROM named
WHERE len(names) > 0
GROUP BY source, session_id;

CREATE OR REPLACE TEMP TABLE facts AS
SELECT
    s.source,
    s.session_id,
    s.created_at,
    coalesce(s.seed, TRY_CAST(json_text(o.metadata, '$.env_seed') AS BIGINT)) AS seed,
    coalesce(s.environment, e.environment) AS environment,
    coalesce(p.model, s.model) AS model,
    coalesce(p.provider, s.provider) AS provider,
    coalesce(o.reward, e.reward, s.official_score) AS reward,
    coalesce(a.achievements, []) AS achievements,
    s.judge_scores,
    s.task_split,
    s.task_id,
    s.tools,
    coalesce(p.turns, 0)::BIGINT AS turns,
    s.damaged
FROM sessions s
LEFT JOIN players p USING (source, session_id)
LEFT JOIN outcomes o USING (source, session_id)
LEFT JOIN episodes e USING (source, session_id)
LEFT JOIN achieved a USING (source, session_id);
