-- Fills the database to roughly :mib MiB more: half plain accounts, half JSON orders with their GIN index.
-- Made inside the server, where nothing has to be sent.
\set accounts_per_mib 3280
\set orders_per_mib 1400

-- One transaction per table. Whether each survives a crash of the server is of no interest here, its order is.
SET synchronous_commit = off;
SET maintenance_work_mem = '256MB';

INSERT INTO accounts
SELECT start + n, 1 + n % 10, (n * 7919) % 100000, ''
FROM generate_series(1, (:mib * :accounts_per_mib)::bigint) n, (SELECT coalesce(max(id), 0) AS start FROM accounts) s;

-- Without the GIN index first, and the index built afterwards in one go: several times faster than row by row.
-- One transaction, so that nobody finds the table without its index.
BEGIN;
DROP INDEX orders_body;
INSERT INTO orders (customer_id, body, note, amount, created_at)
SELECT 1 + (n * 13) % 2000,
       jsonb_build_object('sku', 'S' || (n * 31) % 9973, 'channel', (ARRAY['web','shop','phone'])[1 + n % 3],
                          'ref', md5(n::text), 'tags', jsonb_build_array('t' || n % 101, 't' || n % 211)),
       CASE WHEN n % 4 = 0 THEN 'loaded order ' || n END, ((n * 37) % 100000) / 100.0,
       now() - interval '1 hour' - (n % 100000) * interval '1 minute'
FROM generate_series(1, (:mib * :orders_per_mib)::bigint) n;
CREATE INDEX orders_body ON orders USING gin (body);
COMMIT;

VACUUM (ANALYZE) accounts, orders;
CHECKPOINT;
SELECT pg_size_pretty(pg_database_size(current_database())) AS database,
       pg_size_pretty(pg_total_relation_size('accounts')) AS accounts,
       pg_size_pretty(pg_total_relation_size('orders')) AS orders;
