#!/bin/sh
# mmdebstrap hook, run on the host with the new root directory: what must be there before the packages are.
set -eu
rootdir=$1

# The official image's number. Data that one of the two wrote can then be read by the other.
echo 'postgres:x:999:' >>"$rootdir/etc/group"
echo 'postgres:x:999:999:PostgreSQL administrator:/var/lib/postgresql:/bin/bash' >>"$rootdir/etc/passwd"
echo 'postgres:*:20000:0:99999:7:::' >>"$rootdir/etc/shadow"

# No cluster of Debian's own in the image.
mkdir -p "$rootdir/etc/postgresql-common"
echo 'create_main_cluster = false' >"$rootdir/etc/postgresql-common/createcluster.conf"
