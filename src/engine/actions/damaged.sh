# shellcheck shell=sh
# A copy of damaged data, in $W/$TO. Behind `prelude.sh`. Each verb can be cut off anywhere and run again.
#
#   copy     the data directory, whole
#   reset    the copy starts after all, at the price of what its log would have told
#   fill     the transactions of the missing segment $FILE, of $OWNER, count as committed
#   empty    the missing relations $FILES, one per line, of $OWNER, are empty ones
#   drop

copy() {
    owner=$(stat -c %u:%g "$D")
    mkdir -p "$W"; chmod 700 "$D/.drctl" "$W"
    rm -rf "$W/${TO:?}"; mkdir "$W/$TO"
    # The copy is started, mended and reset: what a link in it leads to would be the original.
    [ -z "$(ls -A "$D/pg_tblspc" 2>/dev/null)" ] ||
        fail "the server has tablespaces outside its data directory: a copy would share them with the original"
    entries "$D" | while read -r e; do
        case "$e" in pg_wal) ;; *) cp -a "$D/$e" "$W/$TO/" ;; esac
    done
    # A directory elsewhere when the cluster was made with --waldir (POSTGRES_INITDB_WALDIR of the official image).
    if [ -d "$D/pg_wal" ]; then
        mkdir "$W/$TO/pg_wal"; chmod 700 "$W/$TO/pg_wal"
        cp -a "$D/pg_wal/." "$W/$TO/pg_wal/"
    fi
    foreign=$(find "$W/$TO/base" "$W/$TO/global" "$W/$TO"/pg_* -type l ! -name '*.conf' 2>/dev/null | head -n 1)
    [ -z "$foreign" ] || fail "${foreign#"$W/$TO/"} is a link: what is changed in a copy would be changed in the original"
    rm -f "$W/$TO/postmaster.pid"
    chown -R "$owner" "$D/.drctl"
    chmod 700 "$W/$TO"
}

# Makes a copy start that does not: the control file and the WAL are made anew (pg_resetwal), missing transaction status
# is filled in as committed. Never run on anything but a copy. The next transaction is taken from the newest pg_xact segment
# when the control file has nothing to say (PostgreSQL manual, pg_resetwal).
reset() {
    cd "$W/$TO" || exit
    [ -s global/pg_control ] || : > global/pg_control
    last=$(ls pg_xact 2>/dev/null | sort | tail -n 1)
    if [ -z "$last" ]; then last=0000; fi
    set -- -f -D .
    if ! pg_controldata . 2>/dev/null | grep -q 'NextXID' || pg_controldata . 2>&1 | grep -qi 'WARNING.*CRC'; then
        next=$(( (0x$last + 1) * 1048576 ))
        set -- "$@" -x "$next" -o "$next"
        echo "control"
    fi
    pg_resetwal "$@" >/dev/null
    # 0x55 is four committed transactions to the byte. The alternative, zeros, would make every
    # row that was not yet marked vanish.
    if [ ! -e "pg_xact/$last" ]; then
        head -c 262144 /dev/zero | tr '\0' 'U' > "pg_xact/$last"
        echo "xact $last"
    fi
}

fill() {
    head -c 262144 /dev/zero | tr '\0' 'U' > "$W/$TO/$FILE"
    chown "$OWNER" "$W/$TO/$FILE"
}

empty() {
    printf '%s\n' "$FILES" | while read -r file; do
        : > "$W/$TO/$file"
        chown "$OWNER" "$W/$TO/$file"
        chmod 600 "$W/$TO/$file"
    done
}

case $1 in
copy) copy ;;
fill) fill ;;
empty) empty ;;
drop) rm -rf "$W/${TO:?}" ;;
reset) reset ;;
*) fail "there is no verb $1" ;;
esac
