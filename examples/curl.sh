#!/usr/bin/env bash
# The server by hand: bash examples/curl.sh [MODEL]
set -euo pipefail
server=${LLMSPELL_SERVER:-http://127.0.0.1:8000}
model=${1:-local/demo}
ask() { curl --silent --show-error --fail-with-body "$@"; }

echo "== models"
ask "$server/v1/models"

echo; echo "== one answer"
ask "$server/v1/chat/completions" --data @- <<JSON
{"model": "$model", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
JSON

echo; echo "== a stream, and where its time went"
ask --no-buffer "$server/v1/chat/completions" --data @- <<JSON
{"model": "$model", "stream": true, "stream_options": {"include_timings": true}, "max_tokens": 8,
 "messages": [{"role": "user", "content": "Tell me a story."}]}
JSON

# What follows is answered to programs on the server's own machine only.

echo "== backends, devices, models in memory, pulls"
ask "$server/admin/status"

echo; echo "== models on disk"
ask "$server/admin/library"

echo; echo "== all about one of them"
ask "$server/admin/library/$model"

echo; echo "== out of memory, and back in"
ask -X POST "$server/admin/models/$model/unload"
ask -X POST "$server/admin/models/$model/load"

# A pull tells how far it is; Ctrl-C leaves it, and the same command goes on where it was:
#   curl --no-buffer "$server/admin/models/pull" --data '{"model": "hf.co/owner/repository:Q4_K_M"}'
# A model is deleted by its spec:
#   curl -X DELETE "$server/admin/models/hf.co/owner/repository:Q4_K_M"
