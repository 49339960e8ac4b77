-- Fills the database to roughly :mib MiB more: orders and their fills. Made inside the server, where nothing has to
-- be sent.
\set orders_per_mib 3600

-- Whether the rows survive a crash of the server is of no interest here.
SET synchronous_commit = off;

BEGIN;
WITH loaded AS (
    INSERT INTO orders (symbol, side, quantity, price, status, created_at)
    SELECT (ARRAY['AAPL', 'ASML', 'BRK.B', 'MSFT', 'NVDA', 'SAP', 'TSM', 'V'])[1 + n % 8],
           (ARRAY['BUY', 'SELL'])[1 + n % 2], 1 + n % 100, 10 + (n * 37 % 50000) / 100.0, 'FILLED',
           now() - interval '1 hour' - (n % 100000) * interval '1 minute'
    FROM generate_series(1, (:mib * :orders_per_mib)::bigint) n
    RETURNING id, quantity, price, created_at)
INSERT INTO fills (order_id, quantity, price, created_at)
SELECT id, quantity, price, created_at + interval '5 seconds' FROM loaded;
COMMIT;

VACUUM (ANALYZE) orders, fills;
CHECKPOINT;
SELECT pg_size_pretty(pg_database_size(current_database())) AS database;
