#!/bin/sh
# Wheels for a machine without a network, whose Python has torch and transformers but not all else (benchmarks/gpu.py says
# what it lacks). Here:    sh benchmarks/gpu_wheels.sh wheels tyro docstring-parser typeguard beartype
# There, in the clone:     python -m pip install --no-index --no-deps --target site wheels/*.whl
#                          PYTHONPATH=$PWD/site python benchmarks/gpu.py --minutes 9 --out runs/gpu
# Versions are those of constraints.txt. PYTHON_VERSION names the other machine's Python (3.12 where it is not given).
set -eu
folder=${1:?give a folder, then the names of packages}
shift
[ $# -gt 0 ] || set -- tyro docstring-parser typeguard beartype
here=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
	--implementation cp --platform any --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	--platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64 -c "$here/constraints.txt" -d "$folder" "$@"
ls -l "$folder"
