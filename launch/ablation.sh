#!/usr/bin/env bash
# The paper's claims at small scale, on the drawn corpus: pre-training against none, four losses against two, how much
# is hidden. Five variants x three seeds, each pre-trained, fine-tuned alike and scored on unseen clips.
#   bash launch/ablation.sh          about an hour on two cores
# RUN (runs/ablation), SEEDS ("0 1 2"), JOBS (2: runs side by side, one process each), CLIPS, TEST_CLIPS, EPOCHS and
# FINETUNE_EPOCHS size it. A second call goes on where the first one stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN="${RUN:-runs/ablation}" SEEDS="${SEEDS:-0 1 2}" JOBS="${JOBS:-2}" CLIPS="${CLIPS:-2000}" TEST_CLIPS="${TEST_CLIPS:-500}"
EPOCHS="${EPOCHS:-16}" FINETUNE_EPOCHS="${FINETUNE_EPOCHS:-8}"

trained() { # RUN: whether its training came to its end; a stopped one, too, exits with 0
  tail -n 1 "$1/log.txt" | grep -q " finished at step " || { echo "$1 has stopped before its last step" >&2; return 1; }
}

one() { # VARIANT SEED: pre-train, score, fine-tune, score
  local variant="$1" seed="$2" folder="$RUN/$1-$2" init=() options=() tubes=0.9 words=0.75 # the paper's
  case "$variant" in
    full | scratch) ;;
    rebuild) options=(--objectives.vtc 0 --objectives.vtm 0) ;;
    words15) words=0.15 ;;
    tubes50) tubes=0.5 ;;
  esac
  [ -f "$folder/finetuned.json" ] && return
  mkdir -p "$folder"
  if [ "$variant" != scratch ]; then
    python launch/pretrain.py --preset quickstart --deepspeed_config "$RUN/quickstart.json" --data.manifest "$RUN/train" \
      --run.dir "$folder" --run.seed "$seed" --schedule.epochs "$EPOCHS" --schedule.warmup_epochs 2 \
      --masks.tube_ratio "$tubes" --masks.word_ratio "$words" "${options[@]}"
    trained "$folder"
    python launch/evaluate.py --checkpoint "$folder" --manifest "$RUN/test" --out "$folder/zero_shot.json"
    init=(--init "$folder")
  fi
  python launch/finetune.py --preset quickstart_finetune --deepspeed_config "$RUN/quickstart_finetune.json" "${init[@]}" \
    --data.manifest "$RUN/train" --run.dir "$folder/finetuned" --run.seed "$seed" \
    --schedule.epochs "$FINETUNE_EPOCHS" --validation.videos 0
  trained "$folder/finetuned"
  python launch/evaluate.py --checkpoint "$folder/finetuned" --manifest "$RUN/test" --out "$folder/finetuned.json"
}

if [ "${1:-}" = --one ]; then # a job of the xargs below
  exec 3>&2
  # No `one ... || ...`: it would switch set -e off in there, and a failed pre-training would be fine-tuned all the same.
  trap '[ $? = 0 ] || echo "$2, seed $3 failed, see $RUN/$2-$3.log" >&3' EXIT
  one "$2" "$3" >"$RUN/$2-$3.log" 2>&1
  echo "$2, seed $3: done after $SECONDS s"
  exit
fi

source launch/setup.sh
export RUN EPOCHS FINETUNE_EPOCHS OMP_NUM_THREADS=1
python launch/render_corpus.py --out "$RUN/videos" --train "$CLIPS" --test "$TEST_CLIPS" --seed 0
python launch/prepare.py "$RUN/videos/train.json" --out "$RUN/train" --vocab-size 1000
python launch/prepare.py "$RUN/videos/test.json" --out "$RUN/test" --tokenizer "$RUN/train"
# The quickstart's settings for one process: it takes the clips of both ranks.
for name in quickstart quickstart_finetune; do
  python - "ds_configs/$name.json" "$RUN/$name.json" <<'PY'
import json, sys
config = json.load(open(sys.argv[1]))
config["train_micro_batch_size_per_gpu"] *= 2
json.dump(config, open(sys.argv[2], "w"), indent=2)
PY
done
for seed in $SEEDS; do
  for variant in full scratch rebuild words15 tubes50; do echo "--one $variant $seed"; done
done | xargs -P "$JOBS" -L 1 bash launch/ablation.sh
python -m simvtp_ds.evaluation.ablation "$RUN"
