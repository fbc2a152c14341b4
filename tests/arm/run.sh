#!/bin/sh
# The kernel checks on an emulated ARM CPU; README.md beside this file makes the folder.
#   tests/arm/run.sh FOLDER ISA [products] [model] [assembly]
set -eu
folder=$1 isa=$2
shift 2
here=$(cd "$(dirname "$0")/../.." && pwd)
case $isa in
  # Without the instructions of the next better set: a kernel that takes one of those is killed.
  portable) cpu=cortex-a72 ;;
  dotprod) cpu=cortex-a76 ;;
  *) cpu=max ;;
esac
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT INT TERM
cp -R "$here/edgert" "$here/tests" "$tree/"
cp -R "$here/kernels" "$tree/edgert/kernels"
# The shipped kernels, compiled here; EDGERT_KERNEL_LIBRARY=0 compiles under emulation instead.
if [ "${EDGERT_KERNEL_LIBRARY:-}" != 0 ]; then
  (cd "$here" && python3 kernels/build.py --for linux-aarch64 --isa "$isa" \
    --out "$tree/edgert/kernels/built" >&2)
fi
cd "$tree"
EDGERT_ISA=$isa EDGERT_ISA_FORCE=1 PYTHONPATH="$tree:$folder/site" PYTHONDONTWRITEBYTECODE=1 \
  qemu-aarch64-static -cpu "$cpu" -L "$folder/root" "$folder/root/usr/bin/python3.11" \
  -m tests.arm.check_kernels "$@"
