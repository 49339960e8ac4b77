#!/bin/sh
# mmdebstrap hook, run on the host with the new root directory: everything that the service images share or that
# is in the way of none of them. The images themselves only add settings, because each layer costs the
# engine many seconds over a tree of this size.
set -eu
rootdir=$1
here=$(dirname -- "$0")

# The official image's default locale. The archive that `localedef` writes is all that is needed of package `locales`.
chroot "$rootdir" localedef -i en_US -c -f UTF-8 en_US.UTF-8

major=$(ls "$rootdir/usr/lib/postgresql")
redis=$(chroot "$rootdir" redis-server --version | sed -n 's/.* v=\([0-9]*\).*/\1/p')
nginx=$(chroot "$rootdir" nginx -v 2>&1 | sed -n 's,.*nginx/\([0-9]*\).*,\1,p')
printf 'postgres=%s\nredis=%s\nnginx=%s\napp=1\n' "$major" "$redis" "$nginx" >"$rootdir/etc/drctl-lab-versions"

# PostgreSQL
install -D -m 755 "$here/postgres-entrypoint.sh" "$rootdir/usr/local/lib/postgres-image/docker-entrypoint.sh"
sample=$rootdir/usr/share/postgresql/$major/postgresql.conf.sample
sed -i "s/^#\?listen_addresses = .*/listen_addresses = '*'/" "$sample"
grep -qxF "listen_addresses = '*'" "$sample"
mkdir -p "$rootdir/docker-entrypoint-initdb.d"
install -d -o 999 -g 999 -m 1777 "$rootdir/var/lib/postgresql" "$rootdir/var/lib/postgresql/data"

# Redis
install -D -m 755 "$here/redis-entrypoint.sh" "$rootdir/usr/local/lib/redis-image/docker-entrypoint.sh"
rm -rf "$rootdir/var/lib/redis" "$rootdir/var/log/redis" "$rootdir/etc/redis"

# nginx
chroot "$rootdir" groupadd --system nginx
chroot "$rootdir" useradd --system --gid nginx --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin nginx
rm -rf "$rootdir/etc/nginx/sites-enabled" "$rootdir/etc/nginx/sites-available" \
    "$rootdir/etc/nginx/modules-enabled" "$rootdir/etc/nginx/conf.d"
install -m 644 "$here/nginx.conf" "$rootdir/etc/nginx/nginx.conf"
install -D -m 644 "$here/nginx-default.conf" "$rootdir/etc/nginx/conf.d/default.conf"

# The demo applications
chroot "$rootdir" useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin app

rm -rf "$rootdir/usr/share/i18n" "$rootdir/var/lib/apt/lists" "$rootdir/var/cache/debconf" \
    "$rootdir/etc/apt/sources.list" "$rootdir/etc/apt/sources.list.d" "$rootdir/etc/apt/apt.conf.d/99mmdebstrap"
find "$rootdir/var/log" -type f -delete
ln -sf /dev/stdout "$rootdir/var/log/nginx/access.log"
ln -sf /dev/stderr "$rootdir/var/log/nginx/error.log"
