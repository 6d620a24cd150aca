#!/usr/bin/env bash
# emuhip.sh ARCH PROGRAM ARGUMENTS...: runs a program of wavelm on an emulated AMD GPU: its own driver table, code objects,
# uploads, launches, graphs, self-test and rescue, with every kernel executed as AMD machine code.
#
#   TINYGRAD=CHECKOUT emuhip.sh gfx1100 target/release/examples/generate --device hip --model tiny.gguf --prompt abc
#
# tiny.py writes a model that is small enough: about 35 s of CPU for the self-test and 5 tokens. ARCH is gfx1100, gfx1151,
# gfx1201 or gfx942; see emuhip.c for faults that it can inject. Needs cc, python3 with its headers and shared library,
# numpy, clang (CC names it), LLVM's library (Debian: llvm-19) and, as TINYGRAD, a checkout of github.com/tinygrad/tinygrad (0.13 or later), whose
# emulator this uses. EMU_LOG=FILE lists the launches with their times.
set -euo pipefail
: "${TINYGRAD:?set it to a checkout of github.com/tinygrad/tinygrad}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${EMUHIP_BUILD:-${XDG_CACHE_HOME:-$HOME/.cache}/wavelm-emuhip}
mkdir -p "$folder"
python() { python3 -c "import sysconfig as s; print($1)"; }
if [[ ! -e $folder/libemuhip.so || $folder/libemuhip.so -ot $here/emuhip.c ]]; then
  cc -O1 -shared -fPIC -Wno-unused-parameter -o "$folder/libemuhip.$$.so" "$here/emuhip.c" -I"$(python "s.get_path('include')")" \
    -L"$(python "s.get_config_var('LIBDIR')")" -lpython"$(python "s.get_config_var('LDVERSION')")" -lpthread -ldl
  mv "$folder/libemuhip.$$.so" "$folder/libemuhip.so"
fi
library=$(python "s.get_config_var('LIBDIR') + '/' + s.get_config_var('INSTSONAME')")
export EMU_ARCH=$1 EMUHIP_DIR=$here WAVELM_HIP_LIBRARY=$folder/libemuhip.so DEV=CPU:LLVM
PYTHONHOME=$(python "s.get_config_var('prefix')")
export PYTHONHOME
# What the emulator compiles with.
CC=${CC:-$(command -v clang clang-19 clang-18 clang-17 | head -n 1)}
export CC
[[ -e $library ]] && export LD_PRELOAD=$library
shift
exec "$@"
