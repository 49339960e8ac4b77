# shellcheck shell=sh disable=SC2010
# The data directory of a cluster, and another one that takes its place. Behind `prelude.sh`. Each verb can be cut off
# anywhere and run again.
#
#   extract      the base backup in /drctl/base becomes $W/new, beside the data
#   keep-wal     the write-ahead log of the server that has just stopped is kept, too
#   stopped-at   where that log ends, if the plan counts on all of it and the server was stopped cleanly
#   live-wal     the same of one that runs
#   log-used     the copy has replayed it: what it was made of goes
#   switch       the old data out, the new data in
#   switch-back
#   discard      the run's directory goes
#   owner        whose the data is, uid:gid

extract() {
    no_tablespaces "$D"
    owner=$(stat -c %u:%g "$D")
    mkdir -p "$W"; chmod 700 "$D/.drctl" "$W"
    rm -rf "$W/new"
    cp -a /drctl/base "$W/new"
    rm -rf "$W/new/.drctl"
    [ -f "$W/new/PG_VERSION" ] && [ -f "$W/new/global/pg_control" ] && [ -f "$W/new/backup_label" ] ||
        fail "the base backup is not complete: PG_VERSION, global/pg_control or backup_label is missing"
    no_tablespaces "$W/new"
    pg_controldata "$W/new" | awk '/^Bytes per WAL segment/ { print $NF }' > "$W/segment-size"
    rm -rf "$W/base-wal"; mkdir "$W/base-wal"; : > "$W/base-end"
    lsn=$(sed -n 's/.*"End-LSN": "\([0-9A-F]*\/[0-9A-F]*\)".*/\1/p' "$W/new/backup_manifest" 2>/dev/null | tail -n 1)
    if [ -n "$lsn" ]; then
        size=$(cat "$W/segment-size"); low=$((0x${lsn#*/}))
        ls "$W/new/pg_wal" | grep -x '[0-9A-F]\{24\}' | while read -r name; do cp -a "$W/new/pg_wal/$name" "$W/base-wal/"; done
        printf '%08X%08X %d\n' "$((0x${lsn%/*}))" "$((low / size))" "$((low % size))" > "$W/base-end"
    fi
    keep_wal
    # Without this file the server would stop replaying at the end of the backup, silently.
    : > "$W/new/recovery.signal"
    for f in postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf; do
        [ ! -f "$D/$f" ] || cmp -s "$D/$f" "$W/new/$f" || echo "differs $f"
    done
    chown -R "$owner" "$D/.drctl"
    chmod 700 "$W/new"
    echo "bytes $(du -sk "$W/new" | cut -f1)"
}

keep_wal_of_stopped() {
    keep_wal
    # A server that was stopped cleanly knows where its log ends: with a checkpoint that its replay must reach.
    [ -z "$WHOLE" ] || pg_controldata "$D" 2>&1 | awk '
        /does not match/ { damaged = 1 }
        /^Database cluster state: *shut down$/ { down = 1 }
        /^Latest checkpoint location:/ { at = $NF }
        END { if (down && !damaged) print at }' > "$W/stopped-at"
    chown -R "$(stat -c %u:%g "$D")" "$W"
    echo "segments $(ls "$W/wal" | grep -vc history || true)"
}

live_wal() {
    if [ -e "$W/log-used" ]; then echo 'done'; exit 0; fi
    [ -d "$W/new" ] || fail "there is no copy of the base backup in $W"
    keep_wal
    chown -R "$(stat -c %u:%g "$D")" "$W/wal" "$W/restore-wal"
}

log_used() {
    : > "$W/log-used"
    rm -rf "$W/new" "$W/wal" "$W/base-wal"
}

# `global` goes out first and comes in last: without it no server starts on the directory, so that power failing anywhere
# in between leaves old or new or nothing that runs, never a mixture. The markers make it go on where it stopped.
data_out() { # to the directory $1; when all of it is there, $2 says so
    mkdir -p "$1"
    [ ! -e "$D/global" ] || mv "$D/global" "$1/"
    sync
    move "$D" "$1"
    [ ! -e "$D/PG_VERSION" ] || mv "$D/PG_VERSION" "$1/"
    sync
    : > "$2"
    sync
}

data_in() { # from the directory $1
    [ ! -e "$1/PG_VERSION" ] || mv "$1/PG_VERSION" "$D/"
    move "$1" "$D"
    sync
    [ ! -e "$1/global" ] || mv "$1/global" "$D/"
}

switch() {
    [ -d "$W" ] || fail "there is no work directory $W"
    [ ! -e "$W/switched" ] || exit 0
    if [ ! -e "$W/old-complete" ]; then
        [ -f "$W/new/global/pg_control" ] && [ -f "$W/new/PG_VERSION" ] || fail "$W/new is no data directory"
        data_out "$W/old" "$W/old-complete"
    fi
    data_in "$W/new"
    : > "$W/switched"
    sync
}

switch_back() {
    if [ ! -d "$W/old" ]; then
        echo "nothing"
        exit 0
    fi
    if [ -e "$W/old-complete" ] && [ ! -e "$W/new-back" ]; then
        data_out "$W/new" "$W/new-back"
    fi
    data_in "$W/old"
    sync
    # What served until now may hold work that users did since: it is not the undo's to drop.
    [ ! -e "$W/switched" ] || [ ! -d "$W/new" ] || mv "$W/new" "$W-undone"
    rm -f "$W/switched" "$W/old-complete" "$W/new-back"
    rmdir "$W/old"
    sync
}

discard() {
    [ ! -e "$W/old-complete" ] || [ -e "$W/switched" ] || fail "a switch is not finished: resume or undo it first"
    rm -rf "$W"
    rmdir "$D/.drctl" 2>/dev/null || true
}

case $1 in
extract) extract ;;
keep-wal) keep_wal_of_stopped ;;
stopped-at) cat "$W/stopped-at" 2>/dev/null || true ;;
live-wal) live_wal ;;
log-used) log_used ;;
switch) switch ;;
switch-back) switch_back ;;
discard) discard ;;
owner) stat -c %u:%g "$D" ;;
*) fail "there is no verb $1" ;;
esac
