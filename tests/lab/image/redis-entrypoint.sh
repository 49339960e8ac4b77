#!/bin/sh
# First process of the lab's Redis: fixes the owner of the data, gives up root, becomes redis-server.
set -e

# Options or a configuration file alone mean redis-server.
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
    set -- redis-server "$@"
fi

if [ "$1" = redis-server ]; then
    if [ "$(id -u)" = 0 ]; then
        find . \! -user redis -exec chown redis '{}' +
        exec gosu redis "$0" "$@"
    fi
    if [ "$(umask)" = 0022 ]; then
        umask 0077
    fi
    # The official binary is compiled with protected mode off; Debian's is not. What the caller says still wins:
    # a later option does, and a configuration file that decides is left alone.
    shift
    config=
    case "${1:-}" in
    '' | -*) ;;
    *)
        config=$1
        shift
        ;;
    esac
    if [ -z "$config" ] || ! grep -qs '^[[:space:]]*protected-mode' "$config"; then
        set -- --protected-mode no "$@"
    fi
    if [ -n "$config" ]; then
        set -- "$config" "$@"
    fi
    set -- redis-server "$@"
fi

exec "$@"
