#!/usr/bin/env bash
# How fast this machine, or the machines of a hostfile, train: the bare step, decoding, one process end to end, and
# 1 ... N ranks; then one table and one picture of all four.
#   bash launch/throughput.sh                                      this machine
#   HOSTFILE=hostfiles/8node CONFIG=ds_configs/zero2.json bash launch/throughput.sh --data.manifest /shared/webvid
#   bash launch/throughput.sh --autotune --data.manifest data/mine   which micro batch, who decodes, how many workers
# CONFIG (ds_configs/zero2_fp32.json without a GPU, else zero2_bf16.json), HOSTFILE (none), PRESET (pretrain_webvid),
# CLIPS (4: micro batch of the first and third), OUT (bench: on a file system that all hosts share) choose what runs;
# RUN_ONLY ("step data train scaling") leaves some out, STEP, DATA and TRAIN hold further options of those benches.
# Arguments go to the bench of the ranks (or to the autotuner): fields of pre-training, --steps, --rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
[ "${DS_ACCELERATOR:-}" = cpu ] && usual=ds_configs/zero2_fp32.json || usual=ds_configs/zero2_bf16.json
CONFIG="${CONFIG:-$usual}" HOSTFILE="${HOSTFILE:-}" PRESET="${PRESET:-pretrain_webvid}" CLIPS="${CLIPS:-4}" OUT="${OUT:-bench}"
if [ "${1:-}" = --autotune ]; then
  shift
  exec python -m simvtp_ds.bench.autotune --preset "$PRESET" --deepspeed_config "$CONFIG" "$@"
fi
read -ra step <<<"${STEP:-}"
read -ra data <<<"${DATA:-}"
read -ra train <<<"${TRAIN:-}"
hosts=()
[ -z "$HOSTFILE" ] || hosts=(--hostfile "$HOSTFILE")
mkdir -p "$OUT"
for bench in ${RUN_ONLY:-step data train scaling}; do
  printf '\n== %s (%d s)\n' "$bench" "$SECONDS"
  case "$bench" in
    step) python -m simvtp_ds.bench.step --preset "$PRESET" --clips "$CLIPS" --out "$OUT" "${step[@]}" ;;
    data) python -m simvtp_ds.bench.data --out "$OUT" "${data[@]}" ;;
    train) python -m simvtp_ds.bench.train --preset "$PRESET" --deepspeed_config "$CONFIG" --clips "$CLIPS" --out "$OUT" "${train[@]}" ;;
    scaling) python -m simvtp_ds.bench.scaling --preset "$PRESET" --deepspeed_config "$CONFIG" "${hosts[@]}" --out "$OUT" "$@" ;;
    *) echo "throughput: RUN_ONLY has $bench; the benches are step, data, train and scaling" >&2; exit 1 ;;
  esac
done
printf '\n== together (%d s)\n' "$SECONDS"
python -m simvtp_ds.bench.throughput "$OUT"
