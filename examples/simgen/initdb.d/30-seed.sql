-- The same rows at every first start, except for their times: the last month, the newest a minute ago.
INSERT INTO customers (email, name, created_at)
SELECT 'customer' || n || '@example.com',
       (ARRAY['Ada','Grace','Edsger','Barbara','Donald','Frances','Alan','Radia'])[1 + n % 8] || ' ' ||
       (ARRAY['Moreau','Okafor','Lindqvist','Tanaka','Silva','Novak','Haddad'])[1 + n % 7] || ' ' || n,
       now() - interval '60 days' + n * interval '20 minutes'
FROM generate_series(1, 2000) n;

INSERT INTO simulations (customer_id, name, parameters, finished, created_at)
SELECT 1 + n * 7 % 2000, 'simulation ' || n,
       jsonb_build_object('seed', n * 7919 % 100003, 'steps', 100 + n % 900), n % 5 <> 0,
       now() - interval '30 days' + n * interval '10 minutes'
FROM generate_series(1, 3000) n;

INSERT INTO orders (customer_id, simulation_id, body, note, amount, created_at)
SELECT 1 + n * 13 % 2000, CASE WHEN n % 3 = 0 THEN 1 + n % 3000 END,
       jsonb_build_object('sku', 'S' || n * 31 % 997, 'channel', (ARRAY['web','shop','phone'])[1 + n % 3],
                          'tags', jsonb_build_array('t' || n % 11, 't' || n % 17)),
       CASE WHEN n % 4 = 0 THEN 'seed order ' || n END, (n * 37 % 100000) / 100.0,
       now() - interval '1 minute' - (20000 - n) * interval '2 minutes'
FROM generate_series(1, 20000) n;

INSERT INTO order_lines (order_id, line_no, item, quantity)
SELECT o.id, l, 'item ' || (o.id * l) % 499, 1 + (o.id + l) % 5
FROM orders o CROSS JOIN generate_series(1, 2) l;

-- About 8 kB each.
INSERT INTO sketches (customer_id, title, data, created_at)
SELECT 1 + n * 5 % 2000, 'sketch ' || n,
       (SELECT string_agg(md5(n || ':' || part), '') FROM generate_series(1, 250) part),
       now() - interval '10 days' + n * interval '30 minutes'
FROM generate_series(1, 400) n;

INSERT INTO accounts
SELECT n, 1 + n % 10, 0, '' FROM generate_series(1, 10000) n;

SELECT setval('invoice_numbers', 100250);
ANALYZE;
