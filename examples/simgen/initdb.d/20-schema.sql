CREATE EXTENSION amcheck;
CREATE EXTENSION pageinspect;
CREATE EXTENSION pg_stat_statements;
CREATE EXTENSION pg_trgm;

CREATE TABLE customers (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email      text NOT NULL UNIQUE,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX customers_name_trgm ON customers USING gin (name gin_trgm_ops);

CREATE TABLE simulations (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    name        text NOT NULL,
    parameters  jsonb NOT NULL DEFAULT '{}',
    finished    boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX simulations_customer_id ON simulations (customer_id);

CREATE TABLE orders (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The number that the traffic program gave the order: what was acknowledged can be counted afterwards.
    traffic_no    bigint UNIQUE,
    customer_id   bigint NOT NULL REFERENCES customers,
    simulation_id bigint REFERENCES simulations,
    body          jsonb NOT NULL DEFAULT '{}',
    note          text,
    amount        numeric(12, 2) NOT NULL CHECK (amount >= 0),
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_body ON orders USING gin (body);
CREATE INDEX orders_created_at ON orders (created_at);
CREATE INDEX orders_customer_id ON orders (customer_id);

CREATE TABLE order_lines (
    order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    line_no  integer NOT NULL,
    item     text NOT NULL,
    quantity integer NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, line_no)
);

-- Out of line and uncompressed, so that the TOAST table has real pages that can be damaged and repaired.
CREATE TABLE sketches (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    title       text NOT NULL,
    data        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE sketches ALTER COLUMN data SET STORAGE EXTERNAL;

-- Plain rows in number, as pgbench has them: what `lab load` fills.
CREATE TABLE accounts (
    id      bigint PRIMARY KEY,
    branch  integer NOT NULL,
    balance integer NOT NULL,
    filler  character(84) NOT NULL
);

-- Belongs to no column: a dump of tables alone would lose it.
CREATE SEQUENCE invoice_numbers START 100000;

CREATE TABLE order_audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL,
    action   text NOT NULL,
    by_role  text NOT NULL DEFAULT session_user,
    at       timestamptz NOT NULL DEFAULT now()
);

-- As its owner, so that the application can write to the audit only by changing an order.
CREATE FUNCTION audit_order() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    INSERT INTO public.order_audit (order_id, action) VALUES (coalesce(NEW.id, OLD.id), TG_OP);
    RETURN NULL;
END
$$;
CREATE TRIGGER orders_audit AFTER UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION audit_order();

CREATE VIEW customer_totals AS
    SELECT c.id, c.email, count(o.id) AS orders, coalesce(sum(o.amount), 0) AS amount
    FROM customers c LEFT JOIN orders o ON o.customer_id = c.id
    GROUP BY c.id;

GRANT USAGE ON SCHEMA public TO simgen_app, simgen_ro;
GRANT SELECT, INSERT, UPDATE, DELETE ON customers, simulations, orders, order_lines, sketches, accounts TO simgen_app;
GRANT SELECT ON order_audit, customer_totals TO simgen_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO simgen_app;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO simgen_ro;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO simgen_ro;
