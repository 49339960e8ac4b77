#!/bin/sh
# nginx looks names up only once, when it reads its configuration. A container that is started again may come back
# with another address, so nginx is told to read it again when an address has changed.
# A name that does not resolve at the moment (a stopped container) keeps its last address.
set -eu

addresses() {
    for name in api1 api2 cv_service; do
        getent ahostsv4 "$name" | awk -v name="$name" '$2 == "STREAM" { print name, $1 }' | sort
    done
}

follow() {
    before=$(addresses)
    while sleep 1; do
        now=$(addresses)
        if [ "$now" != "$before" ] && [ "$(echo "$now" | wc -l)" -ge 3 ]; then
            nginx -s reload && before=$now
        fi
    done
}

follow &
exec nginx -g 'daemon off;'
