-- From the environment and not from an argument, which every process list would show.
\getenv app_password TRADING_APP_PASSWORD

CREATE ROLE trading_app LOGIN PASSWORD :'app_password';
REVOKE CONNECT, TEMPORARY ON DATABASE trading FROM PUBLIC;
GRANT CONNECT ON DATABASE trading TO trading_app;
CREATE EXTENSION amcheck;
CREATE EXTENSION pageinspect;

-- As the guide's migrations leave it.
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('20250821_fills');

CREATE TABLE instruments (
    symbol     text PRIMARY KEY,
    tick_size  numeric(12, 6) NOT NULL CHECK (tick_size > 0)
);

CREATE TABLE orders (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The client's own number, by which a request sent twice is one order.
    client_order_id bigint UNIQUE,
    symbol          text NOT NULL REFERENCES instruments,
    side            text NOT NULL CHECK (side IN ('BUY', 'SELL')),
    quantity        numeric(18, 6) NOT NULL CHECK (quantity > 0),
    price           numeric(18, 6) NOT NULL CHECK (price > 0),
    status          text NOT NULL DEFAULT 'NEW'
                    CHECK (status IN ('NEW', 'PARTIALLY_FILLED', 'FILLED', 'CANCELLED')),
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_created_at ON orders (created_at);
CREATE INDEX orders_symbol ON orders (symbol);

CREATE TABLE fills (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id   bigint NOT NULL REFERENCES orders,
    quantity   numeric(18, 6) NOT NULL CHECK (quantity > 0),
    price      numeric(18, 6) NOT NULL CHECK (price > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX fills_order_id ON fills (order_id);
CREATE INDEX fills_created_at ON fills (created_at);

GRANT SELECT ON instruments, alembic_version TO trading_app;
GRANT SELECT, INSERT, UPDATE ON orders, fills TO trading_app;
