-- select_macros.sql: how stored text is read. Damaged or foreign text gives NULL, never an error.

-- The text of a JSON object; NULL for anything else.
CREATE OR REPLACE TEMP MACRO as_object(t) AS
    CASE WHEN starts_with(ltrim(t), '{') AND json_valid(t) THEN t END;

-- A value of a JSON text as text: strings without quotes, numbers and objects as they are written.
CREATE OR REPLACE TEMP MACRO json_text(t, path) AS
    CASE WHEN json_valid(t) THEN json_extract_string(t, path) END;

-- A finite number.
CREATE OR REPLACE TEMP MACRO number(t) AS
    CASE WHEN isfinite(TRY_CAST(t AS DOUBLE)) THEN TRY_CAST(t AS DOUBLE) END;

-- A list of names, from a JSON list at `path`.
CREATE OR REPLACE TEMP MACRO json_names(t, path) AS
    CASE WHEN json_valid(t) THEN TRY_CAST(json_extract(t, path) AS VARCHAR[]) END;

-- Name -> value, both text, from a JSON object at `path`.
CREATE OR REPLACE TEMP MACRO json_map(t, path) AS
    CASE WHEN json_valid(t) THEN TRY_CAST(json_extract(t, path) AS MAP(VARCHAR, VARCHAR)) END;

-- Achievements that a reward's annotation names, under any of the spellings that writers use, each once, in order.
CREATE OR REPLACE TEMP MACRO once_each(names) AS
    list_filter(names, (name, i) -> list_position(names, name) = i);
CREATE OR REPLACE TEMP MACRO achievements_in(t) AS
    once_each(
        coalesce(json_names(t, '$.achievements'), [])
        || coalesce(json_names(t, '$.new_unique'), [])
        || coalesce(json_names(t, '$.turned_true'), [])
        || coalesce(json_names(t, '$.final_achievements'), [])
    );

-- A stored time as TIMESTAMP in UTC: ISO 8601 (naive: UTC), the repr of a Python datetime, or Unix seconds.
-- TIMESTAMPTZ needs DuckDB's ICU extension, so the zone is taken off by hand.
CREATE OR REPLACE TEMP MACRO zone(t) AS
    regexp_extract(t, ':[\d.]+\s*([+-])(\d\d):?(\d\d)\s*$', ['sign', 'hours', 'minutes']);
CREATE OR REPLACE TEMP MACRO zone_minutes(z) AS
    coalesce(TRY_CAST(z.sign || z.hours AS INTEGER) * 60 + TRY_CAST(z.sign || z.minutes AS INTEGER), 0);
CREATE OR REPLACE TEMP MACRO iso_moment(t) AS
    TRY_CAST(regexp_extract(t, '^\s*(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?)', 1) AS TIMESTAMP)
    - to_minutes(zone_minutes(zone(t)));
CREATE OR REPLACE TEMP MACRO repr_numbers(t) AS
    CASE WHEN starts_with(t, 'datetime.datetime(')
        THEN list_transform(regexp_extract_all(split_part(t, 'tzinfo', 1), '\d+'), n -> TRY_CAST(n AS BIGINT)) END;
CREATE OR REPLACE TEMP MACRO repr_moment(n) AS
    TRY(make_timestamp(
        n[1], n[2], n[3], coalesce(n[4], 0), coalesce(n[5], 0), coalesce(n[6], 0) + coalesce(n[7], 0) / 1e6
    ));
CREATE OR REPLACE TEMP MACRO moment(t) AS
    coalesce(
        iso_moment(t),
        repr_moment(repr_numbers(t)),
        TRY(make_timestamp(TRY_CAST(TRY_CAST(t AS DOUBLE) * 1e6 AS BIGINT)))
    );

-- The observation of a `system_state_before`, as a number; NULL: none was stored. Counters of steps, which open a line
-- in all styles of ours and of the original, are no part of the state.
CREATE OR REPLACE TEMP MACRO observation(t) AS
    nullif(trim(coalesce(json_text(as_object(t), '$.text'), t)), '');
CREATE OR REPLACE TEMP MACRO state_key(t) AS
    CASE WHEN observation(t) IS NOT NULL
        THEN hash(regexp_replace(observation(t), '(?mi)^(step:? \d+( of \d+|/\d+)?|t\d+/\d+)', '')) END;

-- What a policy did, from the JSON of a tool call's arguments; an empty list: nothing that can be read.
CREATE OR REPLACE TEMP MACRO arguments_actions(t) AS
    CASE
        WHEN NOT coalesce(json_valid(t), false) THEN []
        WHEN json_type(t, '$.actions') = 'ARRAY' THEN coalesce(json_names(t, '$.actions'), [])
        WHEN json_type(t, '$.actions') = 'VARCHAR' THEN [json_extract_string(t, '$.actions')]
        WHEN json_type(t, '$.action') = 'VARCHAR' THEN [json_extract_string(t, '$.action')]
        ELSE []
    END;

-- The same of every call in the content of an assistant's message.
CREATE OR REPLACE TEMP MACRO message_actions(t) AS
    CASE WHEN json_valid(t) THEN flatten(list_transform(
        json_extract_string(t, '$[*].arguments')::VARCHAR[], a -> arguments_actions(a)
    )) END;

-- The same of every tool call in a call record, which is too long to be parsed for this.
CREATE OR REPLACE TEMP MACRO record_actions(t) AS
    flatten(list_transform(
        regexp_extract_all(t, '"arguments_json"\s*:\s*("(?:[^"\\]|\\.)*")', 1),
        a -> arguments_actions(json_text(a, '$'))
    ));
