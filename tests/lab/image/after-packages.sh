#!/bin/sh
# mmdebstrap hook, run on the host with the new root directory: locale, versions, and what no container needs.
set -eu
rootdir=$1

# The official image's default locale. The index `localedef` leaves is all that is needed of package `locales`.
chroot "$rootdir" localedef -i en_US -c -f UTF-8 en_US.UTF-8

major=$(ls "$rootdir/usr/lib/postgresql")
redis=$(chroot "$rootdir" redis-server --version | sed -n 's/.* v=\([0-9]*\).*/\1/p')
nginx=$(chroot "$rootdir" nginx -v 2>&1 | sed -n 's,.*nginx/\([0-9]*\).*,\1,p')
printf 'postgres=%s\nredis=%s\nnginx=%s\napp=1\n' "$major" "$redis" "$nginx" >"$rootdir/etc/drctl-lab-versions"

rm -rf "$rootdir/usr/share/i18n" \
    "$rootdir/var/lib/apt/lists" "$rootdir/var/cache/debconf" "$rootdir/var/log"/*.log \
    "$rootdir/etc/apt/sources.list" "$rootdir/etc/apt/sources.list.d" "$rootdir/etc/apt/apt.conf.d/99mmdebstrap"
