# shellcheck shell=sh
# Makes the files of a Redis server loadable that does not run, and puts the old ones back. Each can be cut off anywhere
# and run again. $DIR is the data directory, $RUN the run, $SNAPSHOT and $ENTRY the names of the snapshot and of the
# append-only file in it, $NAME what the files of that are called; $ENTRIES what changes place, one name per line.
#
#   keep                        keeps a copy of the snapshot
#   keep-back                   puts that copy back into its place, also while the server runs: it does not read it
#   mend KIND [LINE …]          manifest, checksum, cut, from-snapshot, empty
#   back                        puts the old files back
#   drop                        removes the run's directory
set -eu
export LC_ALL=C
cd "$DIR"
W=".drctl/$RUN"
fail() { echo "$*" >&2; exit 1; }

# Its owner is the server's user: of what the server has written.
owner() {
    for file in "$SNAPSHOT" "$ENTRY" "$W/old/$SNAPSHOT" "$W/old/$ENTRY" .; do
        [ ! -e "$file" ] || { stat -c %u:%g "$file"; return; }
    done
}

give() { chown -R "$(owner)" "$1" 2>/dev/null || [ "$(id -u)" != 0 ]; }

make_dir() {
    mkdir -p "$W"
    chmod 700 .drctl "$W"
    give .drctl
}

keep() {
    make_dir
    [ ! -e "$W/snapshot" ] || return 0
    [ -f "$SNAPSHOT" ] || fail "there is no $SNAPSHOT in $DIR"
    cp -p "$SNAPSHOT" "$W/snapshot.new"
    sync
    mv "$W/snapshot.new" "$W/snapshot"
}

# Else the only copy of what somebody had put there would go with the run's directory.
keep_back() {
    [ -e "$W/snapshot" ] || return 0
    mkdir -p "$W/undone"
    # By its name only when it is all there: a copy that was cut off is no reason to skip this the next time.
    if [ -e "$SNAPSHOT" ] && [ ! -e "$W/undone/$SNAPSHOT" ]; then
        cp -p "$SNAPSHOT" "$W/undone.new"
        sync
        mv "$W/undone.new" "$W/undone/$SNAPSHOT"
    fi
    sync
    mv "$W/snapshot" "$SNAPSHOT"
    sync
    give "$W"
}

# What its own tool says of the new files decides, not what was done to them.
accepted() {
    file=$1
    [ ! -d "$file" ] || file=$file/$NAME.manifest
    case $2 in
    snapshot) tool=redis-check-rdb ;;
    *) tool=redis-check-aof ;;
    esac
    $tool "$file" </dev/null >"$W/said" 2>&1 || fail "the mended $1 is not accepted: $(tail -n 3 "$W/said" | tr '\n' ' ')"
}

build() {
    kind=$1
    shift
    rm -rf "$W/new"
    mkdir -p "$W/new" "$W/old"
    case $kind in
    manifest)
        cp -a "$ENTRY" "$W/new/"
        printf '%s\n' "$@" >"$W/new/$ENTRY/$NAME.manifest"
        accepted "$W/new/$ENTRY" append
        ;;
    checksum)
        cp -a "$SNAPSHOT" "$W/new/"
        size=$(stat -c %s "$SNAPSHOT")
        dd if=/dev/zero of="$W/new/$SNAPSHOT" bs=1 count=8 seek=$((size - 8)) conv=notrunc 2>/dev/null
        accepted "$W/new/$SNAPSHOT" snapshot
        ;;
    cut)
        cp -a "$ENTRY" "$W/new/"
        file=$W/new/$ENTRY
        [ ! -d "$file" ] || file=$file/$NAME.manifest
        echo y | redis-check-aof --fix "$file" >"$W/said" 2>&1 || fail "redis-check-aof --fix: $(tail -n 3 "$W/said" | tr '\n' ' ')"
        accepted "$W/new/$ENTRY" append
        ;;
    from-snapshot)
        from=$W/snapshot
        [ -f "$from" ] || from=$SNAPSHOT
        if [ -d "$ENTRY" ] || [ "$ENTRY" != "$NAME" ]; then
            mkdir "$W/new/$ENTRY"
            cp -p "$from" "$W/new/$ENTRY/$NAME.1.base.rdb"
            : >"$W/new/$ENTRY/$NAME.1.incr.aof"
            printf 'file %s.1.base.rdb seq 1 type b\nfile %s.1.incr.aof seq 1 type i\n' "$NAME" "$NAME" >"$W/new/$ENTRY/$NAME.manifest"
        else
            cp -p "$from" "$W/new/$ENTRY"
        fi
        accepted "$W/new/$ENTRY" append
        ;;
    empty) ;;
    *) fail "no such kind: $kind" ;;
    esac
    give "$W"
}

mend() {
    make_dir
    [ ! -e "$W/exchanged" ] || return 0
    if [ ! -e "$W/ready" ]; then
        build "$@"
        printf '%s\n' "$ENTRIES" >"$W/entries"
        # What was not there before must not be there after an undo.
        echo "$ENTRIES" | while IFS= read -r entry; do
            [ -e "$entry" ] || : >"$W/absent-$entry"
        done
        sync
        : >"$W/ready"
        sync
    fi
    echo "$ENTRIES" | while IFS= read -r entry; do
        [ ! -e "$entry" ] || [ -e "$W/old/$entry" ] || mv "$entry" "$W/old/"
        [ ! -e "$W/new/$entry" ] || mv "$W/new/$entry" .
    done
    sync
    : >"$W/exchanged"
    give "$W"
    sync
}

back() {
    [ -e "$W/ready" ] || { rm -rf "$W/new"; return 0; }
    mkdir -p "$W/undone"
    while IFS= read -r entry; do
        if [ ! -e "$W/out-$entry" ]; then
            # In place is what came after the old files only where those are out of the way, or there never were any.
            if [ -e "$W/old/$entry" ] || [ -e "$W/exchanged" ] || { [ -e "$W/absent-$entry" ] && [ ! -e "$W/new/$entry" ]; }; then
                [ ! -e "$entry" ] || mv "$entry" "$W/undone/"
            fi
            : >"$W/out-$entry"
            sync
        fi
        [ ! -e "$W/old/$entry" ] || mv "$W/old/$entry" .
    done <"$W/entries"
    sync
    give "$W"
}

verb=$1
shift
case $verb in
keep) keep ;;
keep-back) keep_back ;;
mend) mend "$@" ;;
back) back ;;
drop)
    rm -rf "$W"
    rmdir .drctl 2>/dev/null || true
    ;;
*) fail "no such verb: $verb" ;;
esac
