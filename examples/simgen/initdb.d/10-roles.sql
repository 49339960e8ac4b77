-- The roles. `simgen` (the superuser that the image makes) owns everything; the application owns nothing.
-- Passwords come from the environment and not from an argument, which every process list would show.
\getenv app_password SIMGEN_APP_PASSWORD
\getenv ro_password SIMGEN_RO_PASSWORD

CREATE ROLE simgen_app LOGIN PASSWORD :'app_password';
CREATE ROLE simgen_ro LOGIN PASSWORD :'ro_password';
ALTER ROLE simgen_ro SET default_transaction_read_only = on;

-- Kept with the database and not in it: a restore of one database that forgets these is not complete.
COMMENT ON DATABASE simgen IS 'SimGen: customers, simulations and their orders';
ALTER DATABASE simgen SET work_mem = '8MB';
ALTER ROLE simgen_app IN DATABASE simgen SET lock_timeout = '2s';
REVOKE CONNECT, TEMPORARY ON DATABASE simgen FROM PUBLIC;
GRANT CONNECT ON DATABASE simgen TO simgen_app, simgen_ro;
