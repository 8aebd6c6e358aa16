#!/usr/bin/env bash
# All that is asked of a GPU, on a bare CUDA machine, within 25 minutes. Results: JSON files named after the device.
#   benchmarks/gpu.sh [OUT]                 OUT: folder of the results (benchmarks/results)
#   SIZE=small benchmarks/gpu.sh [OUT]      the same steps with tiny settings, on a CPU, in minutes: does the script work?
#   PYTHON=python3 ...                      an environment that has the project's packages (.venv/bin/python)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
python=${PYTHON:-.venv/bin/python}
size=${SIZE:-paper}
case $size in small | paper) ;; *) echo "SIZE=$size: small, or paper (the default)" >&2 && exit 2 ;; esac
if [ -e "$out" ] && [ ! -d "$out" ]; then echo "$out: is a file; give a folder" >&2 && exit 2; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=("run.runs_dir=$work/runs" "run.cache_dir=$work/cache")
device=$($python -c 'import torch; print((torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu").replace(" ", "_"))')
mkdir -p "$out"

if [ "$size" = small ]; then
  eager=(--profile smoke --volumes 2 --slices 8 --repeats 1 train.max_steps=2 sample.num_inference_steps=2)
  fast=("${eager[@]}" sample.precision=bfloat16 sample.channels_last=true)
  fit=(--profile smoke --steps 9 train.channels_last=true)
  train=(--profile smoke --repeats 1 train.max_steps=4 sample.num_inference_steps=2)
  memory=(--size 32 --slices 16 --profile smoke --limit-gb 6)
else
  eager=(--profile gpu_256 --volumes 4 --slices 40 --repeats 1)  # in float32 ten times as slow
  fast=(--profile gpu_256 --volumes 4 --repeats 3 sample.precision=bfloat16 sample.channels_last=true
        sample.compile=reduce-overhead)
  fit=(--profile gpu_256 --steps 90 train.channels_last=true train.compile=default)
  train=(--profile gpu_128 --repeats 3)
  memory=(--size 256 --slices 300 --profile gpu_256 --limit-gb 6)
fi

failed=0
step() {  # a step that fails does not cost the others' results
  local title=$1
  shift
  echo && echo "== $(date +%H:%M:%S) $title"
  "$@" || { echo "FAILED: $title" >&2 && failed=1; }
}
bench() {  # NAME ARGUMENTS: bench.json as NAME.json
  local name=$1
  shift
  $python -m experiments bench ours "$@" --out "$work/$name" "${here[@]}" && cp "$work/$name/bench.json" "$out/$device.$name.json"
}
step "samplers at the paper's size, float32, eager" bench bench_float32 --speed-only "${eager[@]}"
step "samplers at the paper's size, 16 bits, compiled" bench bench_16bit_compiled --speed-only "${fast[@]}"
step "memory of brickwork under a cap" \
  $python -m benchmarks.sampling_memory "${memory[@]}" --out "$out/$device.memory.json" "${here[@]}"
step "training steps a second" $python -m benchmarks.fit ours "${fit[@]}" --out "$out/$device.fit.json" "${here[@]}"
step "a model trained at 128 x 128, its samplers timed and scored" bench bench_trained "${train[@]}"
step "its table" cp "$work/bench_trained/bench.md" "$out/$device.bench_trained.md"
step "written to $out" ls -l "$out"
exit $failed
