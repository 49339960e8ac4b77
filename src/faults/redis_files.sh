# shellcheck shell=sh
# Damages on purpose what a Redis server loads at its start, and puts it right again. The server does not run meanwhile.
# $DIR is the data directory, $SNAPSHOT and $ENTRY the names of its snapshot and of its append-only file (a directory),
# $NAME what the files of that are called, $SAVED where the originals are.
#
#   damage KIND    saves the originals, then damages
#   state          prints `damaged`, or `replaced` where the damaged file is there no more
#   restore        puts the originals back where that says `damaged`; removes what was saved. Not where nothing stands
#                  in their place, unless `restore serving`: the server runs, a recovery has done without them
#
# It makes no difference where a run was killed: `inode` is written last before the damage, and without it nothing was
# damaged; and while the originals are put back, what they replace is kept as `aside`.
set -eu
export LC_ALL=C
cd "$DIR"
fail() { echo "$*" >&2; exit 1; }
# shellcheck disable=SC2046,SC2012
inode() { set -- $(ls -di "$1" 2>/dev/null); echo "${1:-none}"; }

part() {
    for file in "$ENTRY/$NAME".*."$1"; do
        [ -f "$file" ] && { echo "$file"; return; }
    done
    fail "there is no $ENTRY/$NAME.*.$1"
}

# The damage is done in place: the file keeps its inode, whatever the kind.
begin() {
    echo "$kept" >"$SAVED/kept"
    echo "$hit" >"$SAVED/hit"
    inode "$hit" >"$SAVED/inode.new"
    sync
    mv "$SAVED/inode.new" "$SAVED/inode"
    sync
}

damage() {
    mkdir -p "$SAVED"
    chmod 700 "$SAVED"
    case $1 in
    rdb-*) kept=$SNAPSHOT ;;
    *) kept=$ENTRY ;;
    esac
    [ -e "$kept" ] || fail "there is no $kept in $DIR"
    case $1 in
    rdb-checksum | rdb-damaged | rdb-version) hit=$SNAPSHOT ;;
    aof-damaged) hit=$(part incr.aof) ;;
    aof-base | aof-version) hit=$(part base.rdb) ;;
    aof-manifest) hit=$ENTRY/$NAME.manifest ;;
    *) fail "no such kind: $1" ;;
    esac
    [ -f "$hit" ] || fail "there is no $hit in $DIR"
    cp -a "$kept" "$SAVED/original"
    begin
    size=$(stat -c %s "$hit")
    case $1 in
    rdb-checksum) head -c 4 /dev/urandom | dd of="$hit" bs=1 seek=$((size - 6)) conv=notrunc 2>/dev/null ;;
    rdb-damaged | aof-base) dd if=/dev/null of="$hit" bs=1 seek=$((size / 2)) 2>/dev/null ;;
    aof-damaged)
        # In front of commands that are sound: what comes behind it is lost with it.
        printf 'no command\r\n' >>"$hit"
        for n in 1 2 3 4 5; do printf '*3\r\n$3\r\nSET\r\n$6\r\nlost:%d\r\n$1\r\n%d\r\n' "$n" "$n" >>"$hit"; done
        ;;
    # The version is looked at before all else, the checksum last.
    rdb-version | aof-version) printf REDIS0099 | dd of="$hit" conv=notrunc 2>/dev/null ;;
    aof-manifest) printf 'no manifest\n' >"$hit" ;;
    esac
    sync
}

state() {
    if [ ! -e "$SAVED/inode" ]; then
        echo replaced
    elif [ -e "$SAVED/aside" ] || [ "$(inode "$(cat "$SAVED/hit")")" = "$(cat "$SAVED/inode")" ]; then
        # With `aside` a run was killed while it put the originals back.
        echo damaged
    else
        echo replaced
    fi
}

# Removed in the middle, the damaged file would be missing and its original be taken for left over.
put_back() {
    kept=$(cat "$SAVED/kept")
    if [ -e "$SAVED/original" ]; then
        if [ ! -e "$SAVED/aside" ] && [ -e "$kept" ]; then
            mv "$kept" "$SAVED/aside"
            sync
        fi
        [ ! -e "$kept" ] || fail "another $kept stands in $DIR while its original is put back: it stays in $DIR/$SAVED"
        mv "$SAVED/original" "$kept"
        sync
    fi
    [ -e "$kept" ] || fail "there is no $kept in $DIR, and no original of it in $SAVED"
}

case $1 in
damage) damage "$2" ;;
state) state ;;
restore)
    if [ "$(state)" = damaged ]; then
        put_back
    elif [ -e "$SAVED/original" ] && [ -e "$SAVED/kept" ] && [ "${2:-}" != serving ]; then
        kept=$(cat "$SAVED/kept")
        [ -e "$kept" ] || fail "there is no $kept in $DIR: its original stays in $DIR/$SAVED; move it back, or start the server"
    fi
    # First: without it the rest is left over, wherever its removal ends.
    rm -f "$SAVED/inode"
    sync
    rm -rf "$SAVED"
    sync
    ;;
*) fail "unknown action $1" ;;
esac
