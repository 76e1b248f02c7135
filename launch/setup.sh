# Sourced by quickstart.sh and tests/run.sh: a virtual environment with everything in it, DeepSpeed's operators built.
# `more`, if set, names a further requirements file.
# PYTHON (default python3) makes the environment; VENV (default .venv) is where it goes.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$root/.venv}"
PYTHON="${PYTHON:-python3}"

fail() { echo "setup: $*" >&2; exit 1; }
command -v "$PYTHON" >/dev/null || fail "no $PYTHON found; install Python 3.11 or newer, or set PYTHON to one"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$PYTHON" --version) is too old; set PYTHON to a Python 3.11 or newer"
command -v g++ >/dev/null || fail "no g++ found, which DeepSpeed's operators are built with (Debian: apt install g++)"

if [ ! -x "$VENV/bin/python" ]; then
  echo "setup: virtual environment in $VENV"
  "$PYTHON" -m venv "$VENV" || fail "could not make a virtual environment (Debian: apt install python3-venv)"
fi
wanted="$(cat "$root/requirements.txt" ${more:+"$more"} | sha256sum) $("$VENV/bin/python" --version) $root"
if ! grep -qxF "$wanted" "$VENV/.installed" 2>/dev/null; then
  echo "setup: installing packages (3 to 6 minutes, once)"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt" ${more:+-r "$more"}
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root"
  echo "$wanted" >>"$VENV/.installed"
fi
export PATH="$VENV/bin:$PATH"

# DeepSpeed compiles its operators for this machine's processor, so they stay with this checkout.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$root/.cache/torch_extensions}"
if ! python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  export DS_ACCELERATOR=cpu
fi
python "$root/launch/build_ops.py"
