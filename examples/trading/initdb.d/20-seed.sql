-- The same rows at every first start, except for their times: the last month, the newest a minute ago.
INSERT INTO instruments
SELECT symbol, 0.01 FROM unnest(ARRAY['AAPL', 'ASML', 'BRK.B', 'MSFT', 'NVDA', 'SAP', 'TSM', 'V']) symbol;

INSERT INTO orders (symbol, side, quantity, price, status, created_at)
SELECT (ARRAY['AAPL', 'ASML', 'BRK.B', 'MSFT', 'NVDA', 'SAP', 'TSM', 'V'])[1 + n % 8],
       (ARRAY['BUY', 'SELL'])[1 + n % 2], 1 + n % 100, 10 + (n * 37 % 50000) / 100.0,
       (ARRAY['FILLED', 'FILLED', 'NEW', 'CANCELLED'])[1 + n % 4],
       now() - interval '1 minute' - (20000 - n) * interval '2 minutes'
FROM generate_series(1, 20000) n;

INSERT INTO fills (order_id, quantity, price, created_at)
SELECT id, quantity, price, created_at + interval '5 seconds' FROM orders WHERE status = 'FILLED';
ANALYZE;
