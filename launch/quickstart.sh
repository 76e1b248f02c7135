#!/usr/bin/env bash
# From nothing to a retriever on this machine: pre-train SimVTP, fine-tune it, compare with a start from scratch. Two
# ranks, DeepSpeed ZeRO-2, CPU or GPU.
#   bash launch/quickstart.sh
# CLIPS (2000) and TEST_CLIPS (200) size the corpus, RUN (runs/quickstart) is the folder of the run; further arguments
# go to launch/pretrain.py, the words of FINETUNE to launch/finetune.py. A second call goes on where the first stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
RUN="${RUN:-runs/quickstart}" CLIPS="${CLIPS:-2000}" TEST_CLIPS="${TEST_CLIPS:-200}"
read -ra finetune <<<"${FINETUNE:-}"
data="$RUN/data"
started=$SECONDS
step() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - started))"; }
# Two processes share the cores of a small machine: one thread each, unless told otherwise.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
on_two_ranks() { deepspeed --num_accelerators 2 --master_port "${MASTER_PORT:-29511}" "$@"; }
evaluate() { python launch/evaluate.py --manifest "$data/test" "$@"; }

step "render $CLIPS + $TEST_CLIPS captioned clips"
python launch/render_corpus.py --out "$data/videos" --train "$CLIPS" --test "$TEST_CLIPS" --seed 0
step "prepare"
python launch/prepare.py "$data/videos/train.json" --out "$data/train" --vocab-size 1000
python launch/prepare.py "$data/videos/test.json" --out "$data/test" --tokenizer "$data/train"
step "pre-train: deepspeed, 2 ranks"
on_two_ranks launch/pretrain.py --preset quickstart --deepspeed_config ds_configs/quickstart.json \
  --data.manifest "$data/train" --run.dir "$RUN" "$@"
step "zero-shot retrieval on the test clips"
evaluate --checkpoint "$RUN" --out "$RUN/zero_shot.json"
for name in finetuned scratch; do
  init=()
  [ $name = scratch ] || init=(--init "$RUN")
  step "fine-tune: $name"
  on_two_ranks launch/finetune.py --preset quickstart_finetune --deepspeed_config ds_configs/quickstart_finetune.json \
    "${init[@]}" --data.manifest "$data/train" --run.dir "$RUN/$name" "${finetune[@]}"
  evaluate --checkpoint "$RUN/$name" --out "$RUN/$name.json"
done
step "pictures of test clips"
# Half hidden is what it was trained with, 90 % what the paper hides (docs/pictures.md).
python launch/visualize.py --checkpoint "$RUN" --manifest "$data/test" --count 4 --ratios 0.5 0.75 0.9
step "report"
python launch/report.py "$RUN"
step "search: a red circle moves left"
search=(python launch/search.py --checkpoint "$RUN/finetuned" --manifest "$data/test")
"${search[@]}" --query "a red circle moves left" --top 3 | python -c '
import json, sys
for clip in json.load(sys.stdin)["clips"]:
    print("%d. %.3f  %s: %s" % (clip["rank"], clip["score"], clip["id"], clip["captions"][0]))'
printf '\nto search the test clips in a browser:\n'
echo "${search[*]}"
