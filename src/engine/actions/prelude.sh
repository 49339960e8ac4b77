# shellcheck shell=sh disable=SC2010
# What the scripts that work on a data directory have in common. Plain POSIX: the official images' Alpine variants have
# only busybox. `$D` is the data directory, `$RUN` the run, `$W` the run's directory in the data directory, $FIRST a
# segment of the write-ahead log or empty.
set -eu
export LC_ALL=C
D="$PGDATA"; W="$D/.drctl/$RUN"
fail() { echo "$*" >&2; exit 1; }
# Everything in a directory, hidden names too, one per line; .drctl never.
entries() { ls -A "$1" | grep -vx -e .drctl || true; }
# From one directory to another: all entries but those that make a server start.
move() {
  entries "$1" | while read -r e; do
    case "$e" in global|PG_VERSION) ;; *) mv "$1/$e" "$2/" ;; esac
  done
}
# A server that replays the log beside the data creates the same tablespaces at the same places:
# it would write into those that the server itself uses.
no_tablespaces() {
  [ -z "$(ls -A "$1/pg_tblspc" 2>/dev/null)" ] ||
    fail "there are tablespaces outside the data directory ($1/pg_tblspc): a replay beside the data would write to them"
}
# Segments and histories of pg_wal from segment $FIRST on. Timelines (the first eight
# digits) do not order segments, the rest does.
keep_wal() {
  mkdir -p "$W/wal"
  ls "$D/pg_wal" 2>/dev/null | awk -v first="x$FIRST" '
    /\.history$/ { print }
    length($0) == 24 && !/[^0-9A-F]/ && ("x" substr($0, 9)) >= ("x" substr(first, 10)) { print }
  ' | while read -r name; do
    # A running server removes segments, or gives them a later name and writes over them. One that
    # is gone at the end of its copy may be either: what an earlier copy has of it stays.
    cp -a "$D/pg_wal/$name" "$W/segment" || [ ! -e "$D/pg_wal/$name" ] ||
      fail "segment $name of the write-ahead log cannot be copied"
    if [ -e "$D/pg_wal/$name" ]; then mv "$W/segment" "$W/wal/$name"; else rm -f "$W/segment"; fi
  done
  # After the copies: whatever they replay was made before.
  no_tablespaces "$D"
  # What the backup itself holds of the log is good, the server's own may be what is
  # damaged: up to the backup's end its bytes count, from there on the server's.
  [ ! -s "$W/base-end" ] || ls "$W/base-wal" | while read -r name; do
    read -r end offset < "$W/base-end"
    suffix=${name#????????}
    if [ ! -f "$W/wal/$name" ] || expr "x$suffix" \< "x$end" >/dev/null; then
      cp -a "$W/base-wal/$name" "$W/wal/$name"
    elif [ "$suffix" = "$end" ]; then
      { head -c "$offset" "$W/base-wal/$name"; tail -c "+$((offset + 1))" "$W/wal/$name"; } > "$W/joined"
      mv "$W/joined" "$W/wal/$name"
    fi
  done
  # A segment of another length would end the replay with an error instead of at its end.
  cat > "$W/restore-wal" <<'END'
file="${0%/*}/wal/$1"
case "$1" in
*.history) [ -f "$file" ] || exit 1 ;;
*) [ -f "$file" ] && [ "$(wc -c < "$file")" -eq "$3" ] || exit 1 ;;
esac
# More than 125 ends the recovery instead of ending the replay (manual, 26.3.4).
cp "$file" "$2" || exit 200
END
  ls "$W/wal" | sed 's/^/kept /'
}
