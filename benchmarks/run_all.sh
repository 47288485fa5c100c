#!/bin/sh
# Run every benchmark and keep all that they print in one text file.
#
#   benchmarks/run_all.sh [OUT.txt] [DIRECTORY FOR FILES]
#
# PYTHON names the interpreter (default: python); modelzip and the packages of requirements-peers.txt are installed
# there. Needs 11 GB of disk and a machine that does nothing else; takes about a quarter of an hour.
set -u
here=$(dirname "$0")
out=${1:-benchmark-results.txt}
tmp=${2:-${TMPDIR:-/tmp}}
status=0
: >"$out"
measure() {
    printf '\n==== %s\n' "$*" | tee -a "$out"
    { "$@" 2>&1 || echo "exit code $?"; } | tee -a "$out"
    tail -n 1 "$out" | grep -q '^exit code' && status=1
}
python=${PYTHON:-python}
measure "$python" "$here/startup.py" --tmp "$tmp"
measure "$python" "$here/gaussian.py"
measure "$python" "$here/gaussian_ecq.py"
measure "$python" "$here/quality.py" --print-only --tmp "$tmp"
measure "$python" "$here/kernels.py"
measure "$python" "$here/kernels.py" --keep-memory
measure env MODELZIP_KERNELS=numpy "$python" "$here/kernels.py"
measure "$python" "$here/codec_kernels.py"
measure "$python" "$here/codec_peers.py"
measure "$python" "$here/minilm.py" --tmp "$tmp"
measure "$python" "$here/mixture_peers.py"
measure "$python" "$here/lossless_peers.py"
measure "$python" "$here/small_run.py" --tmp "$tmp"
measure "$python" "$here/end_to_end.py" --tmp "$tmp"
measure "$python" "$here/memory.py" --tmp "$tmp"
measure "$python" "$here/containers.py" --tmp "$tmp"
measure "$python" "$here/many_files.py" --tmp "$tmp"
measure "$python" "$here/pruning.py" --tmp "$tmp"
measure "$python" "$here/running.py"
measure "$python" "$here/evaluation.py" --tmp "$tmp"
measure "$python" "$here/distillation.py" --tmp "$tmp"
measure "$python" "$here/importance.py" --tmp "$tmp"
measure "$python" "$here/calibration_memory.py" --tmp "$tmp"
measure "$python" "$here/literal_formula.py"
exit $status
