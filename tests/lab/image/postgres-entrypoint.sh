#!/usr/bin/env bash
# First process of the lab's PostgreSQL. It keeps the contract of the official image: the same environment
# variables, an empty data directory is initialised, an existing one is left alone, root is given up, and the
# server itself becomes process 1. Anything but `postgres` is executed as it is.
set -Eeuo pipefail

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# from_env_or_file NAME [DEFAULT]: NAME from the environment, or from the file that NAME_FILE names.
from_env_or_file() {
    local name=$1 file_name="${1}_FILE" value=${2:-}
    if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
        fail "both $name and $file_name are set (but are exclusive)"
    fi
    if [ -n "${!name:-}" ]; then
        value=${!name}
    elif [ -n "${!file_name:-}" ]; then
        value=$(<"${!file_name}")
    fi
    export "$name=$value"
    unset "$file_name"
}

read_settings() {
    from_env_or_file POSTGRES_PASSWORD
    from_env_or_file POSTGRES_USER postgres
    from_env_or_file POSTGRES_DB "$POSTGRES_USER"
    from_env_or_file POSTGRES_INITDB_ARGS
    : "${POSTGRES_HOST_AUTH_METHOD:=}"
}

create_directories() {
    mkdir -p "$PGDATA" /var/run/postgresql || :
    # These fail where the directory belongs to another user or is read-only; the server reports it if it matters.
    chmod 00700 "$PGDATA" 2>/dev/null || :
    chmod 03775 /var/run/postgresql 2>/dev/null || :
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        mkdir -p "$POSTGRES_INITDB_WALDIR"
        chmod 700 "$POSTGRES_INITDB_WALDIR" 2>/dev/null || :
    fi
    if [ "$(id -u)" = 0 ]; then
        if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
            find "$POSTGRES_INITDB_WALDIR" \! -user postgres -exec chown postgres '{}' +
        fi
        find "$PGDATA" \! -user postgres -exec chown postgres '{}' +
        find /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
    fi
}

check_settings() {
    if [ -z "$POSTGRES_PASSWORD" ] && [ "$POSTGRES_HOST_AUTH_METHOD" != trust ]; then
        cat >&2 <<-'EOT'
			Error: Database is uninitialized and superuser password is not specified.
			       You must specify POSTGRES_PASSWORD to a non-empty value for the
			       superuser. For example, "-e POSTGRES_PASSWORD=password" on "docker run".
		EOT
        exit 1
    fi
}

init_database_directory() {
    # initdb looks its user up by name; under a number without a name a made-up passwd file answers.
    local wrapped=''
    if ! getent passwd "$(id -u)" >/dev/null; then
        local library
        library=$(find /usr/lib -name libnss_wrapper.so -print -quit)
        [ -n "$library" ] || fail "no user has the uid $(id -u), and libnss_wrapper is not installed"
        NSS_WRAPPER_PASSWD=$(mktemp)
        NSS_WRAPPER_GROUP=$(mktemp)
        export NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP LD_PRELOAD="$library"
        printf 'postgres:x:%s:%s:PostgreSQL:%s:/bin/false\n' "$(id -u)" "$(id -g)" "$PGDATA" >"$NSS_WRAPPER_PASSWD"
        printf 'postgres:x:%s:\n' "$(id -g)" >"$NSS_WRAPPER_GROUP"
        wrapped=1
    fi

    local -a args=()
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        args+=(--waldir "$POSTGRES_INITDB_WALDIR")
    fi
    # initdb refuses a directory that is not empty: data without its PG_VERSION is never initialised over.
    # The arguments are a shell line by contract, hence eval.
    eval 'initdb --username="$POSTGRES_USER" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD") "${args[@]}" '"$POSTGRES_INITDB_ARGS"

    if [ -n "$wrapped" ]; then
        rm -f "$NSS_WRAPPER_PASSWD" "$NSS_WRAPPER_GROUP"
        unset LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
    fi
}

write_hba() {
    local method=$POSTGRES_HOST_AUTH_METHOD
    if [ -z "$method" ]; then
        method=$(postgres -C password_encryption "${@:2}")
    fi
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

start_temporary_server() {
    # Only the socket: nothing may connect over the network before the database is complete.
    NOTIFY_SOCKET='' PGUSER="${PGUSER:-$POSTGRES_USER}" \
        pg_ctl -D "$PGDATA" -o "$(printf '%q ' "${@:2}" -c listen_addresses='' -p "${PGPORT:-5432}")" -w start
}

stop_temporary_server() {
    PGUSER="${PGUSER:-postgres}" pg_ctl -D "$PGDATA" -m fast -w stop
}

# Part of the official contract: a script in docker-entrypoint-initdb.d that is sourced may call it.
docker_process_sql() {
    local -a query=(psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password --no-psqlrc)
    if [ -n "$POSTGRES_DB" ]; then
        query+=(--dbname "$POSTGRES_DB")
    fi
    PGHOST='' PGHOSTADDR='' "${query[@]}" "$@"
}

create_database() {
    local name=$POSTGRES_DB present
    # Connected to the one database that surely exists, not to the one that is asked for.
    local POSTGRES_DB=postgres
    present=$(docker_process_sql --set db="$name" --tuples-only \
        <<<"SELECT 1 FROM pg_database WHERE datname = :'db';")
    if [ -z "$present" ]; then
        docker_process_sql --set db="$name" <<<'CREATE DATABASE :"db";'
    fi
}

run_init_files() {
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh)
            if [ -x "$file" ]; then
                printf '%s: running %s\n' "$0" "$file"
                "$file"
            else
                printf '%s: sourcing %s\n' "$0" "$file"
                # shellcheck disable=SC1090
                . "$file"
            fi
            ;;
        *.sql)
            printf '%s: running %s\n' "$0" "$file"
            docker_process_sql -f "$file"
            ;;
        *.sql.gz)
            printf '%s: running %s\n' "$0" "$file"
            gunzip -c "$file" | docker_process_sql
            ;;
        *.sql.zst)
            printf '%s: running %s\n' "$0" "$file"
            zstd -dc "$file" | docker_process_sql
            ;;
        '/docker-entrypoint-initdb.d/*') ;;
        *) printf '%s: ignoring %s\n' "$0" "$file" ;;
        esac
    done
}

only_wants_help() {
    local arg
    for arg in "$@"; do
        case $arg in
        -\? | --help | --describe-config | -V | --version) return 0 ;;
        esac
    done
    return 1
}

main() {
    if [ "${1:0:1}" = - ]; then
        set -- postgres "$@"
    fi
    if [ "$1" = postgres ] && ! only_wants_help "$@"; then
        read_settings
        create_directories
        if [ "$(id -u)" = 0 ]; then
            exec gosu postgres "${BASH_SOURCE[0]}" "$@"
        fi
        if [ -s "$PGDATA/PG_VERSION" ]; then
            printf '\nPostgreSQL Database directory appears to contain a database; Skipping initialization\n\n'
        else
            check_settings
            init_database_directory
            write_hba "$@"
            export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
            start_temporary_server "$@"
            create_database
            run_init_files
            stop_temporary_server
            unset PGPASSWORD
            printf '\nPostgreSQL init process complete; ready for start up.\n\n'
        fi
    fi
    exec "$@"
}

main "$@"
