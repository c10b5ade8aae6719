#!/usr/bin/env bash
# Runs a study on a throw-away PostgreSQL server by two processes of two workers each, kills the first of them in the
# middle, and checks what the second left behind.
#
#   scripts/postgres_study.sh --trials 6 --epochs 1 --train-images 200 --val-images 100
#
#   scripts/postgres_study.sh -- COMMAND   runs that instead, with the server's URL in $STORAGE
#
# Takes the options of `python -m study.run`. The server comes from the system's packages, listens on
# the loopback interface alone, asks for a password, and is gone with its data when the script ends.
# $PYTHON names the interpreter (default: python).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
trials=6
previous=
for option in "$@"; do
  case $option in --trials=*) trials=${option#*=} ;; esac
  [ "$previous" = --trials ] && trials=$option
  previous=$option
done

fail() {
  echo "error: $1" >&2
  exit 2
}

# The newest of the installed versions; Debian keeps them side by side, others have one on the path.
bin=
for folder in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V) "$(dirname "$(command -v pg_ctl || echo /none/x)")"; do
  [ -x "$folder/initdb" ] && [ -x "$folder/pg_ctl" ] && bin=$folder
done
[ -n "$bin" ] || fail "PostgreSQL is not installed: there is no initdb in /usr/lib/postgresql/*/bin or on the path. \
Install it, for example with: apt-get install postgresql."
"$python" -c "import psycopg" 2>/dev/null || fail "The driver psycopg is not installed in $python. \
Install it with: pip install 'psycopg[binary]'."

# PostgreSQL refuses to run as root.
as_server=()
if [ "$(id -u)" -eq 0 ]; then
  user=postgres
  id "$user" >/dev/null 2>&1 || user=nobody
  as_server=(runuser -u "$user" --)
fi

work=$(mktemp -d)
server=$(mktemp -d)
clean_up() {
  local code=$?
  trap - EXIT
  (cd / && "${stop[@]}" >/dev/null 2>&1) || true
  rm -rf "$work" "$server"
  exit "$code"
}
stop=(true) # nothing runs yet
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

password=$("$python" -c "import secrets; print(secrets.token_hex(16))")
port=$("$python" -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
(umask 077 && echo "$password" >"$server/password")
if [ "${#as_server[@]}" -gt 0 ]; then
  chown -R "$user" "$server"
  "${as_server[@]}" test -r "$server/password" || fail "PostgreSQL runs as $user here, who cannot enter $server. \
Set TMPDIR to a folder that everybody can enter."
fi

start=("${as_server[@]}" "$bin/pg_ctl" -D "$server/data" -l "$server/log" -w -t 60
  -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off" start)
stop=("${as_server[@]}" "$bin/pg_ctl" -D "$server/data" -m immediate stop)
# The servers of root's shell start in a folder that their user may not enter.
(
  cd /
  "${as_server[@]}" "$bin/initdb" -D "$server/data" -U study -A scram-sha-256 --pwfile "$server/password" \
    --no-sync >"$work/initdb.log" 2>&1 || { cat "$work/initdb.log" >&2; exit 1; }
  "${start[@]}" >/dev/null || { cat "$server/log" >&2; exit 1; }
)
echo "PostgreSQL $("$bin/postgres" --version | awk '{print $3}') on 127.0.0.1:$port"

export STORAGE="postgresql+psycopg://study:$password@127.0.0.1:$port/postgres"
if [ "${1-}" = -- ]; then # a command of its own, which finds the server in $STORAGE, and what stops and starts it
  shift
  printf -v STORAGE_START '%q ' "${start[@]}"
  printf -v STORAGE_STOP '%q ' "${stop[@]}"
  export STORAGE_START STORAGE_STOP
  "$@"
  exit
fi
run=("$python" -m study.run --trials "$trials" --jobs 2 --study-name postgres --out "$work/out" "$@" --storage "$STORAGE")
"$python" - "${run[@]}" <<'PYTHON'
"""The second process joins while the first one is suspended; then that is killed, and its slots are taken over."""

import os
import signal
import subprocess
import sys
import time

from study.errors import UserError
from study.storage.database import open_study


def trials():
    try:
        return open_study(os.environ["STORAGE"], "postgres").trials
    except UserError:  # not there yet
        return []


def until(condition, process):
    while not condition():
        if process.poll() is not None:
            sys.exit(f"failed: a process ended with code {process.returncode} before it could be looked at.")
        time.sleep(0.05)


first = subprocess.Popen(sys.argv[1:], start_new_session=True)
until(lambda: any(trial.state.name == "RUNNING" and "candidate_id" in trial.user_attrs for trial in trials()), first)
os.killpg(first.pid, signal.SIGSTOP)
n_begun = len(trials())
second = subprocess.Popen(sys.argv[1:])
until(lambda: len(trials()) > n_begun, second)
os.killpg(first.pid, signal.SIGKILL)
first.wait()
sys.exit(second.wait())
PYTHON
"${run[@]}" >/dev/null # a finished study stays as it is

"$python" - "$trials" "$@" <<'PYTHON'
"""Counts what the study holds; anything but exactly N finished slots is an error."""

import os
import sys
from collections import Counter

from sqlalchemy import create_engine, text

from study.storage.database import FINISHED, open_study

wanted = int(sys.argv[1])
url = os.environ["STORAGE"]
trials = open_study(url, "postgres").trials
finished = [trial for trial in trials if trial.state in FINISHED]
slots = Counter(trial.user_attrs["slot"] for trial in finished)
with create_engine(url).connect() as connection:
    states = Counter(connection.execute(text("SELECT state FROM small_cnn_study_slots")).scalars())
# A trial that begins while others are under way is the only sign of the second worker; one more is asked for ahead.
at_once = max(
    sum(other.datetime_start <= trial.datetime_start < other.datetime_complete for other in finished)
    for trial in finished
)
print("trials:", ", ".join(f"{n} {state.name}" for state, n in Counter(t.state for t in trials).items()))
print(f"slots: {len(slots)} finished of {wanted}, at most {at_once} under way")
if any(trial.state.name == "RUNNING" for trial in trials):
    sys.exit("failed: a trial is left running.")
if len(finished) != wanted or sorted(slots) != list(range(wanted)) or states != {"finished": wanted}:
    sys.exit(f"failed: not exactly {wanted} finished: trials by slot {dict(slots)}, slots {dict(states)}.")
PYTHON
