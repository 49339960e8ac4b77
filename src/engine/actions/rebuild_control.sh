# shellcheck shell=sh disable=SC2164,SC2010,SC1087,SC2046,SC2154
# Makes a control file for the copy in $W/$TO, so that the copy replays its own write-ahead log.
#
# pg_resetwal alone would do two things: make a control file with guessed values, and throw the log away. Only the
# first is wanted. What cannot be guessed is where it surely is: the cluster's identity stands in every WAL
# segment, whether pages carry checksums can be seen on the pages, and the last checkpoint is found in the log itself
# and handed to the server in a backup_label, as a base backup does.
cd "$W/$TO"
newest=$(ls pg_wal | grep -x '[0-9A-F]\{24\}' | cut -c 1-8 | sort | tail -n 1)
[ -n "$newest" ] || fail "there is no write-ahead log"
segments=$(ls pg_wal | grep -x "$newest[0-9A-F]\{16\}" | sort)
first=$(printf '%s\n' "$segments" | head -n 1)
last=$(printf '%s\n' "$segments" | tail -n 1)
record=$(pg_waldump -r XLOG -p pg_wal "$first" "$last" 2>/dev/null | grep 'CHECKPOINT_\(ONLINE\|SHUTDOWN\)' | tail -n 1)
checkpoint=$(printf '%s\n' "$record" | sed -n 's/.* lsn: \([0-9A-F]*\/[0-9A-F]*\),.*/\1/p')
redo=$(printf '%s\n' "$record" | sed -n 's/.* redo \([0-9A-F]*\/[0-9A-F]*\);.*/\1/p')
timeline=$(printf '%s\n' "$record" | sed -n 's/.*; tli \([0-9]*\);.*/\1/p')
[ -n "$checkpoint" ] && [ -n "$redo" ] && [ -n "$timeline" ] || fail "there is no checkpoint in the write-ahead log"
size=$(($(wc -c < "pg_wal/$first")))
low=$((0x${redo#*/}))
segment=$(printf '%08X%08X%08X' "$timeline" "$((0x${redo%/*}))" "$((low / size))")
[ -f "pg_wal/$segment" ] || fail "segment $segment, from which the log must be replayed, is not there"

# Every page that is looked at carries a checksum, or the cluster has none.
checksums=0
for file in $(ls base/1 | grep -x '[0-9]*' | head -n 40); do
  [ "$(wc -c < "base/1/$file")" -ge 8192 ] || continue
  checksums=1
  set -- $(dd if="base/1/$file" bs=1 skip=8 count=2 2>/dev/null | od -An -v -tu1)
  if [ "$1" = 0 ] && [ "$2" = 0 ]; then checksums=0; break; fi
done

mv pg_wal wal-kept
mkdir -p pg_wal/archive_status
chmod 700 pg_wal pg_wal/archive_status
: > global/pg_control
pg_resetwal -f -l "$last" --wal-segsize="$((size / 1048576))" -D . >/dev/null
rm -rf pg_wal
mv wal-kept pg_wal

# Takes bytes as numbers; gives the CRC-32C of the first $1 of them, or, where $1 is 0, the length after which the
# next four bytes are the CRC of all before: the structure grows from version to version.
crc() {
  length=$1; shift
  crc=$((0xFFFFFFFF)); at=0
  while [ $# -gt 4 ]; do
    if [ "$at" = "$length" ] && [ "$at" != 0 ]; then break; fi
    if [ "$length" = 0 ] && [ "$at" -ge 128 ] &&
      [ "$((crc ^ 0xFFFFFFFF))" = "$(($1 | $2 << 8 | $3 << 16 | $4 << 24))" ]; then
      echo "$at"; return 0
    fi
    crc=$((crc ^ $1)); shift; at=$((at + 1))
    for _ in 1 2 3 4 5 6 7 8; do
      crc=$(((crc >> 1) ^ (0x82F63B78 & -(crc & 1))))
    done
  done
  [ "$length" != 0 ] || return 1
  echo "$((crc ^ 0xFFFFFFFF))"
}
numbers() { od -An -v -tu1 -N 600 global/pg_control; }
# Four bytes, lowest first, at an offset.
put() {
  printf "$(printf '\\%03o\\%03o\\%03o\\%03o' "$(($2 & 255))" "$(($2 >> 8 & 255))" "$(($2 >> 16 & 255))" "$(($2 >> 24 & 255))")" |
    dd of=global/pg_control bs=1 seek="$1" conv=notrunc 2>/dev/null
}
length=$(crc 0 $(numbers)) || fail "the layout of the control file is not known"
# The identity: xlp_sysid in the first page's header of a segment, the first field of the control file.
dd if="pg_wal/$segment" of=global/pg_control bs=1 skip=24 count=8 conv=notrunc 2>/dev/null
# data_checksum_version stands before the authentication nonce of 32 bytes; one more field since version 18.
if [ "$(cat PG_VERSION)" -ge 18 ]; then before=40; else before=36; fi
put "$((length - before))" "$checksums"
put "$length" "$(crc "$length" $(numbers))"
pg_controldata . 2>&1 | grep -q 'WARNING' && fail "the control file that was made does not hold"
printf 'START WAL LOCATION: %s (file %s)\nCHECKPOINT LOCATION: %s\n' "$redo" "$segment" "$checkpoint" > backup_label
echo "replays from $redo"
