#!/usr/bin/env bash
# Everything that needs a CUDA device: the tests of graphs and compiled kernels, the times of passes, and the paper's
# Table 3. Results, plots and profiles go to $OUT. $PYTHON must have the package's dependencies and pytest.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
out=${OUT:-bench}
minutes=${MINUTES:-7}
failed=0
mkdir -p "$out"

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo 'no CUDA device here' >&2; exit 1; }
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv
"$python" -m pytest -q -p no:cacheprovider tests/gpu tests/griffin/decode/cuda || failed=1
"$python" -m tests.gpu.passes --shapes "${PASS_SHAPES:-llama-3-8b,llama-1.1b}" | tee "$out/passes.jsonl" || failed=1
for shape in ${SHAPES:-llama-2-13b gemma-7b mistral-7b}; do
    "$python" -m griffin.experiments latency --shape "$shape" --dtype bfloat16 --device cuda \
        --lengths 2048+128 2048+2048 --statistics flocking --rounds 3 --minutes "$minutes" \
        --json "$out/$shape.json" --plot "$out/$shape.png" --profile "$out/$shape.profile.txt" || failed=1
done
exit $failed
